"""Writes the parts of the documentation that come from tables in the code.

    python tools/draw_states.py            rewrite the pages in docs/
    python tools/draw_states.py --check    say which pages are stale, exit with 1 if any is

Owns the text between ``<!-- generated: NAME -->`` and ``<!-- end of NAME -->``: state diagrams from the transition
tables, message tables from the protocol's numbers, option tables from the tables that parse the options. Must not
touch a word outside of these marks.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
for _folder in (ROOT / "factory", ROOT):
    sys.path.insert(0, str(_folder))

from taskvine_core.constants import TASK_STATE_NAMES, VINE_TASK_DONE, VINE_TASK_INITIAL  # noqa: E402
from taskvine_core.dataplane.messages import DATA_NUMBERS  # noqa: E402
from taskvine_core.manager import states  # noqa: E402
from taskvine_core.manager.tuning import TUNING_NAMES, Tuning  # noqa: E402
from taskvine_core.protocol.handshake import ACCEPTED, ROLE_CODES  # noqa: E402
from taskvine_core.protocol.messages import NUMBERS  # noqa: E402
from taskvine_core.worker import machines, options  # noqa: E402
from vine_factory import config, jobs, metrics  # noqa: E402
from vine_factory.batch import registry  # noqa: E402
from vine_factory.batch.schema import allowed  # noqa: E402
from vine_factory.preview import shown_value  # noqa: E402

#: Unit suffixes of tuning attributes, and how they are written in a table.
TUNING_UNITS = {"": "", "_s": "s", "_mb_s": "MB/s", "_bytes": "bytes"}

#: A line of a diagram: from, to, label.
Edge = tuple[str, str, str]

_BLOCK = re.compile(r"<!-- generated: (?P<name>[a-z-]+) -->\n.*?<!-- end of (?P=name) -->", re.DOTALL)


# ---------------------------------------------------------------------------- diagrams


def diagram(edges: Iterable[Edge], start: str, ends: Iterable[str] = ()) -> str:
    """A Mermaid state diagram. Edges between the same two states share one arrow.

    Args:
        edges: in the order in which they are to appear.
        start: the first state.
        ends: states that nothing follows.
    """
    labels: dict[tuple[str, str], list[str]] = {}
    for old, new, label in edges:
        labels.setdefault((old, new), []).append(label)
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {start}"]
    for (old, new), words in labels.items():
        said = ", ".join(word for word in words if word)
        lines.append(f"    {old} --> {new}" + (f": {said}" if said else ""))
    lines += [f"    {state} --> [*]" for state in ends]
    return "\n".join([*lines, "```"])


def _unlabelled(table: Mapping[int, Iterable[int]], names: tuple[str, ...]) -> list[Edge]:
    return [(names[old], names[new], "") for old, following in table.items() for new in sorted(following)]


def _labelled(table: Mapping[tuple[str, str], str]) -> list[Edge]:
    return [(old, new, event) for (old, event), new in table.items()]


def task_diagram() -> str:
    """Life of a task at the manager."""
    return diagram(_unlabelled(states.TASK_TRANSITIONS, TASK_STATE_NAMES), TASK_STATE_NAMES[VINE_TASK_INITIAL],
                   [TASK_STATE_NAMES[VINE_TASK_DONE]])


def connected_worker_diagram() -> str:
    """Life of a connected worker at the manager."""
    names = states.WORKER_NAMES
    return diagram(_unlabelled(states.WORKER_TRANSITIONS, names), names[states.WORKER_SERVING],
                   [names[states.WORKER_LEAVING]])


def object_diagram() -> str:
    """Life of an object in a worker's cache."""
    return diagram(_labelled(machines.OBJECT_TABLE), machines.CREATING, [machines.DELETED])


def run_diagram() -> str:
    """Life of one run at a worker."""
    return diagram(_labelled(machines.RUN_TABLE), machines.QUEUED, [machines.DONE])


def job_diagram() -> str:
    """Life of one batch job at the factory."""
    edges = [(old.name, new.name, fact.value) for old, facts in jobs.TABLE.items() for fact, new in facts.items()]
    return diagram(edges, jobs.JobState.INTENDED.name, [jobs.JobState.ENDED.name])


# ---------------------------------------------------------------------------- tables


def table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; a bar inside a cell is escaped."""
    first = [str(head) for head in heads]
    lines = [first, ["---"] * len(first), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def first_sentence(text: str) -> str:
    """Of a docstring, on one line, with its end; without pointers to sections of the reference."""
    flat = re.sub(r" \((?:reference, )?section [^)]*\)", "", " ".join(text.split())).replace("``", "`")
    return flat.partition(". ")[0].removesuffix(".") + "." if flat else ""


def message_table(numbers: Mapping[type, int]) -> str:
    """Number, name, fields and meaning of each message."""
    rows = []
    for cls, number in sorted(numbers.items(), key=lambda item: item[1]):
        fields = ", ".join(f"`{name}`" for name in cls._fields)  # type: ignore[attr-defined]
        rows.append((number, f"`{cls.__name__}`", fields, first_sentence(cls.__doc__ or "")))
    return table(("number", "message", "fields", "meaning"), rows)


def control_messages() -> str:
    """Messages on control connections."""
    return message_table(NUMBERS)


def data_messages() -> str:
    """Messages on data connections."""
    return message_table(DATA_NUMBERS)


def roles() -> str:
    """Who may connect to whom."""
    return table(("listens", "takes connections of", "code of the initiator"),
                 [(f"{responder} ({ROLE_CODES[responder]})", f"`{role}`", ROLE_CODES[role])
                  for responder, initiators in ACCEPTED.items() for role in initiators])


def worker_options() -> str:
    """What `vine_worker -h` prints."""
    return f"```text\n{options.usage()}\n```"


def factory_options() -> str:
    """Options of the factory, with their defaults and whether a configuration file may have them."""
    rows = []
    for option in config.OPTIONS.values():
        unset = option.kind == "flag" or option.default in ("", (), -1)
        default = option.default if isinstance(option.default, str) else f"{option.default:g}" if not unset else ""
        rows.append((f"`--{option.key}`", "" if unset else default, "yes" if option.in_file else "",
                     option.help))
    return table(("option", "default", "in file", "meaning"), rows)


#: Published parameters that nothing reads, and why.
WITHOUT_EFFECT = {
    "long-timeout": "no exchange blocks the manager; `keepalive-timeout` bounds silence",
    "max-library-retries": "there are no libraries yet",
    "max-new-workers": "all that wait are taken at once",
    "max-retrievals": "results arrive while the program computes; none is fetched in turn",
    "monitor-interval": "there is no resource monitor yet",
    "prefer-dispatch": "dispatch never waits for the program to take results",
    "resource-management-interval": "workers report changes by themselves, at most every 30 s",
    "short-timeout": "no exchange blocks the manager; a handshake has 10 s",
    "transfer-temps-recovery": "always done: a leaving worker's only copies are taken first",
    "update-interval": "a manager's advertisement is a local file, renewed every 5 s",
    "watch-library-logfiles": "there are no libraries yet",
    "worker-retrievals": "results arrive as they come; none is fetched in turn",
}


def factory_metrics() -> str:
    """What `--metrics-port` serves."""
    return table(("metric", "labels", "meaning"), [(f"`{metric.name}`", ", ".join(metric.labels), metric.help)
                                                   for metric in metrics.METRICS])


def batch_systems() -> str:
    """Batch systems whose drivers are there, with what is assumed of them when nothing is said."""
    names: dict[str, list[str]] = {name: [name] for name in registry.usable()}
    for alias, name in registry.ALIASES.items():
        names.get(name, []).append(alias)
    return table(("`batch`", "", "worker and key", "managers are found by", "looked at every", "its options"), [
        (", ".join(f"`{one}`" for one in known), (driver := registry.DRIVERS[name]).title, driver.deliver,
         registry.MANAGERS[driver.deliver], f"{driver.period_s:g} s",
         f"`[pool.NAME.{driver.table}]`" if driver.options else "none") for name, known in names.items()])


def pool_options() -> str:
    """What a pool's table may have, with the values that are allowed."""
    return table(("key", "value", "meaning"), [(f"`{option.key}`", allowed(option), option.help)
                                               for option in config.POOL_OPTIONS])


def condor_options() -> str:
    """The table of options of HTCondor pools."""
    return system_options("condor")


def slurm_options() -> str:
    """The table of options of Slurm pools."""
    return system_options("slurm")


def drmaa_options() -> str:
    """The table of options of pools on Grid Engine and other systems with DRMAA."""
    return system_options("drmaa")


def command_options() -> str:
    """The table of options of pools on batch systems driven by their commands."""
    return system_options("command")


def system_options(name: str) -> str:
    """The table of options of one batch system."""
    return table(("key", "value", "default", "meaning"), [
        (f"`{option.key}`", allowed(option), shown_value(option.default) if option.default not in (None, "", (), {})
         else "", option.help) for option in registry.options_of(name)])


def tuning() -> str:
    """Names that ``Manager.tune`` takes, their defaults, and whether anything reads them."""
    code = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "taskvine_core").rglob("*.py"))
                   if path.name != "tuning.py")
    defaults = {field.name: field.default for field in dataclasses.fields(Tuning)}
    rows = []
    for name in TUNING_NAMES:
        attribute = next((attribute for unit in TUNING_UNITS
                          if (attribute := name.replace("-", "_") + unit) in defaults), "")
        if attribute:  # aliases have no attribute of their own
            used = re.search(rf"\.{attribute}\b", code) is not None
            value = defaults[attribute]
            rows.append((f"`{name}`", int(value) if isinstance(value, bool) else f"{value:.12g}",
                         TUNING_UNITS[attribute.removeprefix(name.replace("-", "_"))],
                         "" if used else f"no effect: {WITHOUT_EFFECT[name]}"))
    return table(("name", "default", "unit", ""), rows)


GENERATORS: dict[str, Callable[[], str]] = {
    "task": task_diagram,
    "connected-worker": connected_worker_diagram,
    "object": object_diagram,
    "run": run_diagram,
    "job": job_diagram,
    "control-messages": control_messages,
    "data-messages": data_messages,
    "roles": roles,
    "worker-options": worker_options,
    "factory-options": factory_options,
    "factory-metrics": factory_metrics,
    "batch-systems": batch_systems,
    "pool-options": pool_options,
    "condor-options": condor_options,
    "slurm-options": slurm_options,
    "drmaa-options": drmaa_options,
    "command-options": command_options,
    "tuning": tuning,
}


# ---------------------------------------------------------------------------- pages


def filled(page: str) -> str:
    """A page with every generated part as it should be now.

    Raises:
        KeyError: a mark names a generator that does not exist.
    """
    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- generated: {name} -->\n{GENERATORS[name]()}\n<!-- end of {name} -->"

    return _BLOCK.sub(fill, page)


def names_in(page: str) -> list[str]:
    """The generated parts of a page, in order."""
    return [match["name"] for match in _BLOCK.finditer(page)]


def main(arguments: list[str]) -> int:
    """Rewrite or check the pages; returns the exit status."""
    stale = []
    for path in sorted(DOCS.glob("*.md")):
        old = path.read_text(encoding="utf-8")
        new = filled(old)
        if new != old:
            stale.append(path)
            if "--check" not in arguments:
                path.write_text(new, encoding="utf-8")
    for path in stale:
        print(f"{path.relative_to(ROOT)} {'is stale' if '--check' in arguments else 'rewritten'}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
