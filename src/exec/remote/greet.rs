//! The first words with a host: the private folder, and the host program in it, verified.

use super::call::{self, Input, Line, Request};
use super::{PROGRAM, RemoteOptions};
use crate::error::{Error, Kind, Result};
use crate::exec::HostSpec;
use crate::exec::files::sha256_of;
use crate::exec::folder::quote;
use std::time::Duration;

/// What a host said when it was first called.
#[derive(Debug, Clone)]
pub(super) struct Hello {
    pub(super) root: String,
    pub(super) path: String,
}

/// The first words with a host: its folder, and the host program in it.
pub(super) async fn greet(
    line: &dyn Line,
    host: &HostSpec,
    options: &RemoteOptions,
    program: &str,
) -> Result<Hello> {
    let failed = |why: String| {
        Error::new(
            Kind::Infra,
            "host-unusable",
            format!("the host `{}` cannot be used", host.name),
        )
        .cause(why)
    };
    let sum = sha256_of(PROGRAM.as_bytes());
    let nonce = call::nonce();
    let command = format!(
        "exec /bin/sh -c {} doe {} {} {} {}",
        quote(BOOTSTRAP),
        quote(&options.root),
        quote(program),
        quote(&sum),
        quote(&nonce),
    );
    let input = Input::Bytes(PROGRAM.as_bytes().to_vec());
    let request = Request::new("greet", vec![]).reading(input);
    let raw = line.run(&host.name, &command, &request).await;
    let raw = raw.map_err(|broken| call::unreachable(&host.name, &broken, Duration::ZERO))?;
    let text = String::from_utf8_lossy(&raw.stdout);
    let mark = format!("doe-root {nonce} ");
    let root = text.lines().find_map(|line| line.strip_prefix(&mark));
    let root = root
        .ok_or_else(|| failed(raw.stderr.trim().to_owned()))?
        .to_owned();
    Ok(Hello {
        path: text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("doe-path {nonce} ")))
            .unwrap_or_default()
            .to_owned(),
        root,
    })
}

/// Makes the folder and puts the host program into it, unless it is there and right.
pub(super) const BOOTSTRAP: &str = r#"umask 077
case $1 in "~/"*) root=$HOME/${1#"~/"} ;; *) root=$1 ;; esac
mkdir -p -- "$root" && cd -- "$root" && root=$(pwd -P) || exit 73
[ -O . ] || { echo "$root belongs to somebody else" >&2; exit 73; }
chmod 700 . || exit 73
right() { sum=$(sha256sum 2>/dev/null <"$1") && [ "${sum%% *}" = "$2" ]; }
command -v sha256sum >/dev/null || { echo "the host has no sha256sum, which is needed to verify files" >&2; exit 69; }
command -v setsid >/dev/null || { echo "the host has no setsid, which is needed to run scripts" >&2; exit 69; }
if [ ! -f "$2" ] || ! right "$2" "$3"; then
    cat >".new-$4" && right ".new-$4" "$3" && mv -f ".new-$4" "$2" || { echo "could not write into $root" >&2; exit 73; }
fi
printf "\ndoe-path %s %s\ndoe-root %s %s\n" "$4" "$PATH" "$4" "$root""#;
