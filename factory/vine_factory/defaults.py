"""Every number of the factory, once, with its reason. Options name the constant that is their default."""

from __future__ import annotations

# ------------------------------------------------------------------ the loop
LOCAL_PERIOD_S = 1.0
"""Pass period for local processes: looking costs a few reads of /proc, and people watch it."""
BATCH_PERIOD_S = 30.0
"""Period of looks at real batch systems: the published value, and what schedulers tolerate from one user."""
MANAGER_PERIOD_S = 10.0
"""Managers are asked this often where batch systems are looked at less often: it costs a manager milliseconds, and
tasks wait for it."""
LOOKS_AGAIN = 1
"""A look at a batch system that shows something new is followed by another one at once, once per period: jobs that
start and fail at once are seen, and a fleet in which something happens all the time is not looked at all the time."""
MIN_PASS_GAP_S = 0.1
"""Two passes are at least so far apart, so that a burst of changed readings costs one pass, not one each."""
STOP_AGAIN_S = 1.0
"""A second signal means "do not wait" only after this: `timeout` and some shells deliver one wish twice."""
STOP_PERIOD_S = 0.2
"""Pass period while ending: somebody waits at the terminal."""
DISCOVERY_PERIOD_S = 1.0
"""How often advertisements are looked up: a directory listing each, and somebody waits for the first worker."""
PARENT_CHECK_S = 1.0
"""How often the parent process is looked for, however long the period."""
READING_STALE_PERIODS = 5
"""A reading not renewed for so many periods is Unknown: one or two late answers are ordinary."""
READING_STALE_MIN_S = 10.0
"""...but never before this, because a manager may be busy for seconds."""
CLOCKS_AGREE_S = 5.0
"""A reading from further in the future than this comes from a clock that jumped."""

# ------------------------------------------------------------------ managers
CONNECT_TIMEOUT_S = 5.0
"""TCP connect and handshake with a manager; it happens in the manager's own thread and delays nothing else."""
ANSWER_TIMEOUT_S = 10.0
"""Silence after a question until the connection is dropped and made anew."""
ASKING_SHARE = 0.05
"""A manager spends at most this share of its time on our questions: the pause grows with the answer's duration."""
RECONNECT_FIRST_S = 0.5
RECONNECT_MAX_S = 5.0
"""Doubling pause between attempts: a restarted manager is found again within five seconds."""
MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""A demand answer lists the workers, about 300 bytes each; far above any real fleet, bounded all the same."""
CATALOG_PERIOD_S = 15.0
"""A catalog is asked this often; records in it are renewed once a minute."""
CATALOG_PORT = 9097
"""The published port of catalog servers."""
MAX_COUNT = 10_000_000
"""A count above this in an answer is garbage, not demand."""
MAX_SECONDS = 1e9
MIN_PART = 1e-4
"""Of a worker: shares are rounded to four digits. These two keep sums and quotients of an answer finite."""
MAX_PENDING = 100_000
"""Workers that another factory may claim to have under way."""
LOG_FILE_BYTES = 10_000_000
"""Published for the debug files of all programs."""
MANAGER_GONE_S = 300.0
"""So long a manager that stopped answering is expected back; its workers are left alone meanwhile."""

# ------------------------------------------------------------------ jobs
ABSENT_LISTINGS = 3
"""A job is taken for gone after missing in so many listings in a row: one or two lies of a scheduler cost nothing."""
ABSENT_S = 3.0
"""...and missing for at least so long, however fast the passes follow each other."""
UNCONNECTED_S = 180.0
"""A job that runs but is not connected to any manager that answers is replaced after this: imports from a cold
shared file system take a minute or two, rarely three."""
DRAIN_GRACE_S = 30.0
"""Between the polite signal and the kill; the published value for local workers."""
ENDED_KEPT_S = 120.0
"""How long an ended job is remembered, so that late listings and late answers find it."""
FINISH_MARGIN_S = 15.0
"""After the grace, how long the end of the factory may take before it gives up and names what is left."""
STDERR_TAIL_BYTES = 2000
"""How much of a dead worker's last words is shown."""
KEPT_JOB_LOGS = 20
"""Logs of so many failed workers are kept, newest first; a crash loop must not fill the disk."""

# ------------------------------------------------------------------ scaling
LOCAL_MIN_WORKERS = 0
"""A local pool starts in well under a second, so nothing has to be kept warm."""
MIN_WORKERS = 5
MAX_WORKERS = 100
"""Published defaults for batch systems."""
WORKERS_PER_CYCLE = 0
"""Unlimited. The published five make a ramp to hundreds of workers take hours; a pool that needs the limit sets it."""
RETIRE_AFTER_S = 60.0
"""A worker is retired only when none of the last so many seconds needed it: starting one again costs about that."""
RETIRE_ANSWER_S = 60.0
"""A manager that has not answered a request to retire for so long never will."""
RETIRE_RETRY_S = 30.0
"""A worker whose retirement was refused is not asked again before this."""
WORKER_TIMEOUT_S = 300
"""Idle timeout given to workers; the published value of the factory."""
FACTORY_TIMEOUT_S = 0.0
"""Never end by itself for want of managers."""
WINDOW_STARTUP_MAX_S = 900.0
"""Where starting takes longer than RETIRE_AFTER_S, that long counts instead, up to this: a queue of hours is no reason
to hold idle workers for hours."""
STARTUP_SAMPLES = 50
STARTUP_MIN_SAMPLES = 3
"""The usual time from submission to connection is the median of the last so many; of fewer than three nothing is
concluded."""
USEFUL_SHARE = 0.1
USEFUL_MIN_S = 1.0
"""A worker is worth starting when it will work for at least this share of the time that it takes to come, and for a
second."""
BUDGET_HORIZON_S = 600.0
"""Near the end of a budget only so many workers are started as could run for so long on the rest."""
BUDGET_BUCKETS = 48
"""A budget's period slides in so many steps: half an hour for a day."""
EXPIRY_STAGGER = 0.1
"""Jobs submitted together end over the last tenth of their walltime, not all at once."""
WALLTIME_MARGIN_S = 120.0
"""Before the batch system's limit a worker must be gone by itself, with its data moved and its tasks handed back."""
WALLTIME_MARGIN_SHARE = 0.1
"""...or this share of the walltime where that is less."""
BUDGET_PERIOD_S = 86_400.0
"""Core-hours are given per day, unless the pool says otherwise."""

MIN_WALLTIME_S = 60.0
"""A job that may run for less than this is over before its worker has done anything."""
MEMORY_PER_CORE_MB = 1024
DISK_PER_CORE_MB = 1024
"""Asked of a batch system when a pool does not say; the published values, for each core."""

# ------------------------------------------------------------------ health
DIED_AT_START_S = 10.0
"""A worker that ends within this without having connected never worked: interpreter, option or library is broken."""
TRIP_DIED_AT_START = 3
"""Failures in a row until a pool is tripped: one may be the host's fault, three are the pool's."""
TRIP_QUIT_AT_START = 20
"""Workers that leave at once with status 0 may be single-shot ones served between two looks; twenty are not."""
TRIP_NEVER_CONNECTED = 3
TRIP_HELD = 3
"""A job is held for what it asks or for what was broken where it tried to start; three agree on the former."""
HELD_S = 60.0
"""A held job is replaced after this: some holds last only while files are sent. Never less than two listings."""
TRIP_SHORT_LIFE = 3
SHORT_LIFE_S = 60.0
"""A worker that connects and ends badly within this is no fault of its pool; three of them on one host are the host's.
One that is connected and lives on for so long shows that its host is good."""
HOST_MEMORY_S = 3600.0
"""What happened on a host an hour ago says nothing about it now."""
HOST_EXCLUDED_FIRST_S = 1800.0
HOST_EXCLUDED_MAX_S = 86_400.0
"""A bad host is avoided for half an hour, then 1, 2, 4 ... hours, at the end for a day: somebody has to repair it."""
KEPT_HOSTS = 20_000
"""More hosts than any pool has; bounded all the same."""
KEPT_REASONS = 20
REASON_CHARS = 200
"""Faults are counted by what was said, the most frequent twenty."""
QUEUED_TOLD_S = 600.0
"""What a batch system says about a job that has been queued for so long is told, once for each reason."""
REQUEUED_S = 5.0
"""A job that started again so much later than it did before was put back into the queue in between; less than that is
two clocks."""
TRIP_SUBMIT = 1
"""A refused or unanswered submission is repeated by nobody but us: back off at once."""
BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 300.0
"""A tripped pool probes with one worker after 1, 2, 4 ... s, at the end every five minutes."""

# ------------------------------------------------------------------ orders, history
MAX_ORDERS = 16
"""So many orders may be under way; people give one at a time."""
MAX_ORDER_BYTES = 64 * 1024
"""An order is a few words."""
ORDER_READ_S = 10.0
"""To write a line into a socket of this machine."""
ORDER_ANSWER_S = 90.0
"""An order may need one command of a batch system (TOOL_TIMEOUT_S) and the pass after it."""
HISTORY_FILE_BYTES = 16 * 1024 * 1024
"""Decisions, and stories of jobs: two files of this size each, 64 MiB per factory in all. A decision takes 1 to 8 KiB:
a week of one per minute of a pool with a few kinds of tasks."""
RECORD_EVERY_S = 60.0
"""An unchanged decision is recorded this often, so that the history has the number of workers over time."""
RECORDED_GROUPS = 50
"""Of so many kinds of waiting tasks, the most numerous, a record has the details."""

# ------------------------------------------------------------------ batch systems
BATCH_SILENT_S = 30.0
"""A batch system that has not answered a poll for so long is Unknown."""
LOCAL_SETTLES_S = 2.0
"""A local submission is a fork: it exists when the call returns, or never will."""
KEPT_PAYLOADS = 5
"""Worker programs of so many versions are kept for jobs that still wait in a queue."""
BATCH_SETTLES_S = 60.0
"""A submission whose answer was lost may still show up in a real batch system for so long."""
MAX_CONFIG_BYTES = 1024 * 1024
"""Configuration files are a few hundred bytes."""
TOOL_TIMEOUT_S = 60.0
"""For one command of a batch system, or one answer of its library. A Slurm client alone waits 10 s for its controller
and retries; an HTCondor query 20 s."""
TOOL_MAX_BYTES = 64 * 1024 * 1024
"""Of one command's output: a listing of 5,000 jobs is about 2 MB."""
SAID_CHARS = 2000
"""How much of a batch system's own words is repeated."""
