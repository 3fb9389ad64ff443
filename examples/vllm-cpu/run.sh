#!/usr/bin/env bash
# Runs the campaign against the real vLLM that install.sh put into DIR, shows its figures, and then the
# server whose engine dies, which has to fail by name.
# Usage: ./run.sh [DIR]      DOE names the `doe` to use; without it, the one on the search path or cargo's.
set -euo pipefail
cd "$(dirname "$0")"
dir=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/doe-vllm-cpu}
[ -x "$dir/bin/vllm" ] || { echo "run.sh: no vLLM in $dir; ./install.sh $dir installs it" >&2; exit 1; }
doe() {
  if [ -n "${DOE:-}" ]; then "$DOE" "$@"
  elif [ -n "$(type -P doe)" ]; then command doe "$@"
  else cargo run --quiet --locked --manifest-path ../../Cargo.toml -- "$@"; fi
}
export PATH="$dir/bin:$PATH"
trap 'rm -rf /tmp/doe-vllm-cpu/doe-kv' EXIT

uptime
doe build //serving:all --platform cpu
doe results //serving:all --platform cpu

echo 'The server whose engine dies: what follows has to fail.'
status=0
doe build //serving:dies --platform cpu --json > .doe/dies.jsonl || status=$?
grep '"event":"node-finished"' .doe/dies.jsonl
[ "$status" = 1 ] && grep -q '"class":"engine_dead"' .doe/dies.jsonl ||
  { echo "run.sh: a dead engine was not seen as such (exit code $status)" >&2; exit 1; }
echo 'It failed by name: engine_dead.'
