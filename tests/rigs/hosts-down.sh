#!/bin/bash
# Ends what hosts-up.sh made: every process in the namespaces, by pid, then the namespaces.
# usage: hosts-down.sh DIR N PREFIX
DIR=$1 N=$2 P=$3
for i in $(seq 1 "$N"); do
    [ -f "$DIR/sshd-$i.pid" ] && kill "$(cat "$DIR/sshd-$i.pid")" 2>/dev/null
    for pid in $(ip netns pids "$P$i" 2>/dev/null); do kill -KILL "$pid" 2>/dev/null; done
    ip link del "v-$P$i" 2>/dev/null
    ip netns del "$P$i" 2>/dev/null
done
ip link del "br-$P" 2>/dev/null
exit 0
