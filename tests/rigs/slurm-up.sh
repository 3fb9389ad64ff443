#!/bin/bash
# A private Slurm over hosts that hosts-up.sh made: munged, slurmctld here, one slurmd in every
# namespace, nodes PREFIX1..PREFIXn. All state is under DIR; no accounting, no systemd.
# usage: slurm-up.sh DIR N PREFIX NET PORT      then: SLURM_CONF=DIR/etc/slurm.conf sinfo
set -euo pipefail
DIR=$1 N=$2 P=$3 NET=$4 BASE=$5
PATH=$PATH:/usr/sbin
for tool in slurmctld slurmd munged sbatch squeue scancel srun; do
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
SlurmdTimeout=20
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
AccountingStorageType=accounting_storage/none
C
    for i in $(seq 1 "$N"); do
        echo "NodeName=$P$i NodeHostname=$HOST NodeAddr=$NET.$i Port=$((BASE + i)) CPUs=24 Sockets=1 CoresPerSocket=24 ThreadsPerCore=1 RealMemory=4096 Gres=gpu:4 State=UNKNOWN"
    done
    echo "PartitionName=debug Nodes=$P[1-$N] Default=YES MaxTime=INFINITE State=UP"
    # Nodes on which nothing is measured.
    [ "$N" -lt 3 ] || echo "PartitionName=drivers Nodes=$P[3-$N] Default=NO MaxTime=INFINITE State=UP"
} >"$DIR/etc/slurm.conf"
: >"$DIR/etc/plugstack.conf"
# Files that are there, in place of devices.
for file in null zero full random; do echo "Name=gpu File=/dev/$file"; done >"$DIR/etc/gres.conf"
printf 'CgroupPlugin=cgroup/v1\nConstrainCores=no\n' >"$DIR/etc/cgroup.conf"
export SLURM_CONF=$DIR/etc/slurm.conf
slurmctld
for i in $(seq 1 "$N"); do
    mkdir -p "$DIR/spool/$P$i"
    nsenter --net="/run/netns/$P$i" slurmd -N "$P$i"
done
for _ in $(seq 200); do
    up=$(sinfo -h -N -p debug -o '%T' 2>/dev/null | grep -c '^idle$' || true)
    [ "$up" != "$N" ] || exit 0
    sleep 0.1
done
echo "slurm-up: only $up of $N nodes came up; see $DIR/log" >&2
exit 1
