#!/bin/sh
# Runs one script of doe on a host; the same file for every executor. It needs a POSIX shell, the
# usual small tools and Linux's /proc, and nothing else.
#
#   wrapper.sh run DIR            runs DIR/script. The caller made this process a session leader.
#   wrapper.sh end DIR GRACE_MS   ends the whole tree: TERM, after the grace KILL. 0: nothing is left.
#   wrapper.sh status DIR         prints `exited AGE_CS` and the record, `running PID TICKS`,
#                                 `lost WHY` (and the record, where there is one that does not
#                                 count) or `absent` (nobody has started it yet).
#   wrapper.sh listens PORT       0: something listens on the TCP port, 1: nothing does.
#   wrapper.sh facts              prints facts of the host as `name=value` lines.
#
# DIR holds `job` (settings), `env` and `script`; this program adds `pid` (who runs it; whoever
# makes that file has the token), `helpers`, `stdout`, `stderr`, `wrapper.log` and at the
# very end `exit`. A process belongs to the tree when it is in our session, was left to us by its
# parent, or carries our token in its environment. Nothing is ever found by its name.
set -u
umask 077
LC_ALL=C
export LC_ALL
newline='
'

fail() {
    printf 'doe: %s\n' "$2" >&2
    exit "$1"
}

# ---- processes ---------------------------------------------------------------------------------

# Takes one line of /proc/PID/stat apart. The command's name may hold spaces and brackets.
parse_stat() {
    pid=${1%% *}
    # shellcheck disable=SC2086
    set -- ${1##*) }
    state=$1 parent=$2 session=$4 threads=${18} ticks=${20}
}

# Reads the state of process $1; false when it is gone. A zombie is gone unless threads live on.
stat_of() {
    { read -r line <"/proc/$1/stat"; } 2>/dev/null || return 1
    parse_stat "$line"
    lives
}

lives() {
    case $state in
    Z | X | x) [ "$threads" -gt 1 ] ;;
    esac
}

# Whether the process `pid:ticks` lives and is still that one.
still() {
    stat_of "${1%:*}" && [ "$ticks" = "${1#*:}" ]
}

# Sets $now to hundredths of a second since boot.
clock() {
    read -r now _ </proc/uptime
    set -- "${now%.*}" "${now#*.}"
    now=$(($1 * 100 + ${2#0}))
}

# Sets $span to $1 hundredths of a second as `sleep` wants them.
span_of() {
    case $(($1 % 100)) in
    ?) span=$(($1 / 100)).0$(($1 % 100)) ;;
    *) span=$(($1 / 100)).$(($1 % 100)) ;;
    esac
}

# Waits $1 hundredths of a second; a whole second where `sleep` knows no fractions.
nap() {
    span_of "$1"
    sleep "$span" 2>/dev/null || sleep 1
}

# Sets $tree to `pid:ticks` of what lives of the tree of $leader, but for the leader, the
# $helpers and what these run.
scan() {
    tree='' young='' seen=''
    known=$ticks_of_leader
    if ! still "$leader:$ticks_of_leader"; then
        # The number may belong to a stranger by now, and so may the session.
        known=''
    fi
    all=$(cat /proc/[0-9]*/stat 2>/dev/null)
    set -f
    IFS=$newline
    # shellcheck disable=SC2086
    set -- $all
    unset IFS
    for line; do
        parse_stat "$line"
        lives || continue
        case $pid in "$leader" | "$$") continue ;; esac
        case " $helpers " in *" $pid "* | *" $parent "*) continue ;; esac
        if [ -n "$known" ] && { [ "$session" = "$leader" ] || [ "$parent" = "$leader" ]; }; then
            seen="$seen $pid:$ticks"
        elif [ "$ticks" -ge "$ticks_of_leader" ]; then
            young="$young /proc/$pid/environ"
        fi
    done
    set +f
    for member in $seen; do
        # The `cat` above saw itself.
        if still "$member"; then tree="$tree $member"; fi
    done
    [ -n "$young" ] || return 0
    # shellcheck disable=SC2046,SC2086
    set -- $(grep -lsF "DOE_TOKEN=$token" $young)
    for file; do
        { tr '\0' '\n' <"$file" | grep -qxF "DOE_TOKEN=$token"; } 2>/dev/null || continue
        pid=${file#/proc/}
        stat_of "${pid%/environ}" && tree="$tree $pid:$ticks"
    done
}

# Sends TERM to those of the $tree that are there at the first look, later only to the script
# itself: what it starts to tidy up shall be able to. Once each, for to some programs a second
# TERM means to leave at once. The script comes first: it shall know when its children die.
ask_tree() {
    first=$told
    for turn in script others; do
        for member in $tree; do
            case " $told " in *" $member "*) continue ;; esac
            still "$member" || continue
            if [ "$parent" != "$leader" ] && [ "$turn$first" != others ]; then continue; fi
            told="$told $member"
            kill -TERM "$pid" 2>/dev/null && kill -CONT "$pid" 2>/dev/null
        done
    done
}

# Sends KILL to those of the $tree that are still who they were.
kill_tree() {
    for member in $tree; do
        still "$member" && kill -KILL "$pid" 2>/dev/null
    done
}

# Ends the $tree: TERM, after $1 hundredths of a second KILL. False when something would not go.
end_tree() {
    clock
    hard=$((now + $1)) told='' pause=1
    while scan && [ -n "$tree" ]; do
        clock
        if [ "$now" -lt "$hard" ]; then
            ask_tree
        else
            kill_tree
            [ "$now" -lt $((hard + 1000)) ] || return 1
        fi
        nap "$pause"
        [ "$pause" -ge 5 ] || pause=$((pause + 1))
    done
}

# Sets $found to the children of process $1, where the kernel tells.
children_of() {
    found=''
    { read -r found <"/proc/$1/task/$1/children"; } 2>/dev/null
    [ -r "/proc/$1/task/$1/children" ]
}

# ---- run ---------------------------------------------------------------------------------------

# Copies the pipe $1 to the log $2: the first bytes at once, and of what is too much only the end.
keep() {
    trap '' XFSZ
    {
        # The size limit stops this dd; what it had read of its last block is lost, and said so.
        if (
            ulimit -f "$head_blocks" 2>/dev/null || :
            exec dd bs=4096 2>/dev/null
        ) >>"$2"; then return; fi
        dd bs=65536 2>"$2.cut" | tail -c "$tail_bytes" >"$2.tail"
        # On a full disk the above may fail; the script shall not feel that.
        cat >/dev/null
    } <"$1"
    bytes=0
    while read -r count word _; do
        case $word in bytes) bytes=$count ;; esac
    done <"$2.cut"
    {
        if [ "$bytes" -gt "$tail_bytes" ]; then bytes=$((bytes - tail_bytes)); else bytes=0; fi
        printf '\n[doe: %s bytes or a few more were cut here: the log is limited]\n' "$bytes"
        cat "$2.tail"
    } >>"$2"
    rm -f "$2.cut" "$2.tail"
}

# Sets $signed to when whoever wants this gave the last sign of life, unless a later one is known.
read_sign() {
    { read -r sign _ <"$lease.$boot"; } 2>/dev/null || return 0
    case $sign in '' | 0?* | *[!0-9]*) return 0 ;; esac
    # One from the future was torn while it was written.
    if [ "$sign" -gt "$signed" ] && [ "$sign" -le "$now" ]; then signed=$sign; fi
}

# Whether nobody attends to this any more: for good, once that is said. Who comes back gives a
# sign before it looks; so either we see the sign, or it sees what stands in the file.
is_forsaken() {
    printf 2 1<>"$dir/.late"
    clock
    read_sign
    if [ "$now" -lt $((signed + survive_cs)) ]; then
        printf 0 1<>"$dir/.late"
        return 1
    fi
    printf 3 1<>"$dir/.late"
}

# Ends the tree when the time is up, when nobody has given a sign of life for too long, or when all
# of it was stopped for a while. Marks it in a file that exists, so a full disk does not matter.
watch() {
    read -r me _ </proc/self/stat
    clock
    begun=$now signed=$now missed='' last=$now
    while clock; do
        # The host slept, or somebody stopped its processes: what was measured has a gap.
        if [ $((now - last)) -gt "$gap_cs" ]; then
            printf 4 1<>"$dir/.late"
            break
        fi
        last=$now
        limit=$((now + gap_cs / 5))
        if [ "$timeout_cs" -gt 0 ]; then
            over=$((begun + timeout_cs))
            if [ "$now" -ge "$over" ]; then
                printf 1 1<>"$dir/.late"
                break
            fi
            [ "$over" -ge "$limit" ] || limit=$over
        fi
        if [ "$survive_cs" -gt 0 ]; then
            read_sign
            alone=$((signed + survive_cs))
            if [ "$now" -lt "$alone" ]; then
                missed=''
            elif [ -n "$missed" ] && [ "$now" -ge "$missed" ] && is_forsaken; then
                break
            else
                # Once more after a while: the host may have slept, and whoever attends to this too.
                [ -n "$missed" ] && [ "$now" -lt "$missed" ] || missed=$((now + survive_cs / 8 + 100))
                alone=$missed
            fi
            [ "$alone" -ge "$limit" ] || limit=$alone
        fi
        span_of $((limit - now))
        (
            trap - TERM
            exec sleep "$span"
        ) 2>/dev/null
        case $? in 1) sleep 1 ;; esac
    done
    # Not `:`, which takes the shell with it when the file cannot be made.
    true >"$dir/unwanted"
    helpers="$helpers $me"
    end_tree "$grace_cs"
    # It is none of the tree, and whoever stopped it is ended: it has to say how this went.
    kill -CONT "$leader" 2>/dev/null
}

# Waits until the watcher sleeps or has decided: when all of us go on after a stop it wakes up as the
# script ends, and is about to say so.
let_it_look() {
    turns=0
    while children_of "$watcher" && [ -z "$found" ] && [ "$turns" -lt 200 ] && stat_of "$watcher"; do
        nap 1
        turns=$((turns + 1))
    done
}

# Whether the watcher sleeps for longer than it meant to: all of us were stopped, and go on just now.
was_stopped() {
    children_of "$watcher"
    clock
    for pid in $found; do
        { read -r line <"/proc/$pid/stat"; } 2>/dev/null || continue
        parse_stat "$line"
        [ $((now - ticks)) -le "$gap_cs" ] || return 0
    done
    return 1
}

stop_watch() {
    children_of "$watcher"
    kill -KILL "$watcher" 2>/dev/null
    for pid in $found; do kill -KILL "$pid" 2>/dev/null; done
    wait "$watcher" 2>/dev/null
}

# Whether the script left nothing behind, found without a scan: where orphans fall to us, we know.
left_nothing() {
    [ "$adopts" = 1 ] && children_of $$ || return 1
    for pid in $found; do
        case " $helpers " in *" $pid "*) continue ;; esac
        stat_of "$pid" && return 1
    done
    return 0
}

# Ends the helper $1, if it still lives, and says so in its log $2.
give_up() {
    stat_of "$1" || return
    children_of "$1"
    # shellcheck disable=SC2086
    kill -KILL "$1" $found 2>/dev/null
    printf '\n[doe: cut here: a process that got away still holds this log]\n' >>"$2"
    rm -f "$2.cut" "$2.tail"
}

# Removes what holds secrets: mostly it is gone, for it removes itself when it is read. A start that
# was broken off, or came second, may have left more of it.
forget() {
    [ -z "$private" ] || rm -f "$dir/env" "$dir/payload" "$dir"/.new-* "$dir"/.env-*
}

# Waits until the logs are written. Who escaped us may hold a pipe for ever: not longer than 2 s.
drain() {
    clock
    limit=$((now + 200)) pause=0
    while stat_of "$out" || stat_of "$err"; do
        clock
        if [ "$now" -ge "$limit" ]; then
            give_up "$out" "$dir/stdout"
            give_up "$err" "$dir/stderr"
            return
        fi
        # They mostly are at their very end: no need to start a `sleep` for that.
        [ "$pause" -lt 10 ] || nap 1
        pause=$((pause + 1))
    done
}

# Sets $ms to Unix milliseconds (whole seconds where `date` knows nothing finer).
unix_ms() {
    ms=$(date +%s%3N)
    case $ms in '' | *[!0-9]*) ms=$(date +%s)000 ;; esac
}

# Whoever started us in the background of a shell made us ignore INT and QUIT; the script shall
# not, or `kill -INT` and its like would fail in it. Sets $reset to the command that undoes it.
undo_ignored() {
    reset=''
    while read -r key value; do
        case $key in SigIgn:) break ;; esac
    done </proc/$$/status
    case $value in
    *[!0189]) env --default-signal=INT,QUIT true 2>/dev/null && reset="$(command -v env) --default-signal=INT,QUIT" ;;
    esac
}

run() {
    case $dir in /*) ;; *) fail 64 "expected an absolute folder, not \`$dir\`" ;; esac
    exec </dev/null 2>>"$dir/wrapper.log" >&2
    token='' work='' timeout_cs=0 grace_cs=0 cap_bytes=0 adopts=0 survive_cs=0 lease='' private=''
    # A stop of this length is told from a busy host, whose watcher may come late to its turns.
    gap_cs=2500
    # shellcheck source=/dev/null
    . "$dir/job"
    # Who gives us the token gives us this environment too, and saves us the way round.
    [ "${DOE_TOKEN-}" = "$token" ] ||
        exec env -i "PATH=${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}" \
            "HOME=${HOME:-/}" LANG=C.UTF-8 "DOE_TOKEN=$token" /bin/sh "$0" run "$dir"
    stat_of $$
    leader=$$ ticks_of_leader=$ticks
    [ "$session" = $$ ] || fail 64 'not a session leader: start the wrapper with setsid'
    undo_ignored
    # Ignored and not trapped: a trap would break off whatever we are reading.
    trap '' HUP INT QUIT TERM USR1 USR2 ALRM
    [ -d "$work" ] || mkdir -p -- "$work" || fail 73 "could not make the working folder \`$work\`"

    # Made once and never over another: it claims the token and says who has it.
    read -r boot </proc/sys/kernel/random/boot_id
    claimed=''
    set -C
    {
        { if printf '%s %s %s\n' $$ "$ticks" "$boot"; then claimed=1; else claimed=0; fi; } >"$dir/pid"
    } 2>/dev/null
    set +C
    case $claimed in
    0) rm -f "$dir/pid" && fail 73 'the disk is full' ;;
    '') if [ -e "$dir/pid" ]; then exit 0; else fail 73 "could not write into \`$dir\`"; fi ;;
    esac

    # These files get their blocks now, so that the end can be written down on a full disk.
    printf 0 >"$dir/.late"
    printf '%255s\n' '' >"$dir/.exit"
    mkfifo "$dir/.out" "$dir/.err" || fail 73 'could not make the pipes of the logs'
    tail_bytes=$((cap_bytes / 4))
    head_blocks=$(((cap_bytes - tail_bytes - 256) / 512))
    helpers=''
    keep "$dir/.out" "$dir/stdout" &
    out=$!
    keep "$dir/.err" "$dir/stderr" &
    err=$!
    helpers="$out $err"
    watcher=''
    unix_ms
    clock
    started=$ms started_cs=$now
    if [ $((timeout_cs + survive_cs)) -gt 0 ]; then
        watch &
        watcher=$!
        helpers="$helpers $watcher"
    fi
    # Whoever ends us leaves `unwanted`, and signals nobody before this file is there.
    printf '%s\n' "$helpers" >"$dir/helpers"

    # In the foreground: what a shell runs in the background ignores INT.
    (
        trap - INT QUIT TERM USR1 USR2 ALRM
        # Looked for after that: a TERM from before it went unheard.
        [ ! -e "$dir/unwanted" ] || exit 143
        cd -- "$work" || exit 126
        # shellcheck disable=SC2086
        set -- $reset /bin/sh -eu "$dir/script"
        unset LC_ALL
        # From here on no variable of ours is used: it may have been replaced.
        # shellcheck source=/dev/null
        . "$dir/env"
        [ -z "${TMPDIR-}" ] || [ -d "$TMPDIR" ] || mkdir -p -- "$TMPDIR"
        exec "$@"
    ) >"$dir/.out" 2>"$dir/.err"
    status=$?
    # What the script and all it waited for have used of the processors: of a whole tree only the
    # shell that was its parent knows, and only in a shell that does not fork to ask. With `command`,
    # for a special builtin whose file cannot be made takes the whole shell with it.
    cpu_user='' cpu_system=''
    { command times >"$dir/.times"; } 2>/dev/null &&
        { read -r cpu_user && read -r cpu_user cpu_system; } <"$dir/.times"

    timed_out=0
    if [ -n "$watcher" ]; then
        let_it_look
        read -r late <"$dir/.late"
        case $late in
        1) timed_out=1 && wait "$watcher" ;;
        3 | 4) wait "$watcher" ;;
        *)
            if was_stopped; then printf 4 1<>"$dir/.late"; fi
            stop_watch
            ;;
        esac
    fi
    left_nothing || end_tree "$grace_cs"
    drain
    unix_ms
    clock
    # The host's clock may have been set meanwhile; the other one only goes on.
    elapsed=$(((now - started_cs) * 10))
    case $((ms - started - elapsed)) in
    -??? | -?? | -? | ? | ?? | ???) ;;
    *) started=$((ms - elapsed)) ;;
    esac

    # A shell cannot tell `exit 143` from a death by signal 15. Both are that signal here, which
    # is also what a script ends with when a command of it was killed.
    code=$status signal=''
    if [ "$status" -gt 128 ] && [ "$status" -le 192 ]; then code='' signal=$((status - 128)); fi
    rm -f "$dir/.out" "$dir/.err" "$dir/.times"
    forget
    printf 'code=%s\nsignal=%s\ntimed_out=%s\nstarted_ms=%s\nended_ms=%s\nended_cs=%s\ncpu_user=%s\ncpu_system=%s\nend\n' \
        "$code" "$signal" "$timed_out" "$started" "$ms" "$now" "$cpu_user" "$cpu_system" 1<>"$dir/.exit" &&
        mv "$dir/.exit" "$dir/exit"
}

# ---- the other commands ------------------------------------------------------------------------

# Sets who runs DIR; false when nobody has claimed it.
read_claim() {
    { read -r leader ticks_of_leader boot_of_leader <"$dir/pid"; } 2>/dev/null
}

# Sets $late to what the watcher has marked.
read_late() {
    late=0
    { read -r late <"$dir/.late"; } 2>/dev/null
    return 0
}

# Says why it was ended, where that is no outcome of it.
decided() {
    case $late in
    3) echo 'lost nobody attended to it for longer than it may survive, so it was ended' ;;
    4) echo 'lost its host slept or all of it was stopped in the middle, so it was ended' ;;
    *) return 1 ;;
    esac
}

# Prints how long ago it ended, where the host was not restarted since.
age() {
    [ "$boot" = "$boot_of_leader" ] || return 0
    while IFS='=' read -r key value; do
        case $key in
        ended_cs) clock && echo $((now - value)) ;;
        end) break ;;
        esac
    done <"$dir/exit"
}

status() {
    read_claim || {
        echo absent
        return
    }
    read -r boot </proc/sys/kernel/random/boot_id
    alive=''
    if [ "$boot" = "$boot_of_leader" ] && still "$leader:$ticks_of_leader"; then
        alive=1
    fi
    # Looked for after the process: a record that comes in between is seen.
    if [ -f "$dir/exit" ]; then
        read_late
        decided || echo "exited $(age)"
        cat "$dir/exit"
    elif [ -n "$alive" ]; then
        # Being thought about takes a moment; what was decided does not run any more.
        turns=0
        while read_late && [ "$late" = 2 ] && [ "$turns" -lt 500 ]; do
            turns=$((turns + 1))
            nap 1
        done
        decided || echo "running $leader $ticks_of_leader"
    elif [ "$boot" != "$boot_of_leader" ]; then
        echo 'lost the host was rebooted'
    else
        echo "lost process $leader is gone and left no exit record"
    fi
}

end() {
    read_claim || return 0
    read -r boot </proc/sys/kernel/random/boot_id
    [ "$boot" = "$boot_of_leader" ] || return 0
    token='' private=''
    # shellcheck source=/dev/null
    . "$dir/job"
    helpers=''
    true >"$dir/unwanted"
    clock
    limit=$((now + 2000))
    while still "$leader:$ticks_of_leader"; do
        { read -r helpers <"$dir/helpers"; } 2>/dev/null && break
        clock
        [ "$now" -lt "$limit" ] || break
        nap 1
    done
    end_tree $(($1 / 10)) || return 1
    # The leader now writes its record; it has 5 s for that.
    clock
    limit=$((now + 500))
    while still "$leader:$ticks_of_leader"; do
        clock
        [ "$now" -lt "$limit" ] || break
        nap 2
    done
    if still "$leader:$ticks_of_leader"; then kill -KILL "$leader"; fi
    forget
    helpers=''
    end_tree 0
}

facts() {
    printf 'kernel=%s\nhostname=%s\narch=%s\n' "$(uname -r)" "$(uname -n)" "$(uname -m)"
    printf 'cpu_count=%s\n' "$(getconf _NPROCESSORS_ONLN 2>/dev/null || grep -c '^processor' /proc/cpuinfo)"
    while read -r key value _; do
        case $key in MemTotal:) printf 'memory_mib=%s\n' $((value / 1024)) ;; esac
    done </proc/meminfo
    (
        PRETTY_NAME=''
        # shellcheck source=/dev/null
        [ ! -r /etc/os-release ] || . /etc/os-release
        printf 'os=%s\n' "${PRETTY_NAME:-unknown}"
    )
    read -r boot </proc/sys/kernel/random/boot_id
    printf 'boot_id=%s\n' "$boot"
}

listens() {
    grep -qs ":$(printf '%04X' "$1") [0-9A-F]*:0000 0A " /proc/net/tcp /proc/net/tcp6
}

dir=${2-}
case ${1-} in
run) run ;;
status) status ;;
end) end "${3:-10000}" ;;
listens) listens "$2" ;;
facts) facts ;;
*) fail 64 'expected run, end, status, listens or facts' ;;
esac
