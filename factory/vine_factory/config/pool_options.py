"""What a pool's table in a site file may set.

Owns the names, types and bounds of a pool's options. How they combine is in build.py; the table of the pool's batch
system is that system's own.
"""

from __future__ import annotations

from vine_factory import defaults
from vine_factory.batch.schema import SiteOption

POOL_OPTIONS: tuple[SiteOption, ...] = (
    SiteOption("batch", "str", None, "batch system of the pool"),
    SiteOption("min-workers", "int", None, "keep at least so many workers", low=0),
    SiteOption("max-workers", "int", None, "have at most so many workers", low=1),
    SiteOption("workers-per-cycle", "int", None, "at most so many workers that are not connected yet, 0 = no limit",
               low=0),
    SiteOption("max-idle", "int", None, "at most so many jobs wait in the batch system's queue, 0 = no limit", low=0),
    SiteOption("cores", "int", None, "cores per worker, 0 = what is there", low=0),
    SiteOption("memory", "int", None, "memory per worker in MB, 0 = what is there", low=0),
    SiteOption("disk", "int", None, "disk per worker in MB, 0 = what is there", low=0),
    SiteOption("gpus", "int", None, "GPUs per worker", low=0),
    SiteOption("features", "list", None, "features the workers offer"),
    SiteOption("workers-per-job", "int", 1, "workers that one job runs: for batch systems that give whole nodes, or "
               "limit the number of jobs", low=1),
    SiteOption("walltime", "duration", None, "how long a job may run; the worker leaves by itself a little before",
               low=defaults.MIN_WALLTIME_S),
    SiteOption("timeout", "duration", None, "workers leave after so much idle time", low=1),
    SiteOption("startup-time", "duration", None, "how long it takes from submission to connection, until it has been "
               "measured", low=0),
    SiteOption("retire-per-minute", "int", None, "retire at most so many workers per minute, 0 = no limit", low=0),
    SiteOption("budget-core-hours", "float", None, "spend at most so many core hours per budget period, 0 = no limit",
               low=0),
    SiteOption("budget-period", "duration", None, "period of the budget", low=60),
    SiteOption("deliver", "str", None, "how worker and key get to the job: sent with it, or by a path that exists "
               "wherever jobs run", choices=("transfer", "shared")),
    SiteOption("managers", "str", None, "how workers find managers: by name in the shared home, or by the addresses "
               "known when the job is submitted", choices=("home", "addresses")),
    SiteOption("python", "str", None, "Python interpreter where the workers run, 3.10 or newer"),
    SiteOption("directory", "str", None, "job scripts and the jobs' output go below this directory"),
    SiteOption("env", "table", None, "environment variables of the workers"),
    SiteOption("worker-binary", "str", None, "worker program instead of our own"),
    SiteOption("worker-extra-options", "str", None, "further options for the workers"),
    SiteOption("wrapper", "str", None, "command that starts the worker"),
    SiteOption("wrapper-input", "list", None, "files the wrapper needs"),
    SiteOption("task-wrapper", "str", None, "command that starts each task"),
    SiteOption("poncho-env", "str", None, "environment package (a tar file of conda pack or poncho_package_create) in "
               "which the workers and their Python tasks run"),
    SiteOption("workers-blocked", "list", None, "start no workers on these hosts"),
)
BY_KEY = {option.key: option for option in POOL_OPTIONS}

FROM_FACTORY = {
    "batch": "batch-type", "features": "feature",
    **{key: key for key in ("min-workers", "max-workers", "workers-per-cycle", "cores", "memory", "disk", "gpus",
                            "timeout", "worker-binary", "worker-extra-options", "wrapper", "wrapper-input",
                            "task-wrapper", "poncho-env", "workers-blocked")},
}
"""Options of a pool that have their default from one of the factory's options."""
