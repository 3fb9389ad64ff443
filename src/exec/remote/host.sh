#!/bin/sh
# What doe does on a host that it reaches over a connection. Every command may be broken off and
# given again: what it leaves is whole or not there, and doing it twice does it once.
#
#   host.sh NONCE LEASE COMMAND ROOT [ARGUMENT...]
#
# LEASE names whoever attends to what runs here: the command is a sign of its life, in
# ROOT/leases/LEASE.BOOT, hundredths of a second since boot. `-` is somebody who only looks.
#
#   have ROOT                 reads `DIGEST SHA256 MODE` lines; prints those that are missing or damaged
#   put ROOT DIGEST SHA256 MODE   standard input becomes ROOT/blobs/DIGEST, once it was verified
#   link ROOT NAME            reads `FILE DIGEST` lines; makes ROOT/links/NAME with links to blobs
#   start ROOT TOKEN WRAPPER BYTES   standard input: lengths and a sum, job, env, script. Prints the claim
#   find ROOT TOKEN           prints the claim, once the token was begun
#   revoke ROOT TOKEN WRAPPER GRACE_MS   nobody will begin it any more; what runs is ended, its claim printed
#   status ROOT TOKEN WRAPPER, end ROOT TOKEN WRAPPER GRACE_MS   as the wrapper says
#   await ROOT WRAPPER LIMIT_CS   reads tokens; returns when one of them has ended, with their states
#   sign ROOT                 nothing but the sign of life; fails when it cannot be given
#   log ROOT TOKEN STREAM OFFSET, fetch ROOT FOLDER NAME, exists ROOT PATH, sockets ROOT
#   facts ROOT WRAPPER, open ROOT, discard ROOT TOKEN, try ROOT PROGRAM [ARGUMENT...]
#   web ROOT URL, tcp ROOT HOST PORT   exit 0 when it answers 200, accepts a connection
#   sums ROOT FOLDER          reads names; prints `ok SHA256 BYTES`, `missing`, `outside`, `odd` for each
#   send ROOT FOLDER          reads `URL`, `HEADER`, `NAME` lines; puts each file to its URL
#
# The answer stands between a line `doe-begin NONCE` and a last line `doe-end NONCE CODE`: what a
# login shell prints before is not taken for it, and half an answer is not taken for a whole one.
set -u
umask 077
LC_ALL=C
export LC_ALL

nonce=$1 lease=$2 command=$3 root=$4
shift 4
# A command may come twice, at one time and with one nonce.
own=$nonce-$$

fail() {
    printf 'doe: %s\n' "$2" >&2
    exit "$1"
}

sha256() {
    sum=$(sha256sum 2>/dev/null) || fail 69 'the host has no working `sha256sum`, which is needed to verify files'
    sum=${sum%% *}
}

# Whether process $1 lives and began at $2 ticks. A zombie is gone unless threads live on.
still() {
    pid=$1 began=$2
    { read -r line <"/proc/$pid/stat"; } 2>/dev/null || return 1
    # shellcheck disable=SC2086
    set -- ${line##*) }
    [ "${20}" = "$began" ] || return 1
    case $1 in Z | X | x) [ "${18}" -gt 1 ] ;; esac
}

# Sets $now to hundredths of a second since boot.
clock() {
    read -r now _ </proc/uptime
    set -- "${now%.*}" "${now#*.}"
    now=$(($1 * 100 + ${2#0}))
}

# Written over where it is there, which needs no room on the disk; made whole where it is not.
sign() {
    [ "$lease" != - ] || return 0
    file=$root/leases/$lease.$here
    if [ -s "$file" ]; then
        printf '%-19s\n' "$began_cs" 1<>"$file"
    else
        new=$file.$own
        mkdir -p "$root/leases" && printf '%-19s\n' "$began_cs" >"$new" && mv -f "$new" "$file"
    fi
}

have() {
    while read -r digest wanted mode; do
        file=$root/blobs/$digest
        if [ -f "$file" ]; then
            sha256 <"$file"
            if [ "$sum" = "$wanted" ]; then
                [ "$mode" != x ] || [ -x "$file" ] || chmod 500 "$file"
                continue
            fi
        fi
        printf '%s\n' "$digest"
    done
}

put() {
    digest=$1 wanted=$2 mode=$3
    mkdir -p "$root/blobs" || fail 73 'could not make the folder of blobs'
    new=$root/blobs/.new-$own
    cat >"$new" || {
        rm -f "$new"
        fail 73 'could not write it'
    }
    sha256 <"$new"
    if [ "$sum" != "$wanted" ]; then
        rm -f "$new"
        fail 65 'what arrived has another digest'
    fi
    if [ "$mode" = x ]; then chmod 500 "$new"; else chmod 400 "$new"; fi
    mv -f "$new" "$root/blobs/$digest" || fail 73 'could not put it in its place'
}

link() {
    dir=$root/links/$1
    mkdir -p "$dir" || fail 73 "could not make the folder $dir"
    while read -r name digest; do
        new=$dir/.new-$own
        ln -s "$root/blobs/$digest" "$new" && mv -f "$new" "$dir/$name" || fail 73 "could not link $name"
    done
}

# Removes what may hold secrets of the execution in $dir: nobody reads it any more.
forget() {
    rm -f "$dir/env" "$dir/payload" "$dir"/.new-* "$dir"/.env-*
}

# Lays what standard input holds, $1 bytes, into $dir. Fails with $why.
lay() {
    new=$dir/.new-$own
    why='could not write the script'
    cat >"$new" || return 73
    # The connection may have ended in the middle.
    why='the script arrived in part'
    [ "$(wc -c <"$new")" -eq "$1" ] || return 65
    why='the script is not what was sent'
    read -r head _ _ _ want <"$new" || return 65
    found=$(tail -c +$((head + 1)) "$new" | sha256sum) && [ "${found%% *}" = "$want" ] || return 65
    # The first one stays, whatever comes later.
    ln "$new" "$dir/payload" 2>/dev/null
    rm -f "$new"
    why='the script is not whole'
    read -r head job env script _ <"$dir/payload" || return 73
    why='could not write the script: the disk may be full'
    for part in job env script; do
        case $part in job) size=$job ;; env) size=$env ;; script) size=$script ;; esac
        tail -c +$((head + 1)) "$dir/payload" | head -c "$size" >"$dir/.$part-$own" &&
            [ "$(wc -c <"$dir/.$part-$own")" -eq "$size" ] &&
            mv -f "$dir/.$part-$own" "$dir/$part" || return 73
        head=$((head + size))
    done
}

start() {
    token=$1 wrapper=$2 bytes=$3
    dir=$root/runs/$token
    [ -s "$dir/pid" ] || mkdir -p "$dir" || fail 73 "could not make the folder $dir"
    code=0
    [ -s "$dir/pid" ] || lay "$bytes" || code=$?
    # Who has the token by now may be done with it, and have removed what we read.
    if [ ! -s "$dir/pid" ]; then
        if [ "$code" != 0 ]; then
            forget
            rm -f "$dir/.job-$own" "$dir/.script-$own"
            fail "$code" "$why"
        fi
        setsid /bin/sh "$wrapper" run "$dir" </dev/null >/dev/null 2>>"$dir/wrapper.log" &
        child=$!
        turns=0
        until [ -s "$dir/pid" ]; do
            if ! kill -0 "$child" 2>/dev/null && wait "$child"; then
                # It came second: the first is about to write its claim.
                child=$$
            elif ! kill -0 "$child" 2>/dev/null && [ ! -s "$dir/pid" ]; then
                cat "$dir/wrapper.log" >&2
                forget
                fail 70 'it did not begin'
            fi
            turns=$((turns + 1))
            if [ "$turns" -gt 1500 ]; then
                true >"$dir/unwanted"
                [ "$child" = $$ ] || kill -KILL "$child" 2>/dev/null
                forget
                fail 70 'it did not begin within 30 s'
            fi
            sleep 0.02 2>/dev/null || sleep 1
        done
    fi
    # Taken back meanwhile: nobody else removes what we wrote after that.
    claimed "$token" || forget
    cat "$dir/pid"
}

# Sets who runs the token $1; false when nobody has begun it, or somebody took it back.
claimed() {
    { read -r leader ticks boot <"$root/runs/$1/pid"; } 2>/dev/null && [ "$boot" != revoked ]
}

# Who makes the claim has the token: made here, no wrapper on its way will run the script.
revoke() {
    token=$1 wrapper=$2 grace=$3
    dir=$root/runs/$token
    mkdir -p "$dir" || fail 73 "could not make the folder $dir"
    set -C
    made=''
    # Made is enough: on a full disk it stays empty, and ours.
    { { made=1 && printf '0 0 revoked\n'; } >"$dir/pid"; } 2>/dev/null
    set +C
    if [ -n "$made" ]; then
        forget
        return 0
    fi
    # Whoever has just made the claim is about to write it, and begins the script: on a busy host
    # it may be held back for a while before that.
    clock
    limit=$((now + 3000))
    until [ -s "$dir/pid" ] || [ ! -e "$dir/pid" ] || [ "$now" -ge "$limit" ]; do
        sleep 0.02 2>/dev/null || sleep 1
        clock
    done
    claimed "$token" && [ "$boot" = "$here" ] || return 0
    still "$leader" "$ticks" || carried | grep -qxF "DOE_TOKEN=$token" || return 0
    /bin/sh "$wrapper" end "$dir" "$grace" || fail 71 'something of it would not go'
    printf '%s %s %s\n' "$leader" "$ticks" "$boot"
}

# The tokens that living processes carry, as lines of their environment.
carried() {
    cat /proc/[0-9]*/environ 2>/dev/null | tr '\0' '\n' | grep '^DOE_TOKEN=' | sort -u
}

# Prints the state of what has ended among $tokens. False when nothing has.
ended() {
    found=1
    for token in $tokens; do
        dir=$root/runs/$token
        if [ ! -f "$dir/exit" ]; then
            # Where hosts share files, a number of another machine says nothing here.
            { read -r leader ticks boot <"$dir/pid"; } 2>/dev/null &&
                [ "$boot" = "$here" ] && still "$leader" "$ticks" && continue
        fi
        found=0
        clock
        printf 'token %s %s\n' "$token" $((now - began_cs))
        /bin/sh "$wrapper" status "$dir"
    done
    return $found
}

await() {
    wrapper=$1 limit=$2
    tokens=$(cat)
    waited=0 pause=2
    until ended; do
        [ "$waited" -lt "$limit" ] || return 0
        case $pause in ?) span=0.0$pause ;; *) span=0.$pause ;; esac
        sleep "$span" 2>/dev/null || sleep 1
        waited=$((waited + pause))
        [ "$pause" -ge 20 ] || pause=$((pause + 2))
    done
}

log() {
    file=$root/runs/$1/$2
    if [ -f "$file" ]; then
        tail -c +$(($3 + 1)) "$file"
    elif [ ! -d "$root/runs/$1" ]; then
        fail 66 "the folder $root/runs/$1 is gone"
    fi
}

fetch() {
    from=$(readlink -f -- "$1") && [ -d "$from" ] || fail 66 'missing'
    file=$(readlink -f -- "$from/$2") && [ -e "$file" ] || fail 66 'missing'
    case $file in "${from%/}"/*) ;; *) fail 67 'outside' ;; esac
    [ -f "$file" ] || fail 68 'no file'
    sha256 <"$file"
    printf '%s\n' "$sum"
    cat <"$file"
}

# Sets $file to the file $2 of the folder $1, or $found to what else it is.
inside() {
    file='' found=missing
    from=$(readlink -f -- "$1") && [ -d "$from" ] || return
    file=$(readlink -f -- "$from/$2") && [ -e "$file" ] || return
    case $file in "${from%/}"/*) found=ok ;; *) found=outside && return ;; esac
    [ -f "$file" ] || found=odd
}

sums() {
    while IFS= read -r name; do
        inside "$1" "$name"
        if [ "$found" = ok ]; then
            sha256 <"$file"
            found="ok $sum $(($(wc -c <"$file")))"
        fi
        printf '%s\n' "$found"
    done
}

# A file that has changed since its digest was told is refused by who receives it.
send() {
    while IFS= read -r url && IFS= read -r header && IFS= read -r name; do
        inside "$1" "$name"
        [ "$found" = ok ] || fail 66 "$name is gone"
        # A link is nobody's argument: everybody on the host could read it there.
        curl -fsSg --retry 3 --connect-timeout 10 -o /dev/null -T "$file" -K - <<link || fail 74 "could not send $name"
url = "$url"
header = "$header"
link
    done
}

tcp() {
    if command -v bash >/dev/null && command -v timeout >/dev/null; then
        timeout 2 bash -c 'exec 3<>"/dev/tcp/$1/$2"' doe "$1" "$2" 2>/dev/null
    else
        told=$(curl -s -o /dev/null -w '%{time_connect}' --max-time 2 "telnet://$1:$2" </dev/null)
        case $told in '' | 0.000000) return 1 ;; esac
    fi
}

web() {
    [ "$(curl -s -o /dev/null -w '%{http_code}' --max-time "$2" --noproxy '*' -- "$1")" = 200 ]
}

# Executions without an exit record whose leader lives or whose token is still carried.
open() {
    tokens=$(carried)
    for dir in "$root"/runs/*; do
        [ ! -f "$dir/exit" ] || continue
        { read -r leader ticks boot <"$dir/pid"; } 2>/dev/null && [ "$boot" = "$here" ] || continue
        token=${dir##*/}
        if still "$leader" "$ticks" || printf '%s\n' "$tokens" | grep -qxF "DOE_TOKEN=$token"; then
            printf '%s %s %s %s\n' "$token" "$leader" "$ticks" "$boot"
        fi
    done
}

# What runs keeps its folder, and with that its claim.
discard() {
    token=$1
    if [ ! -f "$root/runs/$token/exit" ] && claimed "$token" && [ "$boot" = "$here" ] &&
        { still "$leader" "$ticks" || carried | grep -qxF "DOE_TOKEN=$token"; }; then
        fail 71 'it still runs'
    fi
    rm -rf -- "$root/runs/$token"
}

unix_ms() {
    ms=$(date +%s%3N)
    case $ms in '' | *[!0-9]*) ms=$(date +%s)000 ;; esac
    printf 'unix_ms=%s\n' "$ms"
}

sockets() {
    cat /proc/sys/net/ipv4/ip_local_port_range
    cat /proc/net/tcp /proc/net/tcp6 2>/dev/null
    return 0
}

read -r here </proc/sys/kernel/random/boot_id
clock
began_cs=$now
sign 2>/dev/null
signed=$?
printf 'doe-begin %s\n' "$nonce"
trap 'printf "\ndoe-end %s %s\n" "$nonce" "$?"' EXIT
case $command in
have) have ;;
put) put "$@" ;;
link) link "$@" ;;
start) start "$@" ;;
find) ! claimed "$1" || printf '%s %s %s\n' "$leader" "$ticks" "$boot" ;;
revoke) revoke "$@" ;;
status) /bin/sh "$2" status "$root/runs/$1" ;;
end) /bin/sh "$2" end "$root/runs/$1" "$3" ;;
await) await "$@" ;;
log) log "$@" ;;
fetch) fetch "$@" ;;
exists) [ -e "$1" ] || exit 1 ;;
sockets) sockets ;;
facts)
    unix_ms
    /bin/sh "$1" facts
    ;;
open) open ;;
sign) [ "$signed" = 0 ] || fail 73 "could not write below $root/leases: the disk may be full" ;;
try) "$@" </dev/null ;;
web) web "$1" "$2" ;;
tcp) tcp "$1" "$2" ;;
sums) sums "$1" ;;
send) send "$1" ;;
discard) discard "$@" ;;
*) fail 64 "unknown command $command" ;;
esac
