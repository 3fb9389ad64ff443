#!/bin/bash
# A private Slurm over hosts that hosts-up.sh made: munged, slurmctld here, one slurmd in every
# namespace, nodes PREFIX1..PREFIXn. All state is under DIR; no systemd. With `accounts` there is
# accounting: a slurmdbd here, on a MariaDB of its own; nodes are given up soon, and jobs of the
# partition `urgent` preempt others.
# usage: slurm-up.sh DIR N PREFIX NET PORT [accounts]     then: SLURM_CONF=DIR/etc/slurm.conf sinfo
set -euo pipefail
DIR=$1 N=$2 P=$3 NET=$4 BASE=$5 ACCOUNTS=${6-}
PATH=$PATH:/usr/sbin
tools=(slurmctld slurmd munged sbatch squeue scancel srun)
[ -z "$ACCOUNTS" ] || tools+=(slurmdbd sacct sacctmgr mariadbd mariadb mariadb-install-db)
for tool in "${tools[@]}"; do
    command -v "$tool" >/dev/null || { echo "slurm-up: \`$tool\` is missing: run tests/rigs/install.sh" >&2; exit 3; }
done
mkdir -p "$DIR"/{etc,log,state,spool,run,munge}
HOST=$(hostname -s)
if [ ! -f "$DIR/munge/munge.key" ]; then
    dd if=/dev/urandom bs=1 count=128 of="$DIR/munge/munge.key" status=none
    chmod 600 "$DIR/munge/munge.key"
fi
chmod 711 "$DIR/munge"
munged --force --key-file="$DIR/munge/munge.key" --socket="$DIR/munge/munge.sock" \
    --pid-file="$DIR/munge/munged.pid" --log-file="$DIR/munge/munged.log" --seed-file="$DIR/munge/munged.seed"
{
    cat <<C
ClusterName=doetest
SlurmctldHost=$HOST($NET.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/munge.sock
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
GresTypes=gpu
ReturnToService=2
SlurmctldPort=$BASE
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/slurmd-%n.pid
SlurmdSpoolDir=$DIR/spool/%n
StateSaveLocation=$DIR/state
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd-%n.log
SlurmctldTimeout=20
SlurmdTimeout=$([ -z "$ACCOUNTS" ] && echo 20 || echo 12)
MessageTimeout=30
InactiveLimit=0
KillWait=5
MinJobAge=300
Waittime=0
CompleteWait=0
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
SlurmdParameters=config_overrides
MaxArraySize=10001
MaxJobCount=20000
PlugStackConfig=$DIR/etc/plugstack.conf
C
    if [ -z "$ACCOUNTS" ]; then
        echo AccountingStorageType=accounting_storage/none
    else
        cat <<C
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((BASE + 14))
AccountingStoragePass=$DIR/munge/munge.sock
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
C
    fi
    for i in $(seq 1 "$N"); do
        echo "NodeName=$P$i NodeHostname=$HOST NodeAddr=$NET.$i Port=$((BASE + i)) CPUs=24 Sockets=1 CoresPerSocket=24 ThreadsPerCore=1 RealMemory=4096 Gres=gpu:4 State=UNKNOWN"
    done
    echo "PartitionName=debug Nodes=${P}[1-$N] Default=YES MaxTime=INFINITE State=UP"
    # Nodes on which nothing is measured.
    [ "$N" -lt 3 ] || echo "PartitionName=drivers Nodes=${P}[3-$N] Default=NO MaxTime=INFINITE State=UP"
    [ -z "$ACCOUNTS" ] || echo "PartitionName=urgent Nodes=${P}[1-$N] Default=NO MaxTime=INFINITE PriorityTier=10 State=UP"
} >"$DIR/etc/slurm.conf"
: >"$DIR/etc/plugstack.conf"
# Files that are there, in place of devices.
for file in null zero full random; do echo "Name=gpu File=/dev/$file"; done >"$DIR/etc/gres.conf"
printf 'CgroupPlugin=cgroup/v1\nConstrainCores=no\n' >"$DIR/etc/cgroup.conf"
export SLURM_CONF=$DIR/etc/slurm.conf
if [ -n "$ACCOUNTS" ]; then
    # Over TCP: all of them would have one socket.
    cat >"$DIR/etc/slurmdbd.conf" <<C
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/munge.sock
DbdHost=$HOST
DbdAddr=127.0.0.1
DbdPort=$((BASE + 14))
SlurmUser=root
LogFile=$DIR/log/slurmdbd.log
PidFile=$DIR/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((BASE + 15))
StorageLoc=slurm_acct
StorageUser=slurm
StoragePass=slurm
C
    chmod 600 "$DIR/etc/slurmdbd.conf"
    mkdir -p "$DIR/mysql"
    # Both run as root here: the folder is private.
    mariadb-install-db --no-defaults --user=root --datadir="$DIR/mysql" --skip-test-db \
        --auth-root-authentication-method=normal >"$DIR/log/mysql-install.log" 2>&1
    setsid mariadbd --no-defaults --user=root --datadir="$DIR/mysql" --socket="$DIR/run/mysql.sock" \
        --bind-address=127.0.0.1 --port=$((BASE + 15)) --skip-name-resolve --pid-file="$DIR/run/mariadbd.pid" \
        --innodb-buffer-pool-size=32M --innodb-log-file-size=8M --skip-log-bin \
        >"$DIR/log/mariadbd.log" 2>&1 </dev/null &
    sql() { mariadb --no-defaults -S "$DIR/run/mysql.sock" -u root -e "$1"; }
    for _ in $(seq 900); do
        ! sql 'select 1' >/dev/null 2>&1 || break
        sleep 0.1
    done
    sql "create database slurm_acct; create user slurm@'127.0.0.1' identified by 'slurm'; grant all on slurm_acct.* to slurm@'127.0.0.1';"
    slurmdbd
    for _ in $(seq 900); do
        ! sacctmgr -n show cluster >/dev/null 2>&1 || break
        sleep 0.1
    done
    sacctmgr -i add cluster doetest >/dev/null
fi
slurmctld
for i in $(seq 1 "$N"); do
    mkdir -p "$DIR/spool/$P$i"
    nsenter --net="/run/netns/$P$i" slurmd -N "$P$i"
done
for _ in $(seq 900); do
    up=$(sinfo -h -N -p debug -o '%T' 2>/dev/null | grep -c '^idle$' || true)
    [ "$up" != "$N" ] || exit 0
    sleep 0.1
done
echo "slurm-up: only $up of $N nodes came up; see $DIR/log" >&2
exit 1
