"""Options of HTCondor pools in a site file.

Owns the table: keys, kinds, defaults, bounds, one sentence each; docs/factory-htcondor.md has the same. Pure.
"""

from __future__ import annotations

from vine_factory.batch.schema import SiteOption

_DAY_S, _HOUR_S = 86400.0, 3600.0
_WORD = r"[A-Za-z_][A-Za-z0-9_]*"
_GROUP = r"[A-Za-z0-9_.-]+"

CLIENTS = ("auto", "bindings", "tools")

OPTIONS = (
    SiteOption("requirements", "str", "", "ClassAd expression that a machine must satisfy."),
    SiteOption("rank", "str", "", "ClassAd expression; machines with larger values are preferred."),
    SiteOption("priority", "int", 0, "Among the user's own jobs, larger starts first.", low=-(2**31), high=2**31 - 1),
    SiteOption("accounting-group", "str", "", "Group that pays for the jobs.", pattern=f"({_GROUP})?"),
    SiteOption("accounting-group-user", "str", "", "Name within the accounting group.", pattern=f"({_GROUP})?"),
    SiteOption("attributes", "table", {}, "Attributes of the job by name; values are ClassAd expressions, so texts "
               "need double quotes inside."),
    SiteOption("concurrency-limits", "str", "", "Limits the jobs count against, as in \"licence:2, disk\"."),
    SiteOption("getenv", "list", (), "Variables of the factory's environment that workers get; a name may end in *.",
               pattern=r"!?[A-Za-z_*][A-Za-z0-9_*]*"),
    SiteOption("container-image", "str", "", "Image the worker runs in (container universe): docker://..., or a .sif."),
    SiteOption("singularity-image", "str", "", "Image for sites that start Singularity themselves: sets the "
               "attribute SingularityImage."),
    SiteOption("autosize", "flag", False, "Take whole slots: what is asked for is the least."),
    SiteOption("drain-time", "duration", 600.0, "How long a worker may go on after it was told to leave, at most; the "
               "machine's own limit may be shorter.", low=0, high=7 * _DAY_S),
    SiteOption("job-lease", "duration", 300.0, "A machine that was not heard of for so long has lost its job.",
               low=20, high=_DAY_S),
    SiteOption("max-idle-time", "duration", 2 * _DAY_S, "A job that waited for so long removes itself.",
               low=60, high=365 * _DAY_S),
    SiteOption("max-held-time", "duration", _HOUR_S, "A job that was held for so long removes itself.",
               low=60, high=365 * _DAY_S),
    SiteOption("max-starts", "int", 20, "A job that was started more often (preempted each time) removes itself.",
               low=1, high=100_000),
    SiteOption("stream-output", "flag", False, "Bring output back while the worker runs; costs the submit machine."),
    SiteOption("schedd", "str", "", "Name of a schedd that is not this machine's.", pattern=r"[^\s,]*"),
    SiteOption("collector", "str", "", "host:port of a pool that is not this machine's.", pattern=r"[^\s,]*"),
    SiteOption("spool", "flag", False, "Copy the files to the schedd at submission: for one on another machine."),
    SiteOption("query-interval", "duration", 60.0, "So often the whole queue is asked for; between that the event log "
               "tells.", low=1, high=_HOUR_S),
    SiteOption("client", "str", "auto", "How to talk to HTCondor: its Python bindings, its command-line tools, or "
               "whichever works.", choices=CLIENTS),
    SiteOption("extra-directives", "list", (), "Lines for the submit description, as they are."),
)
