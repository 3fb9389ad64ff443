#!/bin/bash
# N "hosts" on this machine, each a network namespace with an sshd of its own: PREFIX1..PREFIXn at
# NET.1..NET.n, this machine at NET.254, all on one bridge. Keys and an ssh_config are under DIR.
#
# usage: hosts-up.sh DIR N PREFIX NET [PRIVATE_FOLDER]
#
# PREFIX has at most 8 letters (interfaces have short names). With PRIVATE_FOLDER every host sees an
# empty folder of its own in its place, as hosts do that share no files; only DIR is seen by all.
# DIR/bin is the first folder on the hosts' search path.
# Afterwards: ssh -F DIR/ssh_config PREFIX1 hostname. A link is cut by `ip link set v-PREFIX1 down`.
set -euo pipefail
DIR=$1 N=$2 P=$3 NET=$4 PRIVATE=${5-}
for tool in ip nsenter unshare sshd ssh ssh-keygen; do
    PATH=$PATH:/usr/sbin command -v "$tool" >/dev/null ||
        { echo "hosts-up: \`$tool\` is missing: run tests/rigs/install.sh" >&2; exit 3; }
done
[ "$(id -u)" = 0 ] || { echo 'hosts-up: network namespaces need root' >&2; exit 3; }
mkdir -p "$DIR/bin" /run/sshd
chmod 700 "$DIR"
for key in host id jump; do [ -f "$DIR/$key" ] || ssh-keygen -q -t ed25519 -N '' -f "$DIR/$key"; done
cp "$DIR/id.pub" "$DIR/authorized_keys"
: >"$DIR/ssh_config"
: >"$DIR/known_hosts"
ip link add "br-$P" type bridge
ip addr add "$NET.254/24" dev "br-$P"
ip link set "br-$P" up
for i in $(seq 1 "$N"); do
    ip netns add "$P$i"
    ip link add "v-$P$i" type veth peer name eth0 netns "$P$i"
    ip link set "v-$P$i" master "br-$P" up
    ip -n "$P$i" addr add "$NET.$i/24" dev eth0
    ip -n "$P$i" link set eth0 up
    ip -n "$P$i" link set lo up
    cat >"$DIR/sshd-$i.conf" <<C
ListenAddress $NET.$i:22
HostKey $DIR/host
PidFile $DIR/sshd-$i.pid
AuthorizedKeysFile $DIR/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
SetEnv DOE_HOST=$P$i SHLVL=2 PATH=$DIR/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
LogLevel VERBOSE
C
    printf '%s %s\n' "$NET.$i" "$(cut -d' ' -f1,2 "$DIR/host.pub")" >>"$DIR/known_hosts"
    printf 'Host %s%s\n  HostName %s.%s\n' "$P" "$i" "$NET" "$i" >>"$DIR/ssh_config"
    "$(dirname "$0")/host-start.sh" "$DIR" "$i" "$P" "$PRIVATE"
done
cat >>"$DIR/ssh_config" <<C
Host *
  User root
  IdentityFile $DIR/id
  IdentitiesOnly yes
  UserKnownHostsFile $DIR/known_hosts
  GlobalKnownHostsFile /dev/null
C
