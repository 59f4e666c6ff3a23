"""Rules of starting processes, of the environments they get, and of sandboxes that are used again."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from taskvine_core.model.tasks import TaskSpec
from taskvine_core.resources import Resources
from taskvine_core.worker import sandbox
from taskvine_core.worker.encoded import ENCODED_MAX, Environments, encode_environment
from taskvine_core.worker.pool import Pool
from taskvine_core.worker.sandbox import Sandbox, Sandboxes
from taskvine_core.worker.spawn import Spawner
from taskvine_core.worker.store import Store

WAYS = pytest.mark.parametrize("plain", [False, True], ids=["fork_exec", "posix_spawn"])
ENV = encode_environment(dict(os.environ))


@pytest.fixture
def output(tmp_path: Path) -> Iterator[int]:
    before = os.getcwd()
    fd = os.open(tmp_path / "output", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
    yield fd
    os.close(fd)
    os.chdir(before)


def run(spawner: Spawner, script: str, cwd: Path, output: int, env: list[bytes] = ENV) -> tuple[int, str]:
    pid = spawner.start(("/bin/sh", "-c", script), str(cwd), env, output)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), os.pread(output, 1 << 16, 0).decode()


@WAYS
def test_a_child_has_its_directory_session_streams_and_variables(plain: bool, tmp_path: Path, output: int) -> None:
    env = [*ENV, b"A=a=b", b"B=\xff"]
    script = 'pwd; cat; echo "$A"; ps -o sid= -p $$; echo $$ >&2; exit 7'
    code, said = run(Spawner(plain), script, tmp_path, output, env)
    place, variable, session, pid = said.split()
    assert (code, place, variable) == (7, str(tmp_path.resolve()), "a=b") and session == pid


def is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False                # the one it was listed with


@WAYS
def test_a_child_has_no_descriptor_but_its_streams_and_those_to_keep(plain: bool, tmp_path: Path, output: int) -> None:
    spawner = Spawner(plain)
    kept, other = os.pipe2(os.O_CLOEXEC)
    try:
        pid = spawner.start(("/bin/ls", "/proc/self/fd"), str(tmp_path), ENV, output, (kept,))
        os.waitpid(pid, 0)
    finally:
        os.close(kept)
        os.close(other)
    seen = {int(fd) for fd in os.pread(output, 1 << 16, 0).split()}
    inherited = {int(fd) for fd in os.listdir("/proc/self/fd") if is_inheritable(int(fd))}
    first_free = min(set(range(100)) - inherited - {0, 1, 2, kept})     # ls has the directory itself open
    assert seen == inherited | {0, 1, 2, kept, first_free}


@WAYS
def test_a_child_has_the_default_signals_although_python_ignores_some(
    plain: bool, tmp_path: Path, output: int
) -> None:
    assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN
    _, said = run(Spawner(plain), "grep -E '^Sig(Ign|Blk)' /proc/self/status", tmp_path, output)
    known = (1 << 31) - 1           # above are the C library's own
    assert [int(line.split()[1], 16) & known for line in said.splitlines()] == [0, 0]


@WAYS
def test_what_cannot_be_started_says_why_and_leaves_no_child(plain: bool, tmp_path: Path, output: int) -> None:
    spawner = Spawner(plain)
    with pytest.raises(FileNotFoundError):
        spawner.start(("/no/such/program",), str(tmp_path), ENV, output)
    with pytest.raises(FileNotFoundError):
        spawner.start(("/bin/true",), str(tmp_path / "missing"), ENV, output)
    with pytest.raises(OSError, match="rgument list too long"):
        spawner.start(("/bin/true", "x" * (1 << 18)), str(tmp_path), ENV, output)
    with pytest.raises(ValueError, match="null"):
        spawner.start(("/bin/true", "a\0b"), str(tmp_path), ENV, output)
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    assert run(spawner, ":", tmp_path, output)[0] == 0


def test_an_interpreter_whose_subprocess_is_called_otherwise_still_starts_processes(
    tmp_path: Path, output: int
) -> None:
    spawner = Spawner()
    spawner._fork_exec = lambda: 0
    assert run(spawner, "echo here", tmp_path, output) == (0, "here\n")
    assert spawner._fork_exec is None


# ------------------------------------------------------------------------------------------- environments


def test_tasks_that_differ_in_anything_never_share_an_environment() -> None:
    environments = Environments({"PATH": "/bin"})
    spec, other = TaskSpec("x"), TaskSpec("x", env=(("V", "1"),))
    small, large = Resources(1, 1, 1, 0), Resources(2, 1, 1, 0)
    cases = [(spec, small, (), "/a"), (other, small, (), "/a"), (spec, large, (), "/a"), (spec, small, ("0",), "/a"),
             (spec, small, (), "/b")]
    made = [environments.encoded(*case) for case in cases]
    assert len({tuple(one) for one in made}) == len(cases)
    assert [environments.encoded(*case) for case in cases] == made
    assert b"VINE_SANDBOX=/b" in made[-1] and b"V=1" in made[1] and b"CORES=2" in made[2]


def test_environments_are_not_kept_without_bound() -> None:
    environments = Environments({})
    for number in range(3 * ENCODED_MAX):
        environments.encoded(TaskSpec("x"), Resources(1, 1, 1, 0), (), f"/{number}")
    assert len(environments._encoded) <= ENCODED_MAX


@pytest.mark.parametrize("name", ["", "A=B"])
def test_a_name_no_variable_can_have_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="environment variable"):
        encode_environment({name: "x"})


# ------------------------------------------------------------------------------------------- signals


def test_threads_of_a_pool_take_no_signals_of_children_and_their_starter_still_does() -> None:
    masks: list[set[int]] = []
    done = threading.Event()

    def look() -> None:
        masks.append({int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())})
        done.set()

    Pool("test", 1).submit(look)
    assert done.wait(10)
    assert signal.SIGCHLD in masks[0]
    assert signal.SIGCHLD not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


# ------------------------------------------------------------------------------------------- sandboxes


@pytest.fixture
def boxes(tmp_path: Path) -> Sandboxes:
    for name in ("cache", "transfer", "trash"):
        (tmp_path / name).mkdir()
    return Sandboxes(str(tmp_path), Store(str(tmp_path), lambda path: None))


def settled(boxes: Sandboxes) -> Sandbox:
    """A sandbox that was clean for so long that its directories are not read any more."""
    end = time.monotonic() + 10
    while True:
        box = boxes.make("task")
        if box.settled:
            return box
        assert time.monotonic() < end
        boxes.drop(box)


real_lstat = os.lstat

CHANGES = {
    "a file": "touch x",
    "a hidden file": "touch .x",
    "a temporary file": "touch .taskvine.tmp/x",
    "a directory": "mkdir x",
    "another output": "rm .taskvine.stdout; touch .taskvine.stdout",
    "no place for temporary files": "rmdir .taskvine.tmp",
    "another mode": "chmod 700 .",
    "another mode of the place for temporary files": "chmod 700 .taskvine.tmp",
    "another directory in its place": "mv ../$(basename $PWD) ../other; cp -r ../other ../$(basename $PWD)",
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_sandbox_in_which_a_task_left_anything_is_not_used_again(
    how: str, boxes: Sandboxes, tmp_path: Path, output: int
) -> None:
    box = settled(boxes)
    assert run(Spawner(), CHANGES[how], Path(box.path), output)[0] == 0
    boxes.drop(box)
    assert boxes.make("task") is not box


def coarse(path: str) -> SimpleNamespace:
    """A status as most kernels give it: times of change in steps of 10 ms."""
    status = real_lstat(path)
    step_ns = 10_000_000
    return SimpleNamespace(st_mode=status.st_mode, st_ino=status.st_ino, st_size=status.st_size,
                           st_ctime_ns=status.st_ctime_ns // step_ns * step_ns + 1)


@pytest.mark.parametrize("status_of", [os.lstat, coarse])
def test_a_sandbox_changed_at_once_after_it_was_looked_at_is_not_used_again(
    status_of: Any, boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox.os, "lstat", status_of)
    box = boxes.make("task")
    for number in range(200):
        boxes.drop(box)
        assert boxes.make("task") is box
        (Path(box.path) / f"{number}").touch()
        boxes.drop(box)
        after = boxes.make("task")
        assert after is not box
        box = after


def test_a_clean_sandbox_is_used_again_without_reading_it(boxes: Sandboxes, monkeypatch: pytest.MonkeyPatch) -> None:
    box = settled(boxes)
    os.write(box.stdout_fd, b"said")
    monkeypatch.setattr(sandbox.os, "listdir", lambda path: pytest.fail("it was read"))
    boxes.drop(box)
    assert boxes.make("task") is box and box.stdout_bytes == 0
