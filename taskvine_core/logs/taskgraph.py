"""Lines of the ``taskgraph`` log (reference, section 21.4), and the ``workflow.json`` text (21.5).

Owns their format. Must not know files or when a fact is told.
"""

from __future__ import annotations

import json

from taskvine_core.logs.debuglog import command_text
from taskvine_core.logs.text import one_line
from taskvine_core.model.tasks import TaskSpec

HEADER = """\
# taskvine taskgraph version 2
# TASK taskid "program" INPUTS fileid1 ... OUTPUTS fileid4 ...
# FILE fileid "source" size
"""
END = "# end\n"
_TASKVINE_PAGE = "https://ccl.cse.nd.edu/software/taskvine/"


class TaskGraphLines:
    """Collects lines."""

    def __init__(self) -> None:
        self.lines: list[str] = [HEADER]
        self._mini_tasks = 0

    def file(self, name: str, source: str, size_bytes: int) -> None:
        self.lines.append(f'FILE {name} "{_quotable(source)}" {max(0, size_bytes)}\n')

    def task(self, task_id: int, spec: TaskSpec) -> None:
        program = _program(spec)
        outputs = "".join([f"{mount.name} " for mount in spec.outputs])
        inputs = "".join([f"{mount.name} " for mount in spec.inputs])
        self.lines.append(f'TASK T{task_id} "{_quotable(program)}" INPUTS {inputs}OUTPUTS {outputs}\n')

    def mini_task(self, name: str, spec: TaskSpec) -> None:
        self._mini_tasks += 1
        program = _program(spec)
        inputs = "".join([f"{mount.name} " for mount in spec.inputs])
        self.lines.append(f'TASK T-{self._mini_tasks} "{_quotable(program)}" INPUTS {inputs}OUTPUTS {name}\n')

    def end(self) -> None:
        self.lines.append(END)


def workflow_json() -> str:
    """The provenance file written when the manager closes."""
    language = {"@id": _TASKVINE_PAGE, "@type": "ComputerLanguage", "name": "TaskVine",
                "identifier": {"@id": _TASKVINE_PAGE}, "url": {"@id": _TASKVINE_PAGE}}
    manager = {"@id": "managerInfo", "@name": "Manager description"}
    crate = {"@context": "https://w3id.org/ro/crate/1.1/context", "@graph": [language, manager]}
    return json.dumps(crate, indent=2) + "\n"


def _program(spec: TaskSpec) -> str:
    words = command_text(spec).split(None, 1)
    return words[0] if words else "-"


def _quotable(text: str) -> str:
    """Readers split like a shell, in double quotes: no quotes, no backslashes inside."""
    if '"' in text or "\\" in text:
        text = text.replace('"', "'").replace("\\", "/")
    return one_line(text)
