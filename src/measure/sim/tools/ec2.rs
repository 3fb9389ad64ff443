//! `ec2-metadata --instance-type` (or `-t`): what the metadata service says of the profile's host.

use std::io;

use super::Sim;

pub(super) fn run(sim: &mut Sim<'_>) -> io::Result<u8> {
    if sim.fails() {
        writeln!(
            sim.out,
            "[ERROR] Command not valid outside EC2 instance. Please run this command within a running EC2 instance."
        )?;
        return Ok(1);
    }
    match sim.args.first().map(String::as_str) {
        Some("-t" | "--instance-type") => {
            writeln!(sim.out, "instance-type: {}", sim.profile.instance_type)?;
            Ok(0)
        }
        _ => {
            writeln!(
                sim.out,
                "Usage: ec2-metadata <option>\nOptions:\n-t/--instance-type    The type of instance to launch."
            )?;
            Ok(1)
        }
    }
}
