#!/bin/bash
# Installs what the rigs need and this machine lacks (Debian packages).
set -euo pipefail
missing=()
has() { PATH=$PATH:/usr/sbin command -v "$1" >/dev/null; }
has ssh || missing+=(openssh-client)
has sshd || missing+=(openssh-server)
has ip || missing+=(iproute2)
has curl || missing+=(curl)
has slurmctld || missing+=(slurmctld slurm-wlm-basic-plugins)
has slurmd || missing+=(slurmd)
has sbatch || missing+=(slurm-client)
has munged || missing+=(munge)
has slurmdbd || missing+=(slurmdbd slurm-wlm-mysql-plugin)
has mariadbd || missing+=(mariadb-server)
# The wrapper is tested under each of them, and read by the last.
has dash || missing+=(dash)
has busybox || missing+=(busybox)
has mksh || missing+=(mksh)
has shellcheck || missing+=(shellcheck)
# For `.ci/static-doe`.
has musl-gcc || missing+=(musl-tools)
[ ${#missing[@]} -gt 0 ] || exit 0
echo "installing ${missing[*]}"
apt-get update -qq
# Nothing of it shall run by itself.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
status=0
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" || status=$?
rm -f /usr/sbin/policy-rc.d
exit $status
