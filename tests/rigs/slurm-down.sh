#!/bin/bash
# Ends what slurm-up.sh started, by the pid files it wrote.
# usage: slurm-down.sh DIR
for f in "$1"/run/*.pid "$1"/munge/munged.pid; do
    [ -f "$f" ] && kill -KILL "$(cat "$f")" 2>/dev/null
done
exit 0
