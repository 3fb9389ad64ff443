#!/bin/sh
# The job of several that belong together: begins each of them on its node, as a step of its
# component, and lives until the last one has ended, for their nodes go with it.
#
#   together.sh ROOT NONCE WRAPPER BATCH COMPONENT...       a COMPONENT for each line of arrays/NONCE
set -u
umask 077
root=$1 nonce=$2 wrapper=$3 batch=$4
shift 4
# A step that is told how many CPUs it has gets the same ones as the other steps of its component;
# one that is not has all of them.
unset SLURM_CPUS_PER_TASK SRUN_CPUS_PER_TASK SLURM_TRES_PER_TASK
# It is asked to end as its steps are, and goes when they have gone.
trap : TERM

# One of them. Its task says all that there is to say, unless it never began or was killed; that
# another job has begun it, or that nobody wants it, is no news.
member() {
    dir=$root/runs/$(sed -n "$(($1 + 1))p" "$root/arrays/$nonce")
    said=$dir/.srun-$SLURM_JOB_ID
    srun --het-group="$2" --overlap --nodes=1 --ntasks=1 --mpi=none \
        --cpu-bind=none --kill-on-bad-exit=0 --wait=0 --input=none --output=none --error=none \
        --chdir=/ --export=ALL \
        /bin/sh "$batch" "$root" "$nonce" "$wrapper" "$1" "$2" >"$said" 2>&1
    code=$?
    # What its node wrote is seen from here when the folder is seen to have changed.
    mv "$said" "$said.read"
    if [ "$code" != 0 ] && [ ! -e "$dir/over" ] && [ ! -e "$dir/failed" ]; then
        if [ -s "$dir/pid" ]; then
            true >"$dir/gone"
        elif [ ! -e "$dir/unwanted" ]; then
            cat "$said.read" >>"$dir/wrapper.log"
            printf '%s\n' "$code" >"$dir/failed"
        fi
    fi
    rm -f "$said.read"
}

line=0 children=''
for component; do
    member "$line" "$component" &
    children="$children $!"
    line=$((line + 1))
done
for child in $children; do
    while kill -0 "$child" 2>/dev/null; do
        wait "$child"
    done
done
