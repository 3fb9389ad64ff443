#!/usr/bin/env bash
# Runs every test of the workspace.
set -euo pipefail
cd "$(dirname "$0")"
INSTA_UPDATE=no cargo test --workspace --locked "$@"
