#!/usr/bin/env bash
# Runs every test of the workspace.
set -euo pipefail
cd "$(dirname "$0")"
# The S3 servers that the mirror is tested against; nothing to do when they are there.
.ci/s3-servers
# The campaigns in the tests are heavy: two at a time, whatever the number of cores.
INSTA_UPDATE=no RUST_TEST_THREADS="${RUST_TEST_THREADS:-2}" cargo test --workspace --locked "$@"
