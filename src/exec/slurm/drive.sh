#!/bin/sh
# One driver of a build that goes on without its client: runs the build in its workspace. The next
# of the chain begins after any end but 0, so 0 is what every end says that the build itself chose.
#
#   drive.sh HERE NUMBER      HERE: the folder of the chain on the disk that the nodes share
set -u
umask 077
here=$1 number=$2
[ -f "$here/command" ] || exit 65
[ ! -e "$here/over" ] || exit 0
read -r host </proc/sys/kernel/hostname
node=${SLURMD_NODENAME:-$host}

put() {
    printf '%s\n' "$2" >"$here/.$1" && mv -f "$here/.$1" "$here/$1"
}

# The client left it in the workspace a moment before it submitted us.
mark=$(cat "$here/mark")
if [ ! -e "$mark" ]; then
    put "failed-$number" "node $node does not see the workspace: there is no $mark"
    exit 66
fi
# It comes from far and judges everything.
want='' doe='' seen=''
for pause in 0 1 1 2 4; do
    sleep "$pause"
    { read -r want doe <"$here/doe"; } 2>/dev/null && got=$({ sha256sum <"$doe"; } 2>/dev/null) &&
        [ "${got%% *}" = "$want" ] && seen=1 && break
done
[ -n "$seen" ] || {
    put "failed-$number" "node $node does not see the doe that was staged: $doe"
    exit 66
}
DOE_DRIVER=$here /bin/sh "$here/command" </dev/null >>"$here/log-$number" 2>&1 &
child=$!
put "begun-$number" "$child $(date +%s) $node $host"
wait "$child"
code=$?
case $code in
0 | 1 | 2 | 3 | 6 | 7 | 130)
    put over "$number $code"
    exit 0
    ;;
esac
# It was killed, the controller or the lock was not to be had, or it has a defect.
put "ended-$number" "$code"
exit "$code"
