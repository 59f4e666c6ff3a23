"""``enable_tasks_cache``: results of identical tasks are not computed again (reference, section 18.3).

Owns which tasks are looked up and kept, and what a known result does to the task object. How results are recognised and
kept is fingerprint.py and task_cache.py. Runs in the program's thread; the core never hears of a hit.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from taskvine_core.constants import (
    VINE_BUFFER,
    VINE_FILE,
    VINE_MINI_TASK,
    VINE_RESULT_SUCCESS,
    VINE_URL,
)
from taskvine_core.manager import naming
from taskvine_core.manager.cached_result import CACHED, CachedTaskResult
from taskvine_core.manager.events import TaskOutcome, TaskTimes
from taskvine_core.manager.file import File, FileHome
from taskvine_core.manager.fingerprint import NoFingerprintError, digest_of
from taskvine_core.manager.python_task import PythonTask
from taskvine_core.manager.task import Task
from taskvine_core.manager.task_cache import Content, Entry, TasksCache
from taskvine_core.model.files import FileDecl
from taskvine_core.protocol.messages import NOT_MEASURED
from taskvine_core.resources import ZERO

#: Standard output kept with a Python task's result; a task that writes more is run again each time.
STDOUT_MAX_BYTES = 1 << 16
_MAY_RUN = 0o100


class _Draft:
    """A fingerprint of which the digests of inputs that other tasks still make are missing."""

    def __init__(self, head: bytes, inputs: list[tuple[str, bytes | File]]) -> None:
        self._head = head
        self._inputs = inputs

    @property
    def waits(self) -> bool:
        return any(isinstance(part, File) for _, part in self._inputs)

    def finished(self) -> str:
        parts = [(remote, _content(part) if isinstance(part, File) else part) for remote, part in self._inputs]
        return digest_of((self._head, parts)).hex()


class ResultCache:
    """The cache of one manager.

    Args:
        store: results on disk.
        home: of the manager.
        unfinished: tasks that were submitted before.
    """

    def __init__(self, store: TasksCache, home: FileHome, unfinished: list[Task]) -> None:
        self._store = store
        self._home = home
        self._drafts: dict[int, _Draft | None] = {}  # of every task that is on its way
        self._being_made: Counter[str] = Counter()
        self._complained = False
        for task in unfinished:
            self.submitted(task, None)

    def look_up(self, task: Task) -> CachedTaskResult | _Draft | None:
        """A known result; or what is to be given to ``submitted``."""
        try:
            draft = self._draft(task)
            if draft is None or draft.waits:
                return draft
            fingerprint = draft.finished()
            entry = self._store.find(fingerprint)
            if entry is None or not self._apply(task, entry):
                return draft
        except (NoFingerprintError, OSError):
            return None
        return CachedTaskResult(fingerprint, task)

    def submitted(self, task: Task, draft: _Draft | None) -> None:
        """The task was not known and is on its way."""
        self._being_made.update(_made_by(task))
        self._drafts[task._id] = draft

    def returned(self, task: Task) -> None:
        """The program gets the task: keep its result."""
        if task._id not in self._drafts:
            return  # it was returned before, and put back
        self._being_made.subtract(_made_by(task))
        draft = self._drafts.pop(task._id)
        if draft is None:
            return
        facts: dict[str, Any] = {"result": task.result, "exit_code": task.exit_code, "command": task.command,
                                 "tag": task.tag, "category": task.category, "hostname": task.hostname}
        try:
            if not task.successful():
                self._store.failed(draft.finished(), facts)
                return
            parts = self._parts(task)
            text = task.std_output or ""
            if parts is not None and (not isinstance(task, PythonTask) or len(text) <= STDOUT_MAX_BYTES):
                kept = text if isinstance(task, PythonTask) else ""
                runs = [name for name, part in parts.items() if isinstance(part, Path) and os.access(part, os.X_OK)]
                self._store.put(draft.finished(), parts, {**facts, "std_output": kept, "executable": runs})
        except NoFingerprintError:
            return
        except OSError as error:
            if not self._complained:
                self._complained = True
                sys.stderr.write(f"taskvine: a result could not be kept in {self._store.directory}: {error}\n")

    # ------------------------------------------------------------------ recognising

    def _draft(self, task: Task) -> _Draft | None:
        """None for a task that is never recognised."""
        inputs: list[tuple[str, bytes | File]] = []
        for file, mount, _ in task._inputs or ():
            remote = mount[0].remote
            if self._being_made[file.cached_name] > 0:
                if file._decl.kind != VINE_BUFFER and not _within(file._decl.source, self._home.staging):
                    return None  # others may write it again before this task is over
                inputs.append((remote, file))
            else:
                inputs.append((remote, _content(file)))
        inputs.sort(key=lambda pair: pair[0])
        outputs = sorted(mount[0].remote for _, mount, _ in task._outputs or ())
        what: tuple[Any, ...] = ("command", task._command)
        if isinstance(task, PythonTask):
            what = ("python", task._command, task._call, task._serialize)
        return _Draft(digest_of((what, sorted((task._env or {}).items()), outputs)), inputs)

    # ------------------------------------------------------------------ keeping and giving back

    def _parts(self, task: Task) -> dict[str, Content] | None:
        """Outputs by their names in the store; None when there is something that is not kept."""
        parts: dict[str, Content] = {}
        if isinstance(task, PythonTask):
            raw = None if task._output_file is None else task._output_file._raw()
            if raw is None:
                return None
            parts[""] = raw
        elif task._outcome is not None:
            outcome = task._outcome
            parts[""] = Path(outcome.stdout_path) if outcome.stdout_path else outcome.stdout
        for number, (file, _, _) in enumerate(task._outputs or (), 1):
            raw = file._raw() if file._decl.kind in (VINE_FILE, VINE_BUFFER) else None
            if raw is None or (isinstance(raw, Path) and not raw.is_file()):
                return None
            parts[str(number)] = raw
        return parts

    def _apply(self, task: Task, entry: Entry) -> bool:
        """Make the task one that has succeeded, its outputs where it would have put them."""
        outputs = [file for file, _, _ in task._outputs or ()]
        names = {"", *(str(number) for number in range(1, len(outputs) + 1))}
        kinds = (VINE_FILE, VINE_BUFFER)
        if set(entry.parts) != names or any(file._decl.kind not in kinds for file in outputs):
            return False
        if any(file._decl.kind == VINE_BUFFER and file._announced for file in outputs):
            return False
        for number, file in enumerate(outputs, 1):
            _give(file, entry.parts[str(number)].read_bytes(), self._home)
            if str(number) in entry.facts["executable"] and file._decl.kind == VINE_FILE:
                os.chmod(file._decl.source, os.stat(file._decl.source).st_mode | _MAY_RUN)
        stdout = entry.facts["std_output"].encode()
        own = entry.parts[""].read_bytes()
        if isinstance(task, PythonTask):
            output = File(self._home, FileDecl(naming.random_name("buffer"), VINE_BUFFER, level=task._output_level),
                          auto=True, spill=True)
            _give(output, own, self._home)
            task._output_file = output
        else:
            stdout = own
        now = time.time()
        task._outcome = TaskOutcome(0, VINE_RESULT_SUCCESS, 0, stdout, "", CACHED, CACHED, ZERO, NOT_MEASURED, None,
                                    TaskTimes(submitted=now, done=now), 0, 0, 0, "")
        return True


def _give(file: File, data: bytes, home: FileHome) -> None:
    """Content for an output that nobody has to write any more."""
    decl = file._decl
    if decl.kind == VINE_BUFFER:
        path = home.stage(data, "outputs")
        file._decl = decl._replace(source=path, size=len(data), sha256=hashlib.sha256(data).digest())
        if file._bytes is not None:
            file._bytes.path = path
        return
    temporary = f"{decl.source}.{naming.random_letters()}"
    Path(decl.source).parent.mkdir(parents=True, exist_ok=True)
    Path(temporary).write_bytes(data)
    os.replace(temporary, decl.source)


def _made_by(task: Task) -> list[str]:
    """Names of the files that the task writes."""
    made = [file.cached_name for file, _, _ in task._outputs or ()]
    own = getattr(task, "_output_file", None)
    return [*made, own.cached_name] if own is not None else made


def _content(file: File) -> bytes:
    """A digest of what the file holds; NoFingerprintError when that cannot be told."""
    decl = file._decl
    if decl.kind in (VINE_URL, VINE_MINI_TASK) and "-md5-" in decl.name:
        return digest_of(decl.name)
    if decl.kind == VINE_FILE and os.path.exists(decl.source):
        is_dir = os.path.isdir(decl.source)
        runs = not is_dir and os.access(decl.source, os.X_OK)
        return digest_of((naming.content_digests(decl.source, is_dir), is_dir, runs))
    if decl.kind == VINE_BUFFER and (raw := file._raw()) is not None:
        return digest_of((raw if isinstance(raw, bytes) else raw.read_bytes(), decl.mode))
    raise NoFingerprintError(f"nobody can tell what {file.cached_name} will hold")


def _within(path: str, directory: str) -> bool:
    return path.startswith(os.path.join(directory, ""))
