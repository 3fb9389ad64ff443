//! The hidden command `doe __session PROGRAM DIR`: makes itself the leader of a new session and
//! the heir of every orphan in it, then becomes the wrapper. It exists because only the process
//! itself can do that, and it keeps its number when it becomes another program.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::process::{getpid, getsid, set_child_subreaper, setsid};

use crate::error::{Error, Kind, Result};

/// Name of the hidden command.
pub const SESSION_COMMAND: &str = "__session";

/// Runs the hidden command; `arguments` are those after its name. Returns only when it failed.
pub fn session_main(arguments: impl IntoIterator<Item = OsString>) -> Result<u8> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let [program, dir] = arguments.as_slice() else {
        return Err(Error::new(
            Kind::Usage,
            "usage",
            format!("expected `doe {SESSION_COMMAND} PROGRAM DIR`: doe calls this itself"),
        ));
    };
    become_leader()?;
    // The wrapper stands for the parent of what daemons leave behind and so can end them. Where
    // the kernel refuses, they are found by their token.
    let _ = set_child_subreaper(Some(getpid()));
    let cause = Command::new("/bin/sh")
        .arg(program)
        .arg("run")
        .arg(dir)
        .exec();
    Err(Error::io("run", Path::new("/bin/sh"), &cause))
}

/// Makes this process the leader of its own session, unless it is one.
pub(super) fn become_leader() -> Result<()> {
    let is_leader = || getsid(None).is_ok_and(|session| session == getpid());
    match setsid() {
        Ok(_) => Ok(()),
        Err(_) if is_leader() => Ok(()),
        Err(cause) => Err(Error::new(
            Kind::Infra,
            "no-session",
            "could not start a session of processes",
        )
        .cause(cause)
        .hint("the caller must not have made this process the leader of a process group")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_no_command_for_people() {
        let error = session_main(["x".into()]).unwrap_err();
        assert_eq!((error.kind, error.code), (Kind::Usage, "usage"));
    }
}
