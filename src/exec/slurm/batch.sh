#!/bin/sh
# One task of a job of doe: runs one execution of the shared folder ROOT by the wrapper. While it
# runs it shows that it lives (the controller may have forgotten it) and looks whether somebody
# wants something of it, so that neither cancelling nor looking needs a controller.
#
#   batch.sh ROOT NONCE WRAPPER     with SLURM_ARRAY_TASK_ID where there are several
#   batch.sh ROOT NONCE WRAPPER LINE COMPONENT      as a step of a heterogeneous job: together.sh
set -u
umask 077
root=$1 nonce=$2 wrapper=$3
line=${4:-${SLURM_ARRAY_TASK_ID:-0}}
index=${5:-$line}
token=$(sed -n "$((line + 1))p" "$root/arrays/$nonce")
[ -n "$token" ] || exit 64
dir=$root/runs/$token
# Begun by another job, taken back, or not wanted any more.
[ -d "$dir" ] && [ ! -s "$dir/pid" ] && [ ! -e "$dir/unwanted" ] || exit 0
read -r here </proc/sys/kernel/random/boot_id

# Whether the claim is the one that our wrapper made.
mine() {
    { read -r leader _ boot <"$dir/pid"; } 2>/dev/null && [ "$leader" = "$child" ] && [ "$boot" = "$here" ]
}

# The end of the job's time, or somebody else than doe wants it to end: what comes of the script
# is no outcome of it. That its record is there already says nothing: Slurm tells the script too.
interrupted() {
    mine || return
    # Not `:`, which takes the shell with it when the file cannot be made; an old one can be renamed.
    [ -e "$dir/cancel" ] || [ -e "$dir/over" ] || true >"$dir/interrupted" ||
        mv -f "$dir/beat" "$dir/interrupted"
    true >"$dir/unwanted"
    /bin/sh "$wrapper" end "$dir" 20000 &
}

# Says whether something listens on the port that is asked for.
tell() {
    { read -r question port <"$dir/ask"; } 2>/dev/null || return
    answer=no
    /bin/sh "$wrapper" listens "$port" && answer=yes
    printf '%s %s\n' "$question" "$answer" >"$dir/.told" && mv -f "$dir/.told" "$dir/told"
    rm -f "$dir/ask"
}

# Passes on that somebody still attends to it, by the clock of this node, in a file that has its
# blocks already. What stands there first is no sign: it may be old.
attend() {
    { read -r sign <"$attends"; } 2>/dev/null || return
    if [ "$sign" != "$signed" ]; then
        [ -z "$signed" ] || hear
        signed=$sign
    fi
}

hear() {
    read -r now _ </proc/uptime
    set -- "${now%.*}" "${now#*.}"
    printf '%-24s\n' $(($1 * 100 + ${2#0})) 1<>"$dir/lease.$here"
}

# Says why it does not begin, for whoever waits for it.
refuse() { # CODE TEXT
    printf 'doe: %s\n' "$2" >>"$dir/wrapper.log"
    printf '%s\n' "$1" >"$dir/failed"
    exit "$1"
}

# Whether a file is on this node what it was when it was put below the root. What is staged is read
# once, until the node starts anew or the file changes. A shared file system may show it late.
right() { # SHA256 PATH
    file=$root/$2 seen='' looks=''
    case $2 in
    blobs/*)
        seen=$root/seen/$here/${2#blobs/}
        looks=$(stat -c '%i %s %y %z' "$file" 2>/dev/null)
        known=''
        [ ! -f "$seen" ] || read -r known <"$seen"
        [ -z "$looks" ] || [ "$known" != "$looks" ] || return 0
        ;;
    esac
    for pause in 0 1 1 2 4; do
        sleep "$pause"
        [ -z "$seen" ] || looks=$(stat -c '%i %s %y %z' "$file" 2>/dev/null)
        found=$({ sha256sum <"$file"; } 2>/dev/null) && [ "${found%% *}" = "$1" ] || continue
        [ -z "$looks" ] || {
            mkdir -p "$root/seen/$here" && printf '%s\n' "$looks" >"$seen.$$" && mv -f "$seen.$$" "$seen"
        }
        return 0
    done
    return 1
}

# Before anything of it is used. Who refuses leaves the loop and the script.
command -v sha256sum >/dev/null || refuse 69 'the node has no `sha256sum`, which is needed to verify files'
sum=''
{ [ -f "$dir/staged" ] || sleep 8; } && while read -r sum name; do
    [ "$sum" != end ] || break
    right "$sum" "$name" || refuse 74 "$name is not on this node what it was when it was staged"
done <"$dir/staged"
[ "$sum" = end ] || refuse 74 'the list of what was staged is not whole on this node'

# In a file that is there before it begins: without one nobody could pass anything on, and it would
# be ended in the middle.
attends='' signed=''
[ ! -e "$dir/attends" ] || { read -r attends <"$dir/attends" && hear; } 2>>"$dir/wrapper.log" || {
    refuse 73 'could not write down that somebody attends to it'
}

# Whoever gives the environment of a job may give much: the wrapper starts from a clean one.
setsid /bin/sh "$wrapper" run "$dir" </dev/null >/dev/null 2>>"$dir/wrapper.log" &
child=$!
trap interrupted TERM
(
    trap '' TERM
    turn=0 heard='' place=''
    while kill -0 "$child" 2>/dev/null; do
        if [ -z "$place" ] && mine; then
            # Of several jobs for one token it is this one.
            place=1 turn=0
            printf '%s %s\n' "$nonce" "$index" >"$dir/.slurm" && mv -f "$dir/.slurm" "$dir/slurm"
        fi
        if [ -z "$place" ]; then
            turn=$((turn + 1))
            # The claim is a matter of a moment.
            if [ "$turn" -gt 50 ]; then sleep 1; else sleep 0.05 2>/dev/null || sleep 1; fi
            continue
        fi
        [ $((turn % 2)) = 1 ] || printf '%s\n' "$turn" >"$dir/beat"
        [ ! -e "$dir/ask" ] || tell
        [ -z "$attends" ] || attend
        if { read -r grace <"$dir/cancel"; } 2>/dev/null && [ "$grace" != "$heard" ]; then
            heard=$grace
            /bin/sh "$wrapper" end "$dir" "$grace" &
        fi
        turn=$((turn + 1))
        sleep 1
    done
) &
watch=$!
status=0
while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    status=$?
done
kill -KILL "$watch" 2>/dev/null
if mine; then
    # Killed, the wrapper left things behind. What would not go is not over.
    [ -e "$dir/exit" ] || /bin/sh "$wrapper" end "$dir" 5000 || exit 1
    true >"$dir/over"
    # For whoever reads what Slurm says of the job.
    code=$(sed -n 's/^code=//p' "$dir/exit" 2>/dev/null)
    exit "${code:-1}"
fi
[ "$status" = 0 ] || printf '%s\n' "$status" >"$dir/failed"
exit "$status"
