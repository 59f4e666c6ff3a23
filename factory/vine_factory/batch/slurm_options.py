"""Options of Slurm pools in a site file.

Owns the table: keys, kinds, defaults, bounds, one sentence each; docs/factory-slurm.md has the same. Pure.
"""

from __future__ import annotations

from vine_factory.batch.schema import SiteOption

_WORD = r"[A-Za-z0-9_.@:+-]*"
_WORDS = r"[A-Za-z0-9_.@:+,-]*"
_MAX_SIGNAL_S = 65535.0
_MAX_ELEMENTS = 100_000

CLIENTS = ("auto", "pyslurm", "tools")
TAG_PLACES = ("comment", "job-name")

OPTIONS = (
    SiteOption("partition", "str", "", "Partition, or several with commas: the first that can start the job.",
               pattern=_WORDS),
    SiteOption("account", "str", "", "Account that pays for the jobs.", pattern=_WORD),
    SiteOption("qos", "str", "", "Quality of service.", pattern=_WORD),
    SiteOption("constraint", "str", "", "Features that the nodes must have, as in \"haswell&ssd\"."),
    SiteOption("reservation", "str", "", "Reservation the jobs run in.", pattern=_WORDS),
    SiteOption("clusters", "str", "", "Name of a cluster that is not this machine's.", pattern=_WORD),
    SiteOption("gres", "str", "", "Generic resources per node, instead of what the number of GPUs says: "
               "\"gpu:a100:4\"."),
    SiteOption("exclusive", "flag", False, "Take whole nodes. A pool with cores = 0 does so by itself, and "
               "its worker uses all there is."),
    SiteOption("mem-per-cpu", "flag", False, "Ask for memory per core and not per node: for sites that refuse --mem."),
    SiteOption("no-memory", "flag", False, "Do not ask for memory at all: for sites that give whole nodes."),
    SiteOption("tmp-disk", "flag", False, "Ask for nodes with as much local disk as the worker is told it has."),
    SiteOption("licenses", "str", "", "Licences the job holds, as in \"scratch:1,cfs:1\"."),
    SiteOption("nice", "int", 0, "Among the user's own jobs, smaller starts first; below 0 only for administrators.",
               low=-(2**31) + 3, high=2**31 - 3),
    SiteOption("nodes-per-job", "int", 0, "Nodes that the workers of one job are spread over; 0 = one per worker.",
               low=0, high=_MAX_ELEMENTS),
    SiteOption("requeue", "flag", True, "A job that is preempted or loses its node goes back into the queue with the "
               "same number; if not, the factory submits another when it still needs one."),
    SiteOption("drain-time", "duration", 120.0, "So long before its time limit a worker is told to leave, where a "
               "walltime is set; Slurm may tell it a minute earlier.", low=0, high=_MAX_SIGNAL_S),
    SiteOption("max-array", "int", 500, "So many jobs in one array at most; the cluster's MaxArraySize must be larger.",
               low=1, high=_MAX_ELEMENTS),
    SiteOption("array-limit", "int", 0, "So many jobs of one array run at the same time; 0 = as many as can.",
               low=0, high=_MAX_ELEMENTS),
    SiteOption("export", "list", (), "Variables of the factory's environment that workers get, besides PATH, HOME and "
               "the like; a name may end in *.", pattern=r"[A-Za-z_][A-Za-z0-9_]*\*?|\*"),
    SiteOption("job-name", "str", "", "Name that people see in squeue; when nothing is said it names the pool."),
    SiteOption("tag-in", "str", "comment", "Where a job carries the mark by which a restarted factory finds it: for "
               "sites that rewrite comments.", choices=TAG_PLACES),
    SiteOption("client", "str", "auto", "How to ask Slurm for jobs: pyslurm, its command-line tools, or pyslurm where "
               "its version is the cluster's.", choices=CLIENTS),
    SiteOption("extra-directives", "list", (), "More options for sbatch, one each, as in \"--mail-type=FAIL\".",
               pattern=r"-.+"),
)
