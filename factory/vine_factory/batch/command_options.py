"""Options of pools on batch systems that are driven by their commands, and the keys of a system's definition.

Owns both tables; docs/factory-other-systems.md has the same. A definition (``systems/NAME.toml``, or a file of the
site) gives values for the second table; the pool's own options go before it. Pure.
"""

from __future__ import annotations

from vine_factory.batch.schema import SiteOption

_WORD = r"[^\s\"'`\\]*"
STATES = ("queued", "held", "running", "ended")
DIALECTS = ("none", "sge", "pbs", "torque", "lsf", "flux")

DEFINITION = (
    SiteOption("dialect", "str", "none", "Which lines in the job script the system reads its options from.",
               choices=DIALECTS),
    SiteOption("submit", "list", (), "Command that submits `$script` and prints the job's number."),
    SiteOption("script-on-stdin", "flag", False, "The submit command reads the script from its standard input."),
    SiteOption("submit-id", "str", r"^(?P<id>\S+)", "Regular expression for the number in what submit printed."),
    SiteOption("array", "list", (), "Words put in the place of `$array` when several jobs are submitted as one array, "
               "with the elements 1 to `$count`. Without it each job is submitted by itself."),
    SiteOption("array-size", "int", 500, "So many jobs in one array at most, 500 when nothing is said; "
               "1 = no arrays.", low=1, high=100_000),
    SiteOption("array-index", "str", "", "Variable that tells a job which element of its array it is.",
               pattern=r"\w*"),
    SiteOption("element-id", "str", "$id", "Number of one element: `$index` is the element, other names are groups of "
               "submit-id, and of poll-record where that has an `index`."),
    SiteOption("option-words", "table", {}, "Words put in the place of `$options`, each only when the option of that "
               "name is set: {queue = \"--queue=$queue\"}."),
    SiteOption("list", "list", (), "Command that prints the numbers of the user's jobs, for systems whose `poll` needs "
               "them as `$ids`."),
    SiteOption("list-id", "str", r"^(?P<id>\S+)", "Regular expression for one number in what list printed."),
    SiteOption("poll", "list", (), "Command that lists jobs."),
    SiteOption("poll-record", "str", "", "Regular expression for the line that begins a job; named groups as in "
               "poll-fields."),
    SiteOption("poll-fields", "table", {}, "Regular expressions for further lines of a job. Their named groups: id, "
               "state, name, tag, host, exit, said, started, ended, and index of an element of an array."),
    SiteOption("ended", "list", (), "Command that tells how jobs ended that are not listed any more: `$ids`, or run "
               "for one `$id`, or for one `$whole`."),
    SiteOption("whole-id", "str", r"^(?P<id>\S+)", "Regular expression for what `$whole` is of a job's number: the "
               "array of an element."),
    SiteOption("ended-record", "str", "", "As poll-record, for what ended printed; as poll prints it when not given."),
    SiteOption("ended-fields", "table", {}, "As poll-fields, for what ended printed."),
    SiteOption("states", "table", {}, "What the system's states mean: queued, held, running or ended."),
    SiteOption("exit-of-state", "table", {}, "Exit status of jobs in these states when the listing has none."),
    SiteOption("signal-base", "int", 128, "Exit statuses above this stand for signals.", low=0, high=65536),
    SiteOption("none", "str", "", "Regular expression for the words of poll or list when there are no jobs, or not "
               "those."),
    SiteOption("unavailable", "str", "", "Regular expression for the words of a command that did not reach the batch "
               "system; any other failure of submit is a refusal."),
    SiteOption("stop", "list", (), "Command that asks the running jobs `$ids` to end, by SIGTERM; cancel when not "
               "given."),
    SiteOption("cancel", "list", (), "Command that ends the jobs `$ids`."),
    SiteOption("check", "list", (), "Command that tells whether `$script` could be submitted."),
    SiteOption("describe", "list", (), "Command that tells all about the job `$id`, or its `$whole` array."),
)

OPTIONS = (
    SiteOption("system", "str", "", "Shipped definition to use; set by batch = \"pbs\" and the like.",
               pattern=r"[a-z]*"),
    SiteOption("definition", "str", "", "File with a definition of the site's own."),
    SiteOption("queue", "str", "", "Queue or partition.", pattern=_WORD),
    SiteOption("account", "str", "", "Account, bank or user group that pays.", pattern=_WORD),
    SiteOption("project", "str", "", "Project that the jobs count for.", pattern=_WORD),
    SiteOption("parallel-environment", "str", "", "Grid Engine: gives workers with several cores their slots.",
               pattern=_WORD),
    SiteOption("resources", "table", {}, "Further resources to ask for, by name.", pattern=_WORD),
    SiteOption("poll-timeout", "duration", 30.0, "How long one command may take.", low=1, high=3600),
    SiteOption("extra-directives", "list", (), "Options for further directive lines of the job script, as they are."),
    *(option._replace(default=None) for option in DEFINITION),
)
