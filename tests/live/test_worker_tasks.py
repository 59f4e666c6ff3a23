"""A real worker process runs real tasks for a fake manager: what tasks see, leave behind and cannot do."""

from __future__ import annotations

import hashlib
import os
import pickle
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_manager import FakeManager, WorkerProcess, command, dispatch, hash_object, put, python_task, wait_until

from taskvine_core import constants as c
from taskvine_core.model.tasks import KIND_PYTHON, RESULT_REMOTE, Mount, TaskSpec
from taskvine_core.protocol import messages as m
from taskvine_core.resources import Resources

pytestmark = pytest.mark.live


class Pair:
    def __init__(self, manager: FakeManager, worker: WorkerProcess) -> None:
        self.manager = manager
        self.worker = worker
        self.task_id = 0

    def run(self, spec: TaskSpec, *before: object, **options: object) -> m.TaskDone:
        self.task_id += 1
        self.manager.send(*before, dispatch(self.task_id, spec, **options))  # type: ignore[arg-type]
        return self.manager.done(self.task_id)

    def sh(self, text: str, **options: object) -> m.TaskDone:
        return self.run(command(text, **options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    manager = FakeManager()
    worker = WorkerProcess(
        manager.port,
        cwd=tmp_path_factory.mktemp("w"),
        env={**os.environ, "DISPLAY": ":0", "CORES": "9", "INHERITED": "yes", "OMP_NUM_THREADS": "3"},
    )
    try:
        manager.accept()
        manager.welcome(max_stdout_bytes=300_000)
        yield Pair(manager, worker)
    finally:
        worker.close()
        manager.close()


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


# ------------------------------------------------------------------------------------------- commands


def test_the_exit_code_is_the_commands_own_and_a_signal_is_its_number(pair: Pair) -> None:
    codes = [pair.sh(text).exit_code for text in ("exit 3", "nonexistent-command", "kill -TERM $$", "kill -9 $$")]
    assert codes == [3, 127, 15, 9]


def test_stdout_and_stderr_come_together_in_order_as_bytes(pair: Pair) -> None:
    done = pair.sh("echo a; echo b >&2; printf '\\377\\376c'")
    assert done.stdout == b"a\nb\n\xff\xfec" and done.stdout_bytes == 7 and done.result == c.VINE_RESULT_SUCCESS


def test_stdin_is_empty_and_the_task_leads_its_own_session(pair: Pair) -> None:
    done = pair.sh("cat; ps -o sid= -p $$ | tr -d ' '; echo $$")
    first, second = done.stdout.split()
    assert first == second


def test_the_environment_is_that_of_the_reference(pair: Pair) -> None:
    spec = command("env -0", env=(("MINE", "1"), ("INHERITED", None), ("CORES", "77")))
    done = pair.run(spec, allocation=Resources(2, 300, 40, 0))
    env = dict(item.split("=", 1) for item in done.stdout.decode().split("\0") if item)
    box = env["VINE_SANDBOX"]
    assert (env["CORES"], env["MEMORY"], env["DISK"], env["GPUS"], env["MINE"]) == ("2", "300", "40", "0", "1")
    assert env["OMP_NUM_THREADS"] == env["MKL_NUM_THREADS"] == "2"
    assert env["TMPDIR"] == env["TMP"] == env["TEMP"] == f"{box}/.taskvine.tmp"
    assert "DISPLAY" not in env and "INHERITED" not in env and "CUDA_VISIBLE_DEVICES" not in env
    assert env["WORKER_TMPDIR"].endswith("/temp") and box.startswith(str(pair.worker.workspace))


def test_assigned_gpus_are_visible(pair: Pair) -> None:
    spec = command("echo $CUDA_VISIBLE_DEVICES $GPUS_LIST")
    pair.task_id += 1
    pair.manager.send(m.Dispatch(pair.task_id, 0, spec, Resources(1, 1, 1, 0), ("1", "3"), (), ()))
    assert pair.manager.done(pair.task_id).stdout == b"1,3 1,3\n"


def test_a_command_longer_than_one_argument_may_be_runs(pair: Pair) -> None:
    assert pair.sh("echo " + "x" * 200_000).stdout_bytes == 200_001


def test_text_no_system_call_takes_makes_a_forsaken_task_not_a_dead_worker(pair: Pair) -> None:
    for spec in (command("echo a\0b"), command(":", env=(("A=B", "x"),)), command(":", env=(("A", "x\0"),))):
        done = pair.run(spec)
        assert done.result == c.VINE_RESULT_FORSAKEN and done.error
    assert pair.sh(":").exit_code == 0


def test_sandboxes_hide_what_earlier_tasks_left(pair: Pair) -> None:
    for _ in range(3):
        pair.sh("echo x > left; mkdir d; echo y > $TMPDIR/z; chmod 700 .")
        assert pair.sh("ls -A . $TMPDIR | grep -v taskvine | tr -d ':\\n'").stdout.strip() in (b"", b".")


# ------------------------------------------------------------------------------------------- inputs and outputs


def test_inputs_outputs_and_missing_outputs(pair: Pair) -> None:
    spec = command(
        "cat in/x > out; mkdir -p d/e; echo deep > d/e/f; ls -d made",
        inputs=(Mount("buffer-rnd-i", "in/x"),),
        outputs=(
            Mount("temp-rnd-o", "out"),
            Mount("temp-rnd-d", "d"),
            Mount("temp-rnd-m", "nope"),
            Mount("temp-rnd-k", "made", c.VINE_MOUNT_MKDIR),
        ),
    )
    done = pair.run(spec, put("buffer-rnd-i", b"data"))
    by_name = {o.name: o for o in done.outputs}
    assert done.exit_code == 0 and done.missing == ("nope",)
    assert by_name["temp-rnd-o"].inline == b"data" and by_name["temp-rnd-o"].sha256 == hashlib.sha256(b"data").digest()
    assert by_name["temp-rnd-d"].is_dir and by_name["temp-rnd-d"].inline is None
    assert by_name["temp-rnd-d"].sha256 == hash_object(pair.worker.workspace / "cache/temp-rnd-d").sha256
    again = command(
        "cat o; cat d/e/f; echo more > d/e/g; ls d/e", inputs=(Mount("temp-rnd-o", "o"), Mount("temp-rnd-d", "d"))
    )
    assert pair.run(again).stdout == b"datadeep\nf\ng\n"
    assert pair.run(again).stdout == b"datadeep\nf\ng\n"


def test_small_outputs_that_went_to_the_manager_do_not_pile_up_here(pair: Pair) -> None:
    before = set((pair.worker.workspace / "cache").iterdir())
    for number in range(3):
        name = f"buffer-rnd-small-{number}"
        out = (Mount(name, "o"),)
        done = pair.run(command("echo small > o; chmod 640 o", outputs=out), level=0)
        assert (done.outputs[0].inline, done.outputs[0].mode) == (b"small\n", 0o640)
    assert set((pair.worker.workspace / "cache").iterdir()) == before
    out = (Mount("buffer-rnd-large", "o"),)
    done = pair.run(command("head -c 100000 /dev/zero > o", outputs=out), level=0)
    assert done.outputs[0].inline is None and (pair.worker.workspace / "cache/buffer-rnd-large").exists()


def test_a_symlink_mount_is_a_link(pair: Pair) -> None:
    spec = command("readlink in; cat in", inputs=(Mount("buffer-rnd-l", "in", c.VINE_MOUNT_SYMLINK),))
    assert pair.run(spec, put("buffer-rnd-l", b"x")).stdout.endswith(b"/cache/buffer-rnd-l\nx")


@pytest.mark.parametrize(
    "make",
    [
        "ln -s /etc/passwd out",
        "ln -s ../../../../etc/passwd out",
        "ln -s /etc sub; ln -s sub/passwd out",
        "ln -s nowhere out",
        "mkfifo out",
    ],
)
def test_an_output_that_leads_out_of_the_sandbox_or_is_no_file_is_missing(pair: Pair, make: str) -> None:
    done = pair.run(command(make, outputs=(Mount("temp-rnd-esc", "out"),)))
    assert done.missing == ("out",) and not done.outputs


def test_an_output_through_a_linked_directory_that_leads_out_is_missing(pair: Pair) -> None:
    done = pair.run(command("rmdir sub; ln -s /etc sub", outputs=(Mount("temp-rnd-esc", "sub/passwd"),)))
    assert done.missing == ("sub/passwd",)


LINKED = Mount("temp-rnd-links", "d")


def _make_directory_with_links_out(pair: Pair, outside: Path) -> None:
    """An object of the cache whose links lead to ``outside``, and one that brings a directory of the same name."""
    outside.mkdir()
    (outside / "old").write_text("old")
    links = f"mkdir d && ln -s {outside} d/sub && ln -s {outside}/old d/file && ln -s {outside}/new d/none"
    done = pair.run(command(links, outputs=(LINKED,)))
    assert done.result == c.VINE_RESULT_SUCCESS and not done.missing, done.error
    done = pair.run(command("mkdir -p t/sub && echo evil > t/sub/f",
                            outputs=(Mount("temp-rnd-t", "t"),)))
    assert not done.missing


@pytest.mark.parametrize("second", [
    Mount("buffer-rnd-e", "d/sub/new"), Mount("buffer-rnd-e", "d/sub/old"), Mount("buffer-rnd-e", "d/file"),
    Mount("buffer-rnd-e", "d/none"), Mount("buffer-rnd-e", "d/none/x"), Mount("buffer-rnd-e", "d/sub/a/b"),
    Mount("buffer-rnd-e", "d/sub/l", c.VINE_MOUNT_SYMLINK), Mount("temp-rnd-t", "d"), Mount("temp-rnd-t", "d/sub"),
    Mount("temp-rnd-t", "d/sub/deep"),
], ids=lambda mount: f"{mount.name[:4]} {mount.remote}")
def test_no_input_is_placed_through_a_link_that_another_input_brings(
    pair: Pair, tmp_path: Path, second: Mount
) -> None:
    outside = tmp_path / "outside"
    _make_directory_with_links_out(pair, outside)
    pair.manager.send(put("buffer-rnd-e", b"evil"))
    done = pair.run(command(":", inputs=(LINKED, second)))
    assert done.result == c.VINE_RESULT_FORSAKEN and ("leads out" in done.error or "same name" in done.error)
    assert [path.name for path in outside.iterdir()] == ["old"] and (outside / "old").read_text() == "old"
    assert pair.run(command("cat d/file", inputs=(LINKED,))).stdout == b"old"   # the task itself may follow it


def test_no_output_is_taken_or_made_through_a_link_that_leads_out(pair: Pair, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    _make_directory_with_links_out(pair, outside)
    taken = ("d/sub/old", "d/file", "d/sub", "d/sub/a/b")
    outputs = tuple(Mount(f"temp-rnd-o{i}", remote, c.VINE_MOUNT_MKDIR if remote.endswith("b") else 0)
                    for i, remote in enumerate(taken))
    done = pair.run(command(":", inputs=(LINKED,), outputs=outputs))
    assert done.result == c.VINE_RESULT_SUCCESS and sorted(done.missing) == sorted(taken)
    assert [path.name for path in outside.iterdir()] == ["old"] and (outside / "old").read_text() == "old"


def test_an_input_may_be_below_a_link_that_stays_in_the_sandbox(pair: Pair) -> None:
    pair.run(command("mkdir -p d/v1 && ln -s v1 d/now", outputs=(Mount("temp-rnd-v", "d"),)))
    spec = command("cat d/v1/x", inputs=(Mount("temp-rnd-v", "d"), Mount("buffer-rnd-x", "d/now/x")))
    assert pair.run(spec, put("buffer-rnd-x", b"here")).stdout == b"here"


def test_an_output_that_is_a_link_inside_the_sandbox_is_its_target(pair: Pair) -> None:
    done = pair.run(command("echo real > r; ln -s r out", outputs=(Mount("temp-rnd-in", "out"),)))
    assert done.outputs[0].inline == b"real\n"


def test_names_that_climb_are_refused_and_the_worker_goes_on(pair: Pair) -> None:
    done = pair.run(command(":", outputs=(Mount("temp-rnd-x", "../x"),)))
    assert done.result == c.VINE_RESULT_FORSAKEN and "leaves the sandbox" in done.error
    pair.manager.send(put("../evil", b"x"))
    assert "unsafe" in pair.manager.expect(m.CacheInvalid).reason
    assert pair.sh(":").result == c.VINE_RESULT_SUCCESS


LARGE_BYTES = (1 << 20) + 1


def put_large(pair: Pair, name: str, path: Path) -> None:
    """A cached file above the size up to which inputs are copied."""
    path.write_bytes(b"x" * LARGE_BYTES)
    pair.manager.files = {name: path}
    pair.task_id += 1
    pair.manager.send(m.Fetch(name, pair.task_id, 1, 0o755, LARGE_BYTES, b"", m.SOURCE_MANAGER, "", 10.0))
    pair.manager.expect(m.CacheUpdate, lambda update: update.name == name)


@pytest.mark.parametrize(("mode", "seen"), [(0o755, b"755"), (0o666, b"644"), (0o600, b"600"), (0o440, b"640")])
def test_a_small_input_is_the_tasks_own_and_nobody_else_sees_what_it_does_to_it(
    pair: Pair, mode: int, seen: bytes
) -> None:
    name = f"buffer-rnd-own{mode:o}"
    pair.manager.send(put(name, b"echo ran\n", level=1, mode=mode))
    spec = command("stat -c %a in; echo echo more >> in; sh in", inputs=(Mount(name, "in"),))
    for _ in range(2):
        assert pair.run(spec).stdout == seen + b"\nran\nmore\n"
    cached = pair.worker.workspace / "cache" / name
    assert cached.read_bytes() == b"echo ran\n" and not cached.stat().st_mode & 0o222


def test_an_ordinary_user_may_write_to_a_small_input_and_not_to_a_large_one(pair: Pair, tmp_path: Path) -> None:
    put_large(pair, "file-rnd-keep", tmp_path / "keep")
    inputs = (Mount("buffer-rnd-mine", "mine"), Mount("file-rnd-keep", "keep"))
    spec = command(
        "stat -c '%a %h' mine keep; grep -q CapEff:.*0000000000000000 /proc/self/status "
        "&& echo >> mine && echo wrote; echo >> keep || echo refused",
        inputs=inputs,
    )
    # Root may write to everything: here it is told to give that up.
    shell = "sh -c " if os.geteuid() else "setpriv --bounding-set=-all --inh-caps=-all --no-new-privs sh -c "
    done = pair.run(
        spec._replace(command=shell + shlex.quote(spec.command)), put("buffer-rnd-mine", b"data\n", level=1)
    )
    assert done.stdout.startswith(b"644 1\n555 2\n") and b"wrote" in done.stdout and b"refused" in done.stdout, done


def test_a_large_file_changed_through_a_link_is_dropped_told_and_never_used(pair: Pair, tmp_path: Path) -> None:
    put_large(pair, "file-rnd-c", tmp_path / "c")
    inputs = (Mount("file-rnd-c", "in"),)
    assert pair.run(command("chmod u+w in; echo more >> in", inputs=inputs)).exit_code == 0
    done = pair.run(command("cat in", inputs=inputs))
    assert done.result == c.VINE_RESULT_FORSAKEN and "changed on disk" in done.error
    assert pair.manager.expect(m.CacheGone).names == ("file-rnd-c",)
    put_large(pair, "file-rnd-c", tmp_path / "c")
    assert pair.run(command("wc -c < in", inputs=inputs)).stdout == b"%d\n" % LARGE_BYTES


def test_a_task_may_change_small_files_of_a_directory_and_large_ones_are_noticed(pair: Pair) -> None:
    mount = (Mount("temp-rnd-tree", "d"),)
    make = f"mkdir -p d/e; echo 1 > d/e/f; chmod 640 d/e/f; head -c {LARGE_BYTES} /dev/zero > d/large"
    assert pair.run(command(make, outputs=mount)).exit_code == 0
    use = command("echo 2 > d/new; stat -c %a d/e/f; echo 2 >> d/e/f; cat d/e/f", inputs=mount)
    for _ in range(2):
        assert pair.run(use).stdout == b"640\n1\n2\n"
    assert pair.run(command("echo 2 >> d/large", inputs=mount)).exit_code == 0
    assert pair.run(command("cat d/e/f", inputs=mount)).result == c.VINE_RESULT_FORSAKEN


def test_copies_in_one_sandbox_are_bounded(pair: Pair) -> None:
    mount = (Mount("temp-rnd-many", "d"),)
    make = "mkdir d; for i in $(seq 20); do head -c 1000000 /dev/zero > d/$i; done"
    assert pair.run(command(make, outputs=mount)).exit_code == 0
    done = pair.run(command("find d -type f -links 1 | wc -l", inputs=mount))
    assert done.stdout == b"16\n"


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_truncated_or_removed_cached_file_is_noticed_before_use(pair: Pair, damage: str) -> None:
    name = f"buffer-rnd-{damage}"
    pair.manager.send(put(name, b"0123456789", level=1))
    assert pair.sh(":").exit_code == 0
    path = pair.worker.workspace / "cache" / name
    path.chmod(0o600)
    path.write_bytes(b"0") if damage == "truncate" else path.unlink()
    assert pair.run(command("cat in", inputs=(Mount(name, "in"),))).result == c.VINE_RESULT_FORSAKEN
    assert pair.manager.expect(m.CacheGone, lambda g: g.names == (name,))


# ------------------------------------------------------------------------------------------- stdout


def test_stdout_above_the_inline_limit_is_a_cached_object(pair: Pair) -> None:
    done = pair.sh("head -c 200000 /dev/zero | tr '\\0' a")
    assert done.stdout_bytes == 200_000 and len(done.stdout) == 65536 and done.stdout_name.startswith("stdout-rnd-")
    target = pair.worker.directory / "received"
    pair.manager.uploads[5] = target
    pair.manager.send(m.Upload(5, done.stdout_name, 10.0))
    wait_until(lambda: 5 in pair.manager.upload_ends, "the upload")
    assert target.read_bytes() == b"a" * 200_000


def test_a_flood_on_stdout_is_cut_with_a_notice_and_kills_nothing(pair: Pair) -> None:
    done = pair.sh("head -c 5000000 /dev/zero | tr '\\0' a; exit 4")
    assert (done.result, done.exit_code) == (c.VINE_RESULT_STDOUT_MISSING, 4)
    text = (pair.worker.workspace / "cache" / done.stdout_name).read_bytes()
    assert 300_000 < len(text) < 301_000 and b"cut here" in text


# ------------------------------------------------------------------------------------------- processes


@pytest.mark.parametrize(
    "background",
    [
        "sleep 1000 &",
        "setsid sleep 1000 &",
        "(setsid sh -c 'sleep 1000; :' &);",
        "env -i setsid sh -c 'cd /; sleep 1000 & sleep 1000' &",
    ],
)
def test_nothing_a_task_started_outlives_it(pair: Pair, background: str) -> None:
    done = pair.sh(f"{background} sleep 0.1; ps -e -o pid=,args= | grep '[s]leep 1000' | awk '{{print $1}}'")
    pids = [int(pid) for pid in done.stdout.split()]
    assert pids and done.exit_code == 0
    wait_until(lambda: not any(alive(pid) for pid in pids), f"the end of {pids}")


def test_a_daemon_of_a_running_task_is_left_alone(pair: Pair) -> None:
    pair.task_id += 1
    first = pair.task_id
    pair.manager.send(dispatch(first, command("setsid sh -c 'sleep 0.6; echo late > late' & sleep 1; cat late")))
    assert pair.sh(":").exit_code == 0
    assert pair.manager.done(first).stdout == b"late\n"


def test_a_kill_ends_the_whole_task_and_nothing_is_reported(pair: Pair) -> None:
    marker = pair.worker.directory / "pids"
    pair.manager.send(dispatch(9001, command(f"sleep 1001 & echo $! > {marker}.t; mv {marker}.t {marker}; wait")))
    wait_until(marker.exists, "the task to start")
    pair.manager.send(m.Kill((9001,)))
    wait_until(lambda: not alive(int(marker.read_text())), "the end of the sleeper")
    assert pair.sh(":").exit_code == 0
    assert not [x for x in pair.manager.inbox if isinstance(x, m.TaskDone)]


def test_the_wall_time_limit_kills_with_exit_code_nine(pair: Pair) -> None:
    done = pair.sh("echo begun; sleep 1002", time_max_s=0.3)
    assert (done.result, done.exit_code, done.stdout) == (c.VINE_RESULT_MAX_WALL_TIME, 9, b"begun\n")


def test_watched_outputs_stream_while_the_task_runs(pair: Pair) -> None:
    pair.task_id += 1
    gate = pair.worker.directory / "gate"
    text = f"echo one > w; until [ -e {gate} ]; do sleep 0.05; done; echo two >> w"
    pair.manager.send(dispatch(pair.task_id, command(text, outputs=(Mount("file-rnd-w", "w", c.VINE_WATCH),))))
    assert pair.manager.expect(m.WatchData).data == b"one\n"
    gate.touch()
    assert pair.manager.done(pair.task_id).outputs[0].inline == b"one\ntwo\n"


# ------------------------------------------------------------------------------------------- Python tasks


def local_function() -> Callable[[int], int]:
    """A function that pickles by value: the worker cannot import this module."""

    def double(value: int) -> int:
        print("doubling")
        return value * 2

    return double


double = local_function()


def test_a_python_task_returns_its_value_and_what_it_printed(pair: Pair) -> None:
    blob, spec = python_task(double, 21)
    done = pair.run(spec, blob)
    assert pickle.loads(done.outputs[0].inline or b"") == 42 and done.stdout == b"doubling\n" and done.exit_code == 0


def test_python_tasks_share_nothing_but_the_warm_interpreter(pair: Pair) -> None:
    def probe() -> tuple[int, int, bool, str]:
        import builtins

        seen = hasattr(builtins, "left_behind")
        builtins.left_behind = True  # type: ignore[attr-defined]
        return os.getppid(), os.getsid(0) - os.getpid(), seen, os.environ["VINE_SANDBOX"] + "|" + os.getcwd()

    blob, spec = python_task(probe, name="buffer-rnd-probe")
    one = pickle.loads(pair.run(spec, blob).outputs[0].inline or b"")
    two = pickle.loads(pair.run(spec, blob).outputs[0].inline or b"")
    assert one[0] == two[0] and one[1] == two[1] == 0 and not one[2] and not two[2]
    assert one[3].split("|")[0] == one[3].split("|")[1]


def test_each_python_task_sees_its_own_allocation_whatever_the_worker_was_started_with(pair: Pair) -> None:
    def numbers() -> list[str]:
        return [os.environ[name] for name in ("CORES", "OMP_NUM_THREADS", "MEMORY")]

    blob, spec = python_task(numbers, name="buffer-rnd-numbers")
    for cores, memory in ((2, 50), (1, 60), (3, 50)):
        done = pair.run(spec, blob, allocation=Resources(cores, memory, 10, 0))
        assert pickle.loads(done.outputs[0].inline or b"") == [str(cores), str(cores), str(memory)], done.stdout


def test_an_exception_is_a_traceback_on_stdout_and_exit_code_one(pair: Pair) -> None:
    def fail() -> None:
        raise ValueError("boo")

    blob, spec = python_task(fail, name="buffer-rnd-fail")
    done = pair.run(spec, blob)
    assert done.exit_code == 1 and b"ValueError: boo" in done.stdout and done.missing == (RESULT_REMOTE,)


def test_a_result_that_does_not_pickle_is_a_traceback_and_exit_code_one(pair: Pair) -> None:
    def lock() -> object:
        import threading

        return threading.Lock()

    blob, spec = python_task(lock, name="buffer-rnd-lock")
    done = pair.run(spec, blob)
    assert done.exit_code == 1 and b"pickle" in done.stdout


def test_without_serialization_the_function_must_return_bytes(pair: Pair) -> None:
    blob, spec = python_task(lambda: b"raw", name="buffer-rnd-raw", serialize=False)
    assert pair.run(spec, blob).outputs[0].inline == b"raw"
    blob, spec = python_task(lambda: 5, name="buffer-rnd-five", serialize=False)
    assert b"must return bytes" in pair.run(spec, blob).stdout


def test_exit_and_signals_of_a_python_task(pair: Pair) -> None:
    for number, (function, code) in enumerate(
        [(lambda: os._exit(7), 7), (lambda: __import__("sys").exit(4), 4), (lambda: os.kill(os.getpid(), 11), 11)]
    ):
        blob, spec = python_task(function, name=f"buffer-rnd-exit{number}")
        assert pair.run(spec, blob).exit_code == code


def test_arguments_may_come_from_a_file_and_the_sandbox_is_importable(pair: Pair) -> None:
    import cloudpickle

    def use(value: int) -> int:
        import helper_module

        return int(helper_module.factor) * value

    blob, spec = python_task(use, name="buffer-rnd-use")
    spec = spec._replace(
        arguments=b"",
        arguments_file="buffer-rnd-args",
        inputs=(*spec.inputs, Mount("buffer-rnd-args", ""), Mount("buffer-rnd-mod", "helper_module.py")),
    )
    done = pair.run(
        spec, blob, put("buffer-rnd-args", cloudpickle.dumps([(6,), {}])), put("buffer-rnd-mod", b"factor = 7\n")
    )
    assert pickle.loads(done.outputs[0].inline or b"") == 42, done


def test_a_python_tasks_children_die_with_it_and_its_wall_time_counts(pair: Pair) -> None:
    def hang() -> None:
        import subprocess
        import time

        print(subprocess.Popen(["setsid", "sleep", "1003"]).pid, flush=True)
        time.sleep(1000)

    blob, spec = python_task(hang, name="buffer-rnd-hang")
    done = pair.run(spec._replace(time_max_s=0.5), blob)
    assert (done.result, done.exit_code) == (c.VINE_RESULT_MAX_WALL_TIME, 9)
    wait_until(lambda: not alive(int(done.stdout)), "the end of the child")


def test_a_process_that_a_task_forks_finds_locks_free_and_threads_gone(pair: Pair) -> None:
    def fork() -> list[int]:
        import logging
        import signal
        import threading

        handler, held, over = logging.StreamHandler(), threading.Event(), threading.Event()
        logging.getLogger().addHandler(handler)

        def hold() -> None:
            handler.acquire()
            held.set()
            over.wait(60)
            handler.release()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(60)
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)        # the end of a lock that nobody will release
            logging.error("from the grandchild")
            os._exit(threading.active_count())
        _, status = os.waitpid(pid, 0)
        over.set()
        thread.join()
        return [os.WTERMSIG(status), os.WEXITSTATUS(status), threading.active_count()]

    blob, spec = python_task(fork, name="buffer-rnd-fork")
    done = pair.run(spec, blob)
    assert pickle.loads(done.outputs[0].inline or b"") == [0, 1, 1] and b"from the grandchild" in done.stdout


def test_what_a_task_logs_and_registers_for_its_end_is_done_at_its_end(pair: Pair) -> None:
    def log() -> None:
        import atexit
        import logging.handlers
        import sys

        kept = logging.handlers.MemoryHandler(100, target=logging.StreamHandler(sys.stdout))
        logging.getLogger().addHandler(kept)
        logging.warning("told early")
        atexit.register(lambda: logging.warning("told late"))

    blob, spec = python_task(log, name="buffer-rnd-log")
    assert pair.run(spec, blob).stdout == b"told early\ntold late\n"


def test_a_python_task_and_the_programs_it_starts_see_the_same_variables(pair: Pair) -> None:
    def compare() -> tuple[bool, str]:
        import subprocess

        seen = subprocess.run(["env", "-0"], stdout=subprocess.PIPE, check=True).stdout.split(b"\0")
        return dict(line.split(b"=", 1) for line in seen if line) == dict(os.environb), os.environ["MY_OWN"]

    for value in ("\u00e4", "b"):
        blob, spec = python_task(compare, name="buffer-rnd-compare")
        done = pair.run(spec._replace(env=(("MY_OWN", value), ("HOME", None))), blob)
        assert pickle.loads(done.outputs[0].inline or b"") == (True, value)


def test_a_killed_interpreter_forsakes_its_tasks_and_is_started_again(pair: Pair) -> None:
    def wait_for_death(path: str) -> None:
        import pathlib
        import time

        pathlib.Path(path).write_text(f"{os.getppid()} {os.getpid()}")
        time.sleep(1000)

    marker = pair.worker.directory / "interpreter"
    blob, spec = python_task(wait_for_death, str(marker), name="buffer-rnd-wait")
    pair.task_id += 1
    pair.manager.send(blob, dispatch(pair.task_id, spec))
    wait_until(lambda: marker.exists() and " " in marker.read_text(), "the task to start")
    server, child = map(int, marker.read_text().split())
    os.kill(server, signal.SIGKILL)
    done = pair.manager.done(pair.task_id)
    assert done.result == c.VINE_RESULT_FORSAKEN and "died" in done.error
    wait_until(lambda: not alive(child), "the end of the child")
    blob, spec = python_task(double, 4)
    assert pickle.loads(pair.run(spec, blob).outputs[0].inline or b"") == 8


def test_an_own_interpreter_and_a_command_prefix_run_once(pair: Pair) -> None:
    blob, spec = python_task(double, 5)
    prefix = f"env X=1 {sys.executable} -X dev -c 'import os,sys; os.execvp(sys.argv[1],sys.argv[1:])'"
    for changed in (spec._replace(interpreter=sys.executable), spec._replace(command=prefix)):
        done = pair.run(changed._replace(env=(("PATH", os.path.dirname(sys.executable) + ":/usr/bin:/bin"),)), blob)
        assert done.exit_code == 0 and pickle.loads(done.outputs[0].inline or b"") == 10, done


def test_an_interpreter_that_does_not_exist_is_the_tasks_own_failure(pair: Pair) -> None:
    blob, spec = python_task(double, 5)
    assert pair.run(spec._replace(interpreter="/nonexistent/python"), blob).exit_code == 127


def test_variables_read_at_interpreter_start_reach_the_task(pair: Pair) -> None:
    blob, spec = python_task(lambda: __import__("sys").flags.optimize, name="buffer-rnd-flags")
    done = pair.run(spec._replace(env=(("PYTHONOPTIMIZE", "2"),)), blob)
    assert pickle.loads(done.outputs[0].inline or b"") == 2


def preloading(
    function: Callable[..., object], name: str, *modules: str, **fields: object
) -> tuple[m.PutInline, TaskSpec]:
    blob, spec = python_task(function, name=name)
    return blob, spec._replace(preload=modules, **fields)


def test_preloaded_modules_are_there_before_the_task_and_each_set_has_its_interpreter(pair: Pair) -> None:
    def probe() -> tuple[int, bool]:
        import sys

        return os.getppid(), "colorsys" in sys.modules

    seen = []
    for number, modules in enumerate([(), ("colorsys",), ("colorsys", "email.mime.text"), ("colorsys",)]):
        blob, spec = preloading(probe, f"buffer-rnd-pre{number}", *modules)
        seen.append(pickle.loads(pair.run(spec, blob).outputs[0].inline or b""))
    assert [loaded for _, loaded in seen] == [False, True, True, True]
    parents = [parent for parent, _ in seen]
    assert len(set(parents)) == 3 and parents[1] == parents[3]


def test_interpreters_kept_are_few_and_the_longest_unused_goes_first(pair: Pair) -> None:
    def parent() -> int:
        return os.getppid()

    def run(module: str) -> int:
        blob, spec = preloading(parent, "buffer-rnd-lru", module)
        return int(pickle.loads(pair.run(spec, blob).outputs[0].inline or b""))

    first = {module: run(module) for module in ("wave", "cmd", "bdb", "csv")}
    assert run("wave") == first["wave"]
    run("pty")                                                       # one too many: cmd goes
    assert run("wave") == first["wave"] and run("csv") == first["csv"]
    wait_until(lambda: not alive(first["cmd"]), "the end of the interpreter not used for longest")


def test_a_module_that_cannot_be_imported_fails_the_task_with_the_imports_traceback(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "broken_module.py").write_text("import no_such_dependency\n")
    path = (("PYTHONPATH", str(tmp_path)),)
    blob, spec = preloading(double, "buffer-rnd-brk", "broken_module", "json", env=path)
    done = pair.run(spec._replace(arguments=pickle.dumps([(4,), {}])), blob)
    assert done.result == c.VINE_RESULT_SUCCESS and done.exit_code == 1
    assert b"broken_module.py" in done.stdout and b"No module named 'no_such_dependency'" in done.stdout
    (tmp_path / "no_such_dependency.py").write_text("")              # the same interpreter goes on serving
    assert pickle.loads(pair.run(spec._replace(arguments=pickle.dumps([(4,), {}])), blob).outputs[0].inline or b"") == 8


def test_a_module_in_the_sandbox_may_be_declared(pair: Pair) -> None:
    def use() -> int:
        import sys

        return int(sys.modules["sent_along"].value)

    blob, spec = preloading(use, "buffer-rnd-sent", "sent_along")
    spec = spec._replace(inputs=(*spec.inputs, Mount("buffer-rnd-along", "sent_along.py")))
    done = pair.run(spec, blob, put("buffer-rnd-along", b"value = 6\n"))
    assert pickle.loads(done.outputs[0].inline or b"") == 6, done.stdout


def test_a_module_that_kills_its_interpreter_is_left_to_the_tasks(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "deadly_module.py").write_text("import os; os.kill(os.getpid(), 11)\n")
    blob, spec = preloading(double, "buffer-rnd-dead", "deadly_module", env=(("PYTHONPATH", str(tmp_path)),))
    first = pair.run(spec, blob)
    assert first.result == c.VINE_RESULT_FORSAKEN and "died" in first.error
    second = pair.run(spec, blob)
    assert (second.result, second.exit_code) == (c.VINE_RESULT_SUCCESS, 11)


def test_a_module_that_starts_threads_is_imported_by_each_task(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "threaded_module.py").write_text(
        "import os, threading, time\nowner = os.getpid()\n"
        "threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n")

    def who() -> tuple[bool, int]:
        import threading

        import threaded_module

        return threaded_module.owner == os.getpid(), threading.active_count()

    blob, spec = preloading(who, "buffer-rnd-thr", "threaded_module", env=(("PYTHONPATH", str(tmp_path)),))
    assert pickle.loads(pair.run(spec, blob).outputs[0].inline or b"") == (True, 2)


def test_random_numbers_of_preloaded_modules_differ_between_tasks(pair: Pair, tmp_path: Path) -> None:
    """A stand-in for numpy: what counts is that seed() is called in the child."""
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text("")
    (tmp_path / "numpy" / "random.py").write_text("seeded = 0\ndef seed():\n    global seeded\n    seeded += 1\n")

    def draw() -> tuple[int, float]:
        import random

        import numpy.random

        return numpy.random.seeded, random.random()

    env = (("PYTHONPATH", str(tmp_path)),)
    blob, spec = preloading(draw, "buffer-rnd-dice", "numpy.random", "random", env=env)
    one, two = (pickle.loads(pair.run(spec, blob).outputs[0].inline or b"") for _ in range(2))
    assert one[0] == two[0] == 1 and one[1] != two[1]


def test_preloaded_libraries_see_one_thread_and_tasks_their_cores(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "counting_module.py").write_text("import os\nseen = os.environ['OMP_NUM_THREADS']\n")

    def both() -> tuple[str, str]:
        import counting_module

        return counting_module.seen, os.environ["OMP_NUM_THREADS"]

    env = (("PYTHONPATH", str(tmp_path)),)
    blob, spec = preloading(both, "buffer-rnd-omp", "counting_module", env=env)
    done = pair.run(spec, blob, allocation=Resources(2, 100, 100, 0))
    assert pickle.loads(done.outputs[0].inline or b"") == ("1", "2")


def test_a_preload_that_is_no_module_name_is_refused(pair: Pair) -> None:
    blob, spec = preloading(double, "buffer-rnd-bad", "os; evil")
    done = pair.run(spec, blob)
    assert done.result == c.VINE_RESULT_FORSAKEN and "not the name of a module" in done.error


# ------------------------------------------------------------------------------------------- data


def test_objects_are_fetched_from_manager_peer_and_url(pair: Pair, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(os.urandom(300_000))
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "f").write_text("leaf")
    manager = pair.manager
    manager.files = {"file-rnd-big": big, "file-rnd-tree": tree}
    manager.send(
        m.Fetch("file-rnd-big", 21, 1, 0, 300_000, b"", m.SOURCE_MANAGER, "", 10.0),
        m.Fetch("file-rnd-tree", 22, 1, 0, -1, b"", m.SOURCE_MANAGER, "", 10.0),
        m.Fetch("url-rnd-big", 23, 1, 0, -1, b"", m.SOURCE_URL, f"file://{big}", 10.0),
    )
    updates = {manager.expect(m.CacheUpdate, lambda u, t=t: u.transfer_id == t).sha256 for t in (21, 23)}  # type: ignore[misc]
    assert updates == {hashlib.sha256(big.read_bytes()).digest()}
    assert manager.expect(m.CacheUpdate, lambda u: u.transfer_id == 22).sha256 == hash_object(tree).sha256
    port = int(Path(f"/proc/{pair.worker.process.pid}").exists()) and pair_port(pair)
    manager.send(m.Fetch("file-rnd-copy", 24, 1, 0, -1, b"", m.SOURCE_PEER, f"127.0.0.1:{port}", 10.0))
    invalid = manager.expect(m.CacheInvalid, lambda i: i.transfer_id == 24)
    assert invalid.blame == m.BLAME_SOURCE  # a peer that does not have it
    spec = command(
        "cat t/sub/f; cmp a b && echo same",
        inputs=(Mount("file-rnd-tree", "t"), Mount("file-rnd-big", "a"), Mount("url-rnd-big", "b")),
    )
    assert pair.run(spec).stdout == b"leafsame\n"


def pair_port(pair: Pair) -> int:
    """The worker's own transfer port, from the kernel's table of listeners."""
    inodes = {
        os.readlink(f"/proc/{pair.worker.process.pid}/fd/{fd}")
        for fd in os.listdir(f"/proc/{pair.worker.process.pid}/fd")
    }
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                return int(fields[1].rpartition(":")[2], 16)
    raise AssertionError("no listening socket")


def test_a_hash_that_does_not_match_is_the_sources_fault_and_nothing_is_stored(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"content")
    pair.manager.files = {"file-rnd-bad": path}
    pair.manager.send(m.Fetch("file-rnd-bad", 31, 1, 0, 7, b"0" * 32, m.SOURCE_MANAGER, "", 10.0))
    assert pair.manager.expect(m.CacheInvalid, lambda i: i.transfer_id == 31).blame == m.BLAME_SOURCE
    assert not (pair.worker.workspace / "cache/file-rnd-bad").exists()
    assert not list((pair.worker.workspace / "transfer").iterdir())


def test_a_url_that_is_not_there_is_the_objects_fault(pair: Pair) -> None:
    pair.manager.send(m.Fetch("url-rnd-no", 41, 1, 0, -1, b"", m.SOURCE_URL, "file:///nonexistent/x", 10.0))
    assert pair.manager.expect(m.CacheInvalid, lambda i: i.transfer_id == 41).blame == m.BLAME_OBJECT


def test_a_mini_task_makes_an_object_that_tasks_use(pair: Pair) -> None:
    mini = m.MiniTask(
        "task-rnd-m", 51, 1, 0, command("mkdir out; cp in out/copy", inputs=(Mount("buffer-rnd-m", "in"),)), "out"
    )
    done = pair.run(command("cat x/copy", inputs=(Mount("task-rnd-m", "x"),)), put("buffer-rnd-m", b"mini"), mini)
    assert done.stdout == b"mini" and pair.manager.expect(m.CacheUpdate, lambda u: u.transfer_id == 51)


def test_unlinked_objects_leave_the_disk(pair: Pair) -> None:
    pair.manager.send(put("buffer-rnd-u", b"x", level=1))
    path = pair.worker.workspace / "cache/buffer-rnd-u"
    wait_until(path.exists, "the object")
    pair.manager.send(m.Unlink(("buffer-rnd-u",)))
    wait_until(lambda: not path.exists(), "its end")


def test_kind_python_is_a_number_the_manager_may_rely_on() -> None:
    assert KIND_PYTHON == 1


# ------------------------------------------------------------------------------------------- memory of the worker


def test_the_greediest_task_is_given_back_before_the_worker_outgrows_its_memory(tmp_path: Path) -> None:
    manager = FakeManager()
    worker = WorkerProcess(manager.port, "--cores", "4", "--memory", "200", cwd=tmp_path)
    try:
        manager.accept()
        manager.welcome()
        gate = tmp_path / "gate"
        hold = (
            "import sys, time, os\nx = b'x' * (int(sys.argv[1]) << 20)\n"
            "while not os.path.exists(sys.argv[2]): time.sleep(0.05)"
        )
        small, large = (f"exec {sys.executable} -c {shlex.quote(hold)} {mb} {gate}" for mb in (30, 400))
        allocation = Resources(1, 100, 10, 0)
        for task_id, text in ((1, small), (2, large)):
            manager.send(dispatch(task_id, command(text), allocation=allocation))
        done = manager.done(2)
        assert done.result == c.VINE_RESULT_FORSAKEN and done.exit_code == -1, done
        assert "it offers 200 MB" in done.error and "MB of 100 MB" in done.error
        gate.touch()
        done = manager.done(1)
        assert (done.result, done.exit_code) == (c.VINE_RESULT_SUCCESS, 0)
    finally:
        worker.close()
        manager.close()
