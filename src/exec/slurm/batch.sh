#!/bin/sh
# One task of a job of doe: runs one execution of the shared folder ROOT by the wrapper. While it
# runs it shows that it lives (the controller may have forgotten it) and looks whether somebody
# wants it to end (so that this needs no controller either).
#
#   batch.sh ROOT NONCE WRAPPER     with SLURM_ARRAY_TASK_ID
set -u
umask 077
root=$1 nonce=$2 wrapper=$3
token=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$root/arrays/$nonce")
[ -n "$token" ] || exit 64
dir=$root/runs/$token
[ ! -e "$dir/unwanted" ] || exit 0

# Whoever gives the environment of a job may give much: the wrapper starts from a clean one.
setsid /bin/sh "$wrapper" run "$dir" </dev/null >/dev/null 2>>"$dir/wrapper.log" &
child=$!
(
    trap '' TERM
    beat=0
    while :; do
        beat=$((beat + 1))
        printf '%s\n' "$beat" >"$dir/.beat" && mv -f "$dir/.beat" "$dir/beat"
        if { read -r grace <"$dir/cancel"; } 2>/dev/null; then
            /bin/sh "$wrapper" end "$dir" "$grace"
        fi
        sleep 1
    done
) &
watch=$!
# The end of the job's time, or its cancellation: there is KillWait left for the script.
trap ': >"$dir/unwanted"; /bin/sh "$wrapper" end "$dir" 20000 &' TERM
status=0
while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    status=$?
done
kill -KILL "$watch" 2>/dev/null
exit "$status"
