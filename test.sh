#!/usr/bin/env bash
# Runs every test of the workspace.
set -euo pipefail
cd "$(dirname "$0")"
# The S3 servers that the mirror is tested against; nothing to do when they are there.
.ci/s3-servers
# The chaos tests move clocks, and mount file systems, which takes root.
skip=()
if [ "$(id -u)" = 0 ]; then
  command -v faketime >/dev/null && command -v mkfs.ext4 >/dev/null || {
    apt-get update -qq && apt-get install -y -qq --no-install-recommends faketime e2fsprogs mount
  }
  # Hosts with an sshd of their own, for everything over ssh.
  tests/rigs/install.sh
  # What is shipped to hosts with another C library is a second build of everything, so it is asked
  # for; where it is missing, its test says so.
  if [ -n "${DOE_TEST_STATIC:-}" ]; then
    .ci/static-doe dev
  else
    echo 'NO STATIC doe: DOE_TEST_STATIC=1 builds and tests it' >&2
  fi
else
  command -v faketime >/dev/null || { echo 'the tests need `faketime`: apt-get install faketime' >&2; exit 1; }
  echo 'NOT ROOT: neither the power cut nor full disks nor anything on hosts (ssh, Slurm, Systems Manager) is tested' >&2
  skip=(--skip power::)
fi
# The campaigns in the tests are heavy: two at a time, whatever the number of cores.
export INSTA_UPDATE=no RUST_TEST_THREADS="${RUST_TEST_THREADS:-2}"
if [ $# -gt 0 ]; then
  cargo test --workspace --locked "$@"
else
  cargo test --workspace --locked --no-run --message-format json-render-diagnostics |
    python3 tests/lanes.py "${skip[@]}"
  cargo test --workspace --locked --doc
fi
