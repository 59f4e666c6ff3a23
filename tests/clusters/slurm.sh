#!/usr/bin/env bash
# A real Slurm cluster on one machine, for tests: munged, slurmctld and a few slurmd with node names of their own, all on
# loopback. Everything but the packages is below one directory; nothing in /etc/slurm is read.
#
#   slurm.sh up         install what is missing (as root, by apt), start a fresh cluster, wait for its nodes
#   slurm.sh down       end jobs and daemons, remove the directory
#   slurm.sh env        print the environment a client needs, a line each
#   slurm.sh ctl-stop | ctl-start            the controller; its state is kept
#   slurm.sh node-kill N | node-start N      one slurmd
#
# Settings (environment):
#   SLURM_DIR      state, logs, configuration of this cluster
#   SLURM_PORT     first of 20 ports on loopback
#   SLURM_PREFIX   begins the names of nodes; two clusters at the same time need different ones
#   SLURM_NODES    how many (3), each with 16 cpus and 16000 MB
#   SLURM_DBD      not empty: with accounting (mariadb and slurmdbd, 4 s more)
#   SLURM_OWNER    process whose end is the cluster's
#   SLURM_MINJOBAGE  how long an ended job stays in the listing (300 s)
set -euo pipefail

D=${SLURM_DIR:?}
PORT=${SLURM_PORT:-26800}
PREFIX=${SLURM_PREFIX:-n}
NODES=${SLURM_NODES:-3}
DBD=${SLURM_DBD:-}
MINJOBAGE=${SLURM_MINJOBAGE:-300}
ME=$(id -un)
HOST=$(hostname -s)
LOCK=${TMPDIR:-/tmp}/vine-slurm-install.lock
PATH=$PATH:/usr/sbin:/sbin
export SLURM_CONF=$D/slurm.conf

if [ "$(id -u)" = 0 ]; then AUTH=munge; else AUTH=none; fi
TRACK=linuxproc
if [ "$(id -u)" = 0 ] && [ -w /sys/fs/cgroup/freezer ]; then TRACK=cgroup; fi

die() { echo "slurm.sh: $*" >&2; exit 1; }
nodes() { seq -f "$PREFIX%g" 1 "$NODES"; }

install() {
    local wanted=(slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins) missing=() package
    [ -z "$DBD" ] || wanted+=(slurmdbd slurm-wlm-mysql-plugin mariadb-server)
    for package in "${wanted[@]}"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || die "not installed: ${missing[*]}"
    command -v apt-get >/dev/null || die "not installed: ${missing[*]}, and there is no apt-get"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >/dev/null || true
    # Packages must not start daemons of their own.
    local denied=
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod 755 /usr/sbin/policy-rc.d
        denied=1
    fi
    local status=0
    apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "${missing[@]}" >/dev/null 2>"$D/apt.log" ||
        status=$?
    [ -z "$denied" ] || rm -f /usr/sbin/policy-rc.d
    [ $status = 0 ] || die "apt-get install ${missing[*]}: $(tail -n 3 "$D/apt.log")"
}

pid_of() { # FILE NAME: the pid in FILE if that is a living NAME
    local pid
    pid=$(cat "$1" 2>/dev/null) || return 1
    [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ] || return 1
    ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null && echo "$pid"  # one that is dead may wait to be reaped
}

stop() { # FILE NAME SIGNAL
    local pid i
    pid=$(pid_of "$1" "$2") || { rm -f "$1"; return 0; }
    kill -"$3" "$pid" 2>/dev/null || true
    for i in $(seq 100); do
        pid_of "$1" "$2" >/dev/null || break
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
    rm -f "$1"
}

configure() {
    mkdir -p "$D"/run "$D"/state "$D"/spool "$D"/log
    local i=0 name all="$PREFIX[1-$NODES]"
    [ "$NODES" != 1 ] || all=${PREFIX}1
    {
        cat <<EOF
ClusterName=testcl
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=$ME
SlurmdUser=$ME
SlurmctldPort=$PORT
SlurmdPort=$((PORT + 3))
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool/%n
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmdPidFile=$D/run/slurmd-%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd-%n.log
AuthType=auth/$AUTH
CredType=cred/$AUTH
$([ $AUTH != munge ] || echo "AuthInfo=socket=$D/run/munge.socket")
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/$TRACK
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=1,sched_min_interval=0,default_queue_depth=2000
PriorityType=priority/basic
SlurmdTimeout=10
SlurmctldTimeout=10
BatchStartTimeout=10
MessageTimeout=10
KillWait=5
MinJobAge=$MINJOBAGE
CompleteWait=0
ReturnToService=2
JobRequeue=1
MaxJobCount=20000
MaxArraySize=2001
EnforcePartLimits=ALL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
EOF
        if [ -n "$DBD" ]; then
            echo "AccountingStorageType=accounting_storage/slurmdbd"
            echo "AccountingStorageHost=127.0.0.1"
            echo "AccountingStoragePort=$((PORT + 1))"
            [ $AUTH != munge ] || echo "AccountingStoragePass=$D/run/munge.socket"
            echo "AccountingStorageEnforce=associations"
        else
            echo "AccountingStorageType=accounting_storage/none"
        fi
        for name in $(nodes); do
            i=$((i + 1))
            echo "NodeName=$name NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + 3 + i)) CPUs=16 RealMemory=16000"
        done
        cat <<EOF
PartitionName=main Nodes=$all Default=YES MaxTime=INFINITE DefaultTime=60 State=UP PriorityTier=10
PartitionName=high Nodes=$all MaxTime=60 State=UP PriorityTier=100
PartitionName=scav Nodes=$all MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=off Nodes=$all MaxTime=60 State=DOWN
EOF
    } >"$D/slurm.conf"
    printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' >"$D/cgroup.conf"
}

munge_up() {
    [ $AUTH = munge ] || return 0
    (umask 077; head -c 128 /dev/urandom >"$D/run/munge.key")
    # --force: the sockets' directory may be below one that others can write, as /tmp is.
    munged --force --key-file="$D/run/munge.key" --socket="$D/run/munge.socket" --pid-file="$D/run/munged.pid" \
        --log-file="$D/log/munged.log" --seed-file="$D/run/munged.seed" 2>"$D/log/munged.err" ||
        die "munged: $(tail -n 3 "$D/log/munged.err")"
}

accounting_up() {
    [ -n "$DBD" ] || return 0
    local data=$D/db user=$ME i
    if [ "$ME" = root ]; then
        user=mysql
        chmod 755 "$D"
        mkdir -p "$data"
        chown mysql "$data"
    fi
    mariadb-install-db --no-defaults --user="$user" --datadir="$data" --auth-root-authentication-method=normal \
        --skip-test-db >"$D/log/mariadb.log" 2>&1 || die "mariadb-install-db: $(tail -n 3 "$D/log/mariadb.log")"
    setsid mariadbd --no-defaults --user="$user" --datadir="$data" --bind-address=127.0.0.1 --port=$((PORT + 2)) \
        --socket="$data/m.sock" --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 \
        --innodb-flush-log-at-trx-commit=0 --pid-file="$data/m.pid" >>"$D/log/mariadb.log" 2>&1 </dev/null &
    echo $! >"$D/run/mariadbd.pid"
    for i in $(seq 200); do
        mariadb --no-defaults -uroot -S "$data/m.sock" -e 'select 1' >/dev/null 2>&1 && break
        sleep 0.1
    done
    mariadb --no-defaults -uroot -S "$data/m.sock" -e "create database slurm_acct;
        create user slurm@'127.0.0.1' identified by 'slurm'; grant all on slurm_acct.* to slurm@'127.0.0.1'" ||
        die "mariadb: $(tail -n 3 "$D/log/mariadb.log")"
    (
        umask 077
        cat >"$D/slurmdbd.conf" <<EOF
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((PORT + 1))
SlurmUser=$ME
AuthType=auth/$AUTH
$([ $AUTH != munge ] || echo "AuthInfo=socket=$D/run/munge.socket")
LogFile=$D/log/slurmdbd.log
PidFile=$D/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((PORT + 2))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
EOF
    )
    slurmdbd || die "slurmdbd: $(tail -n 3 "$D/log/slurmdbd.log")"
    for i in $(seq 200); do
        sacctmgr -n list cluster >/dev/null 2>&1 && break
        sleep 0.1
    done
    { sacctmgr -i add cluster testcl; sacctmgr -i add account physics; sacctmgr -i add user "$ME" account=physics; } \
        >"$D/log/sacctmgr.log" 2>&1 || true
    # root's own association with the account "root" would make any job of root's valid without one
    sacctmgr -i modify user "$ME" set defaultaccount=physics >>"$D/log/sacctmgr.log" 2>&1 || true
}

ctl_start() { slurmctld -f "$D/slurm.conf" >"$D/log/slurmctld.out" 2>&1 || die "slurmctld: $(tail -n 5 "$D/log/slurmctld.log")"; }

node_start() {
    mkdir -p "$D/spool/$1"
    slurmd -f "$D/slurm.conf" -N "$1" >"$D/log/slurmd-$1.out" 2>&1 || die "slurmd $1: $(tail -n 5 "$D/log/slurmd-$1.log")"
}

up() {
    mkdir -p "$D"
    exec 9>"$LOCK"
    flock -w 400 9
    install
    exec 9>&-
    configure
    munge_up
    accounting_up
    ctl_start
    local name i
    for name in $(nodes); do node_start "$name"; done
    for i in $(seq 200); do
        [ "$(sinfo -h -p main -t idle -o %D 2>/dev/null)" != "$NODES" ] || { guard; return 0; }
        sleep 0.1
    done
    die "nodes did not come up: $(sinfo -N -o '%N %T %E' 2>&1)"
}

guard() { # what starts the cluster may be killed before it can end it
    [ -n "${SLURM_OWNER:-}" ] || return 0
    setsid bash -c 'while [ -d "$2" ] && kill -0 "$1" 2>/dev/null; do sleep 2; done; exec "$0" down' \
        "$0" "$SLURM_OWNER" "$D" >/dev/null 2>&1 </dev/null &
}

down() {
    [ -d "$D" ] || return 0
    local name pid
    if pid_of "$D/run/slurmctld.pid" slurmctld >/dev/null; then
        timeout 15 squeue -h -a -t R -o %A 2>/dev/null | sort -u | xargs -r timeout 15 scancel -f -s KILL 2>/dev/null || true
        timeout 15 squeue -h -a -o %A 2>/dev/null | sort -u | xargs -r timeout 15 scancel 2>/dev/null || true
    fi
    for name in $(nodes 2>/dev/null); do stop "$D/run/slurmd-$name.pid" slurmd KILL; done
    stop "$D/run/slurmctld.pid" slurmctld KILL
    stop "$D/run/slurmdbd.pid" slurmdbd KILL
    stop "$D/run/mariadbd.pid" mariadbd KILL
    stop "$D/run/munged.pid" munged TERM
    for pid in /proc/[0-9]*; do  # daemons without a pid file, and what keeps jobs
        case "$(cat "$pid/comm" 2>/dev/null || true)" in
        slurmd | slurmctld | slurmstepd | slurmdbd | munged)
            if tr '\0' '\n' 2>/dev/null <"$pid/environ" | grep -qxF "SLURM_CONF=$D/slurm.conf"; then
                kill -KILL "${pid#/proc/}" 2>/dev/null || true
            fi ;;
        esac
    done
    for name in $(nodes); do rmdir "/sys/fs/cgroup/freezer/slurm_$name" 2>/dev/null || true; done
    rm -rf "$D"
}

case "${1:-}" in
up) up ;;
down) down ;;
env) echo "SLURM_CONF=$SLURM_CONF" ;;
ctl-stop) stop "$D/run/slurmctld.pid" slurmctld TERM ;;
ctl-start) ctl_start ;;
node-kill) stop "$D/run/slurmd-$2.pid" slurmd KILL ;;
node-start) node_start "$2" ;;
*) sed -n '2,21p' "$0"; exit 2 ;;
esac
