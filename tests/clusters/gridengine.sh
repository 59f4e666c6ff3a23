#!/bin/bash
# A real Grid Engine 8.1.9 (Debian 12) on one machine for tests, without systemd. Needs root: execd switches users.
# Cell and spool are below $GE_TEST_ROOT; nothing of /var/lib/gridengine but its binaries is used.
#   gridengine.sh up      installs the packages where they are missing, starts qmaster and execd
#   gridengine.sh down    stops them
#   gridengine.sh env     NAME=VALUE lines that a client needs
#   gridengine.sh master-kill | master-start
set -u
GE=${GE_TEST_ROOT:?directory of this instance}
PORT=${GE_TEST_PORT:?two free ports from here on}
SLOTS=${GE_TEST_SLOTS:-16}
HOST=$(hostname)
export SGE_ROOT=$GE/root SGE_CELL=default SGE_QMASTER_PORT=$PORT SGE_EXECD_PORT=$((PORT+1)) SGE_CLUSTER_NAME=gtest
export SGE_ARCH=lx-amd64
export PATH=/usr/bin:/usr/sbin:/bin:/sbin
LIB=/usr/lib/gridengine
DRMAA=/usr/lib/gridengine-drmaa/lib/libdrmaa.so.1.0
die() { echo "gridengine: $*" >&2; exit 1; }
alive() { local p; p=$(cat "$1" 2>/dev/null) && [ -n "$p" ] && [ "$(cat /proc/$p/comm 2>/dev/null)" = "$2" ]; }
stop_pid() { local p i; alive "$1" "$2" || { rm -f "$1"; return 0; }; p=$(cat "$1"); kill -"${3:-TERM}" "$p"
  for i in $(seq 150); do [ -d /proc/$p ] || break; sleep 0.1; done; [ -d /proc/$p ] && kill -KILL "$p"; rm -f "$1"; return 0; }
MPID=$GE/spool/qmaster/qmaster.pid
EPID=$(ls "$GE"/spool/execd/*/execd.pid 2>/dev/null | head -1); EPID=${EPID:-$GE/spool/execd/none.pid}

init() {
  [ -f "$GE/.init" ] && return 0
  mkdir -p "$SGE_ROOT/default/common" "$GE"/spool/{qmaster/job_scripts,execd,db}
  chmod 755 "$GE" "$GE/spool"
  for d in bin lib util utilbin; do ln -sfn /var/lib/gridengine/$d "$SGE_ROOT/$d"; done
  echo "$HOST" > "$SGE_ROOT/default/common/act_qmaster"
  # forward and reverse lookup of 127.0.0.1 give different names: call them all one host
  { printf '%s' "$HOST"; awk '$1=="127.0.0.1"{for(i=2;i<=NF;i++)print $i}' /etc/hosts | grep -vx "$HOST" | while read -r h; do printf ' %s' "$h"; done; echo; } > "$SGE_ROOT/default/common/host_aliases"
  cat > "$SGE_ROOT/default/common/bootstrap" <<B
admin_user             none
default_domain          none
ignore_fqdn             true
spooling_method         berkeleydb
spooling_lib            libspoolb
spooling_params         $GE/spool/db
binary_path             $SGE_ROOT/bin
qmaster_spool_dir       $GE/spool/qmaster
security_mode           none
listener_threads        2
worker_threads          2
scheduler_threads       1
B
  sed -e "s#^execd_spool_dir.*#execd_spool_dir        $GE/spool/execd#" -e 's/^min_uid.*/min_uid                0/' \
      -e 's/^min_gid.*/min_gid                0/' -e 's#^mailer.*#mailer                 /bin/true#' \
      -e 's/^load_report_time.*/load_report_time       00:00:05/' -e 's/^max_unheard.*/max_unheard            00:00:30/' \
      -e 's/^finished_jobs.*/finished_jobs          1000/' -e 's/^administrator_mail.*/administrator_mail     none/' \
      -e 's/flush_time=00:00:15/flush_time=00:00:01 accounting_flush_time=00:00:00/' \
      -e "s#^execd_params .*#execd_params           ${GE_TEST_EXECD_PARAMS:-none}#" \
      -e "s#^qmaster_params .*#qmaster_params         ${GE_TEST_QMASTER_PARAMS:-none}#" \
      /usr/share/gridengine/default-configuration > "$GE/conf"
  { $LIB/spoolinit berkeleydb libspoolb "$GE/spool/db" init &&
    $LIB/spooldefaults configuration "$GE/conf" &&
    $LIB/spooldefaults complexes /usr/share/gridengine/util/resources/centry &&
    $LIB/spooldefaults usersets /usr/share/gridengine/util/resources/usersets &&
    $LIB/spooldefaults managers root; } > "$GE/init.log" 2>&1 || die "init: $(tail -3 "$GE/init.log")"
  touch "$GE/.init"
}
start_master() { alive "$MPID" sge_qmaster && return 0; $LIB/sge_qmaster || die "qmaster did not start"; }
start_execd()  { alive "$EPID" sge_execd  && return 0; $LIB/sge_execd  || die "execd did not start"; }
wait_master() { local i; for i in $(seq 100); do timeout 5 qconf -sh >/dev/null 2>&1 && return 0; sleep 0.1; done; die "qmaster does not answer"; }
config() {   # admin/submit/exec host, host group, PE, one queue, a fast scheduler
  [ -f "$GE/.conf" ] && return 0
  qconf -ah "$HOST"; qconf -as "$HOST"
  cat > "$GE/sched" <<C
$(qconf -ssconf | sed -e 's/^schedule_interval.*/schedule_interval                 0:0:1/' -e 's/^flush_submit_sec.*/flush_submit_sec                  1/' \
   -e 's/^flush_finish_sec.*/flush_finish_sec                  1/' -e 's/^maxujobs.*/maxujobs                          0/' -e 's/^job_load_adjustments.*/job_load_adjustments              NONE/' -e 's/^load_adjustment_decay_time.*/load_adjustment_decay_time 0:0:0/')
C
  qconf -Msconf "$GE/sched"
  printf 'hostname %s\nload_scaling NONE\ncomplex_values NONE\nuser_lists NONE\nxuser_lists NONE\nprojects NONE\nxprojects NONE\nusage_scaling NONE\nreport_variables NONE\n' "$HOST" > "$GE/eh"; qconf -Ae "$GE/eh"
  printf 'group_name @allhosts\nhostlist %s\n' "$HOST" > "$GE/hg"; qconf -Ahgrp "$GE/hg"
  printf 'pe_name smp\nslots 9999\nuser_lists NONE\nxuser_lists NONE\nstart_proc_args NONE\nstop_proc_args NONE\nallocation_rule $pe_slots\ncontrol_slaves FALSE\njob_is_first_task TRUE\nurgency_slots min\naccounting_summary FALSE\nqsort_args NONE\n' > "$GE/pe"; qconf -Ap "$GE/pe"
  qconf -sq > "$GE/q0"
  sed -e 's/^qname.*/qname all.q/' -e 's/^hostlist.*/hostlist @allhosts/' -e "s/^slots.*/slots $SLOTS/" -e 's/^pe_list.*/pe_list smp make/' \
      -e 's/^load_thresholds.*/load_thresholds NONE/' -e 's#^shell  *.*#shell /bin/bash#' -e 's/^rerun.*/rerun FALSE/' \
      -e "s/^notify.*/notify ${GE_TEST_NOTIFY:-00:00:05}/" -e 's/^pe_list.*/pe_list smp/' "$GE/q0" > "$GE/q"
  qconf -Aq "$GE/q"
  touch "$GE/.conf"
}
install() {
  [ -x $LIB/sge_qmaster ] && [ -x $LIB/sge_execd ] && [ -e "$DRMAA" ] && return 0
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || die "the packages gridengine-* are missing"
  # RUNLEVEL: invoke-rc.d starts no service then.
  export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
  local get="apt-get -o DPkg::Lock::Timeout=200 install -y -qq --no-install-recommends gridengine-master gridengine-exec gridengine-client gridengine-drmaa1.0"
  $get >"$GE/install.log" 2>&1 || { apt-get update -qq >>"$GE/install.log" 2>&1; $get >>"$GE/install.log" 2>&1; } ||
    die "install: $(tail -3 "$GE/install.log")"
}
case "${1:-}" in
up)   [ "$(id -u)" = 0 ] || die "needs root"
      mkdir -p "$GE"; install; init; start_master; wait_master; config >> "$GE/init.log" 2>&1; start_execd
      for i in $(seq 300); do qstat -f 2>/dev/null | grep -q "^all.q.*lx-amd64 *$" && exit 0; sleep 0.1; done
      qstat -f; die "execd did not register" ;;
down) if alive "$MPID" sge_qmaster; then timeout 10 qdel -f -u '*' >/dev/null 2>&1; timeout 10 qconf -kej >/dev/null 2>&1; fi
      stop_pid "$EPID" sge_execd KILL; stop_pid "$MPID" sge_qmaster KILL ;;    # an orderly stop takes 10 s
env)  printf '%s\n' SGE_ROOT=$SGE_ROOT SGE_CELL=$SGE_CELL SGE_QMASTER_PORT=$SGE_QMASTER_PORT \
        SGE_EXECD_PORT=$SGE_EXECD_PORT SGE_CLUSTER_NAME=$SGE_CLUSTER_NAME SGE_ARCH=$SGE_ARCH DRMAA_LIBRARY_PATH=$DRMAA ;;
master-kill) stop_pid "$MPID" sge_qmaster KILL ;;
# execd may not notice for minutes that there is a new qmaster, and tells of no end of a job until then.
master-start) start_master; wait_master; stop_pid "$EPID" sge_execd KILL; start_execd ;;
*) sed -n '2,7p' "$0"; exit 2 ;;
esac
