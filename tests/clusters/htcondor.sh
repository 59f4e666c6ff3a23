#!/usr/bin/env bash
# A real one-machine HTCondor pool for tests: master, collector, negotiator, schedd, startd. Nothing is installed on the
# host: Debian's condor package and the few libraries it needs (its own libc included) are unpacked into a prefix and
# their ELF interpreter and rpath are pointed there. Jobs are ordinary host processes, so they see the host's files and
# Python as they are.
#
#   htcondor.sh up       build the prefix if absent, start a fresh pool, wait for a slot
#   htcondor.sh down     stop the pool
#   htcondor.sh status   exit 0 when the pool answers
#   htcondor.sh env      print the environment a client needs, a line each
#
# Settings (environment):
#   HTC_STATE   queue, logs, scratch of this pool      (/tmp/vine-htcondor-pool)
#   HTC_CACHE   where the unpacked package is kept     (/tmp/vine-htcondor-cache-UID)
#   HTC_SUITE   Debian suite the package comes from    (sid; trixie has 23.9)
#   HTC_PORT    the one port the pool listens on       (19618, loopback only)
#   HTC_CPUS    cpus the machine pretends to have      (64)
#   HTC_MEMORY  memory it pretends to have, MiB        (65536)
#   HTC_RUNFOR  minutes until the pool ends by itself, whatever became of who started it (30)
set -euo pipefail

HTC_STATE=${HTC_STATE:-/tmp/vine-htcondor-pool}
HTC_CACHE=${HTC_CACHE:-/tmp/vine-htcondor-cache-$(id -u)}
HTC_SUITE=${HTC_SUITE:-sid}
HTC_PORT=${HTC_PORT:-19618}
HTC_CPUS=${HTC_CPUS:-64}
HTC_MEMORY=${HTC_MEMORY:-65536}
HTC_RUNFOR=${HTC_RUNFOR:-30}

PREFIX=$HTC_CACHE/prefix-$HTC_SUITE
STATE=$HTC_STATE
CONFIG=$STATE/condor_config
# condor itself, what its daemons and tools are linked with, and a patchelf
PACKAGES="condor libc6 libstdc++6 libgcc-s1 libgomp1 libssl3t64 libpcre2-8-0
          libuuid1 libsqlite3-0 libcrypt1 zlib1g libzstd1 patchelf"

say() { echo "htcondor.sh: $*" >&2; }

# HTCondor never runs a job as uid 0. So that a root caller (CI) needs neither another account nor opened-up
# directories, root starts the daemons in a user namespace where root is called "daemon" (uid 1): to HTCondor an
# ordinary user, to the file system still the caller.
ordinary() {
    if [ "$(id -u)" != 0 ]; then "$@"; else unshare --user --map-user=1 --map-group=1 "$@"; fi
}

tool() { local t=$1; shift; CONDOR_CONFIG=$CONFIG ordinary "$PREFIX/bin/$t" "$@"; }

build() {
    if [ -e "$PREFIX/.done" ]; then return; fi
    local work=$HTC_CACHE/build mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    mirror=$(cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null \
        | awk '/^URIs:/{print $2; exit} /^deb /{for(i=2;i<=NF;i++) if($i~/^http/){print $i; exit}}' || true)
    [ -n "$mirror" ] || { say "no Debian mirror in this machine's apt sources"; exit 1; }
    rm -rf "$work" "$PREFIX" "$PREFIX.new"
    mkdir -p "$work"/apt/etc/apt/{apt.conf.d,preferences.d,trusted.gpg.d} \
        "$work"/apt/var/lib/apt/lists/partial "$work"/apt/var/cache/apt/archives/partial "$work"/debs "$work"/tree
    : >"$work/apt/status"
    echo "deb [signed-by=$keyring] $mirror $HTC_SUITE main" >"$work/apt/etc/apt/sources.list"
    local opts=(-qq -o Dir="$work/apt" -o Dir::State::status="$work/apt/status"
        -o Dir::Etc::parts="$work/apt/etc/apt/apt.conf.d" -o Acquire::Languages=none
        -o APT::Sandbox::User=root -o Acquire::Check-Valid-Until=false -o Acquire::Retries=3)
    apt-get "${opts[@]}" update
    (cd "$work/debs" && apt-get "${opts[@]}" download $PACKAGES)
    local deb
    for deb in "$work"/debs/*.deb; do dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$work/tree" \
        --exclude=./usr/share --exclude='./usr/lib/python3' --exclude='*/gconv' ; done

    mkdir -p "$PREFIX.new"/{bin,sbin,libexec,lib}
    cp -a "$work"/tree/usr/bin/* "$PREFIX.new/bin/"
    cp -a "$work"/tree/usr/sbin/* "$PREFIX.new/sbin/"
    cp -a "$work"/tree/usr/libexec/condor/* "$PREFIX.new/libexec/"
    find "$work/tree" -name '*.so*' ! -path '*/libexec/*' ! -path '*/lib64/*' ! -type d -exec cp -a -t "$PREFIX.new/lib" {} +
    rm -rf "$PREFIX.new/libexec/singularity_test_sandbox" "$PREFIX.new"/libexec/htcondor_docker_test* \
        "$PREFIX.new"/sbin/{AzureGAHPServer,arc_gahp,ec2_gahp,gce_gahp,blahpd_daemon} "$PREFIX.new"/bin/blahpd
    rm "$PREFIX.new/bin/patchelf"
    local f patchelf=("$PREFIX.new/lib/ld-linux-x86-64.so.2" --library-path "$PREFIX.new/lib" "$work/tree/usr/bin/patchelf")
    for f in $(find "$PREFIX.new"/{bin,sbin,libexec} -type f -perm -100); do
        [ "$(head -c4 "$f" | tail -c3)" = ELF ] || continue
        "${patchelf[@]}" --set-interpreter "$PREFIX/lib/ld-linux-x86-64.so.2" \
            --force-rpath --set-rpath "$PREFIX/lib" "$f"
    done
    mv "$PREFIX.new" "$PREFIX"
    rm -rf "$work"
    touch "$PREFIX/.done"
}

configure() {
    rm -rf "$STATE"
    mkdir -p "$STATE"/{log,spool,execute,lock,run}
    cat >"$CONFIG" <<EOF
# where
RELEASE_DIR = $PREFIX
LOCAL_DIR = $STATE
BIN = \$(RELEASE_DIR)/bin
SBIN = \$(RELEASE_DIR)/sbin
LIBEXEC = \$(RELEASE_DIR)/libexec
LIB = \$(RELEASE_DIR)/lib
LOG = \$(LOCAL_DIR)/log
SPOOL = \$(LOCAL_DIR)/spool
EXECUTE = \$(LOCAL_DIR)/execute
LOCK = \$(LOCAL_DIR)/lock
RUN = \$(LOCAL_DIR)/run
LOCAL_CONFIG_FILE =
LOCAL_CONFIG_DIR =
REQUIRE_LOCAL_CONFIG_FILE = False

# who and with whom: loopback only
DAEMON_LIST = MASTER COLLECTOR NEGOTIATOR SCHEDD STARTD
CONDOR_HOST = 127.0.0.1
COLLECTOR_HOST = 127.0.0.1:$HTC_PORT
USE_SHARED_PORT = True
SHARED_PORT_PORT = $HTC_PORT
NETWORK_INTERFACE = 127.0.0.1
BIND_ALL_INTERFACES = False
ENABLE_IPV6 = False
NO_DNS = True
DEFAULT_DOMAIN_NAME = pool.test
UID_DOMAIN = pool.test
FILESYSTEM_DOMAIN = pool.test
TRUST_UID_DOMAIN = True
COLLECTOR_NAME = test pool
CONDOR_ADMIN = nobody@pool.test

# security: real authentication, by who owns a file made in /tmp; then anyone
# who has an account on this machine may do anything to this pool
SEC_DEFAULT_AUTHENTICATION = REQUIRED
SEC_DEFAULT_AUTHENTICATION_METHODS = FS
SEC_DEFAULT_INTEGRITY = REQUIRED
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_DAEMON = *
ALLOW_NEGOTIATOR = *
ALLOW_CLIENT = *
ALLOW_ADMINISTRATOR = *
ALLOW_ADVERTISE_MASTER = *
ALLOW_ADVERTISE_SCHEDD = *
ALLOW_ADVERTISE_STARTD = *
CONDOR_IDS = 0.0
# no second, unstable address for root's clients: a restarted schedd must be
# found where it was, as an ordinary user finds it
SCHEDD_SUPER_ADDRESS_FILE =
COLLECTOR_SUPER_ADDRESS_FILE =
QUEUE_SUPER_USERS = root, condor, daemon

# one partitionable slot of pretended size
NUM_CPUS = $HTC_CPUS
MEMORY = $HTC_MEMORY
NUM_SLOTS = 1
NUM_SLOTS_TYPE_1 = 1
SLOT_TYPE_1 = 100%
SLOT_TYPE_1_PARTITIONABLE = True
START = True
SUSPEND = False
PREEMPT = False
KILL = False
RANK = 0
MAXJOBRETIREMENTTIME = 0
MachineMaxVacateTime = 10
RUNBENCHMARKS = 0
BASE_CGROUP =
STARTER_ALLOW_RUNAS_OWNER = True
ENABLE_URL_TRANSFERS = False
STARTD_CRON_JOBLIST =
STARTD_DETECT_GPUS =
SINGULARITY =
DOCKER =
JAVA =

# what one command is refused with, before anything runs
SUBMIT_REQUIREMENT_NAMES = Known
SUBMIT_REQUIREMENT_Known = !regexp("^/refused/", Arguments ?: "")
SUBMIT_REQUIREMENT_Known_REASON = "this pool does not run /refused programs"

# quick
NEGOTIATOR_INTERVAL = 1
NEGOTIATOR_MIN_INTERVAL = 1
NEGOTIATOR_CYCLE_DELAY = 1
SCHEDD_INTERVAL = 2
SCHEDD_MIN_INTERVAL = 1
UPDATE_INTERVAL = 5
COLLECTOR_UPDATE_INTERVAL = 5
NEGOTIATOR_UPDATE_INTERVAL = 5
MASTER_UPDATE_INTERVAL = 5
STARTER_UPDATE_INTERVAL = 5
STARTER_INITIAL_UPDATE_INTERVAL = 1
SHADOW_QUEUE_UPDATE_INTERVAL = 5
PERIODIC_EXPR_INTERVAL = 2
MAX_PERIODIC_EXPR_INTERVAL = 5
PERIODIC_EXPR_TIMESLICE = 0.5
SCHEDD_MATERIALIZE_INTERVAL = 1
JOB_START_COUNT = 100
JOB_START_DELAY = 0
MASTER_BACKOFF_CONSTANT = 1
MASTER_BACKOFF_FACTOR = 1
MASTER_BACKOFF_CEILING = 2
CONDOR_FSYNC = False
ENABLE_USERLOG_FSYNC = False
EOF
}

master_pid() {
    local pid
    pid=$(cat "$STATE/master.pid" 2>/dev/null) || return 1
    [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = condor_master ] && echo "$pid"
}

up() {
    mkdir -p "$HTC_CACHE"
    (flock 9; build) 9>"$HTC_CACHE/.lock"
    if ! master_pid >/dev/null; then
        configure
        CONDOR_CONFIG=$CONFIG ordinary "$PREFIX/sbin/condor_master" -runfor "$HTC_RUNFOR" -pidfile "$STATE/master.pid"
    fi
    local i
    for i in $(seq 150); do
        if [ -n "$(tool condor_status -af Name 2>/dev/null)" ] &&
           [ -n "$(tool condor_status -schedd -af Name 2>/dev/null)" ]; then return; fi
        sleep 0.2
    done
    say "no slot after 30 s; see $STATE/log"; exit 1
}

down() {
    local pid i
    pid=$(master_pid) || { say "not running"; return; }
    kill -QUIT "$pid"                       # fast shutdown: jobs are killed
    for i in $(seq 100); do [ -e "/proc/$pid" ] || break; sleep 0.1; done
    if [ -e "/proc/$pid" ]; then say "master $pid did not stop"; exit 1; fi
    rm -f "$STATE/master.pid"
}

case "${1:-}" in
    up) up ;;
    down) down ;;
    status) master_pid >/dev/null && tool condor_status ;;
    env) printf '%s\n' "CONDOR_CONFIG=$CONFIG" "PATH=$PREFIX/bin:$PREFIX/sbin:$PATH" ;;
    *) sed -n '2,/^set /{/^#/p}' "$0"; exit 2 ;;
esac
