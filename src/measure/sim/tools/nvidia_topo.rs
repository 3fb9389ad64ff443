//! `nvidia-smi topo -m`: one NIC (the EFA device). Instances with NVSwitch (`p4`, `p5`, ...) have
//! their GPUs on NVLink and the NIC behind the same PCIe switch; on the others everything meets
//! at the PCIe host bridge.

use std::io;

use super::Sim;
use super::fi_info::EFA_DEVICE;

const LEGEND: &str = "\nLegend:\n\n  X    = Self\n  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)\n  NODE = Connection traversing PCIe as well as the interconnect between PCIe Host Bridges within a NUMA node\n  PHB  = Connection traversing PCIe as well as a PCIe Host Bridge (typically the CPU)\n  PXB  = Connection traversing multiple PCIe bridges (without traversing the PCIe Host Bridge)\n  PIX  = Connection traversing at most a single PCIe bridge\n  NV#  = Connection traversing a bonded set of # NVLinks\n\nNIC Legend:\n";

pub(super) fn run(sim: &mut Sim<'_>) -> io::Result<u8> {
    if !matches!(sim.args.get(1).map(String::as_str), Some("-m" | "--matrix"))
        || sim.args.len() != 2
    {
        writeln!(
            sim.out,
            "Invalid combination of input arguments. Please run 'nvidia-smi topo -h' for help.\n"
        )?;
        return Ok(2);
    }
    let count = sim.profile.gpu.count as usize;
    let (between_gpus, to_nic) = if sim.profile.instance_type.starts_with('p') {
        ("NV18", "PIX")
    } else {
        ("PHB", "PHB")
    };
    write!(sim.out, "\t\u{1b}[4m")?;
    for gpu in 0..count {
        write!(sim.out, "GPU{gpu}\t")?;
    }
    writeln!(
        sim.out,
        "NIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\u{1b}[0m"
    )?;
    for gpu in 0..count {
        write!(sim.out, "GPU{gpu}\t")?;
        for other in 0..count {
            let relation = if other == gpu { " X " } else { between_gpus };
            write!(sim.out, "{relation}\t")?;
        }
        writeln!(sim.out, "{to_nic}\t0-47\t0\t\tN/A")?;
    }
    write!(sim.out, "NIC0\t")?;
    for _ in 0..count {
        write!(sim.out, "{to_nic}\t")?;
    }
    writeln!(sim.out, " X \t\t\t\t\n{LEGEND}\n  NIC0: {EFA_DEVICE}\n")?;
    Ok(0)
}
