#!/bin/bash
# Starts the sshd of host I of hosts-up.sh, again after it was killed.
# usage: host-start.sh DIR I PREFIX [PRIVATE_FOLDER]
set -euo pipefail
DIR=$1 I=$2 P=$3 PRIVATE=${4-}
rm -f "$DIR/sshd-$I.pid"
if [ -n "$PRIVATE" ]; then
    nsenter --net="/run/netns/$P$I" unshare --mount --propagation private /bin/sh -c '
        keep=$(mktemp -d) && mount --bind "$2" "$keep" && mount -t tmpfs tmpfs "$1" &&
        case $2 in "$1"/*) mkdir -p "$2" && mount --bind "$keep" "$2" ;; esac &&
        exec /usr/sbin/sshd -f "$2/sshd-$3.conf" -E "$2/sshd-$3.log"' sh "$PRIVATE" "$DIR" "$I"
else
    nsenter --net="/run/netns/$P$I" /usr/sbin/sshd -f "$DIR/sshd-$I.conf" -E "$DIR/sshd-$I.log"
fi
# A minute: a busy machine may let it wait.
for _ in $(seq 3000); do
    [ -s "$DIR/sshd-$I.pid" ] && exit 0
    sleep 0.02
done
echo "host-start: sshd $I did not come up" >&2
exit 1
