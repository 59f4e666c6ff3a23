"""Options of pools on Grid Engine and other systems with a DRMAA library.

Owns the table: keys, kinds, defaults, bounds, one sentence each; docs/factory-gridengine.md has the same. Pure.
"""

from __future__ import annotations

from vine_factory.batch.schema import SiteOption

_HOUR_S = 3600.0
_WORD = r"[^\s\"'`\\,]*"
_LIST_WORD = r"[^\s\"'`\\]*"

GRID_ENGINE, OTHER, AUTO = "gridengine", "other", "auto"

OPTIONS = (
    SiteOption("queue", "str", "", "Queues the jobs may run in, as in \"long.q,short.q@@hosts\" (qsub -q).",
               pattern=_LIST_WORD),
    SiteOption("project", "str", "", "Project that the jobs count for (qsub -P).", pattern=_WORD),
    SiteOption("account", "str", "", "Account string in the accounting records (qsub -A).", pattern=_WORD),
    SiteOption("department", "str", "", "Department that the jobs count for (qsub -dept).", pattern=_WORD),
    SiteOption("priority", "int", 0, "Among the user's own jobs, larger starts first; users may only lower it.",
               low=-1023, high=1024),
    SiteOption("parallel-environment", "str", "", "Gives workers with several cores their slots on one host; "
               "see `qconf -spl` (qsub -pe).", pattern=_WORD),
    SiteOption("memory-resource", "str", "", "Resource that stands for memory here, asked for per slot: h_vmem, "
               "mem_free, ...; nothing is asked for when it is not given.", pattern=r"\w*"),
    SiteOption("disk-resource", "str", "", "Resource that stands for local disk, asked for per slot.", pattern=r"\w*"),
    SiteOption("gpu-resource", "str", "gpu", "Resource that stands for GPUs, asked for per slot.", pattern=r"\w+"),
    SiteOption("resources", "table", {}, "Further resources a host must have (qsub -hard -l); values as qsub takes "
               "them.", pattern=_WORD),
    SiteOption("soft-resources", "table", {}, "Resources that are preferred (qsub -soft -l).", pattern=_WORD),
    SiteOption("notify", "flag", True, "Have workers warned by SIGUSR2 before they are killed (qsub -notify); without "
               "it they are killed at once."),
    SiteOption("accounting", "flag", True, "Ask qacct how jobs ended that the DRMAA session cannot tell of; switch it "
               "off where its file is so large that this takes minutes."),
    SiteOption("system", "str", AUTO, "What is behind the library; found out from what it says.",
               choices=(AUTO, GRID_ENGINE, OTHER)),
    SiteOption("library", "str", "", "Path of the site's libdrmaa.so; DRMAA_LIBRARY_PATH when it is not given."),
    SiteOption("native", "str", "", "Words for the DRMAA native specification, as they are: on Grid Engine qsub "
               "options, on others what their library takes."),
    SiteOption("poll-timeout", "duration", 30.0, "How long one question to the batch system may take.",
               low=1, high=_HOUR_S),
    SiteOption("extra-directives", "list", (), "Options of qsub for `#$` lines of the job script, as they are."),
)
