"""Rules of the worker's smaller parts: options, environment, detection, store, workspace, pool, finder, fetches."""

from __future__ import annotations

import fcntl
import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from taskvine_core.errors import ConfigError, DiscoveryError, IntegrityError, SourceError
from taskvine_core.model.tasks import Mount, TaskSpec
from taskvine_core.resources import Resources
from taskvine_core.worker import detect, pyserver, warm
from taskvine_core.worker.environment import base_environment, task_environment
from taskvine_core.worker.finder import QUERY_INTERVAL_S, Finder
from taskvine_core.worker.jobs import split_address
from taskvine_core.worker.life import NEVER, WALLTIME_MARGIN_S, Life, LifeSettings
from taskvine_core.worker.options import Options, parse, usage
from taskvine_core.worker.pool import Mailbox, Pool
from taskvine_core.worker.sandbox import CLEAN_MAX_INPUTS, Sandboxes
from taskvine_core.worker.store import Store, tree_size
from taskvine_core.worker.workspace import LOCK_NAME, open_workspace

# ------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["h", "9123"], "addresses", (("h", 9123),)),
        (["h:1;g:2"], "addresses", (("h", 1), ("g", 2))),
        (["[::1]:5"], "addresses", (("::1", 5),)),
        (["-M", "a.*"], "manager_name", "a.*"),
        (["--master-name=x"], "manager_name", "x"),
        (["-t", "5", "h:1"], "idle_timeout_s", 5.0),
        (["-t5", "h:1"], "connect_timeout_s", 5.0),
        (["-t", "5", "--idle-timeout", "7", "h:1"], "idle_timeout_s", 7.0),
        (["--cores", "all", "h:1"], "cores", -1),
        (["--cores=0", "h:1"], "cores", -1),
        (["--gpus", "0", "h:1"], "gpus", 0),
        (["--workdir", "/x", "h:1"], "workspace", "/x"),
        (["--transfer-port", "5:9", "h:1"], "transfer_ports", (5, 9)),
        (["--transfer-port", "5", "h:1"], "transfer_ports", (5, 5)),
        (["--feature", "a", "--feature", "b", "h:1"], "features", ("a", "b")),
        (["--memory-threshold", "5", "-a", "--disk-threshold=3", "--bandwidth", "9", "h:1"], "addresses", (("h", 1),)),
        (["--disk-percent", "30%", "h:1"], "disk_percent", 30.0),
    ],
)
def test_options_mean_what_the_reference_says(words: list[str], field: str, value: object) -> None:
    assert getattr(parse(words, {}), field) == value


def test_environment_variables_stand_in_for_absent_options() -> None:
    options = parse(["--cores", "2", "h:1"], {"CORES": "9", "MEMORY": "77", "DISK": "all", "GPUS": "0"})
    assert (options.cores, options.memory_mb, options.disk_mb, options.gpus) == (2, 77, -1, 0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--cors", "2", "h:1"], "did you mean --cores"),
        (["--cores", "x", "h:1"], "option --cores has the value 'x'"),
        (["--disk-percent", "0", "h:1"], "percentage"),
        (["--timeout", "-1", "h:1"], "number of seconds"),
        (["--single-shot=1", "h:1"], "takes no value"),
        (["--connection-mode", "x", "h:1"], "by_ip"),
        (["--min-backoff", "9", "h:1"], "smaller than"),
        (["-M", "n", "h", "1"], "both given"),
        (["h:1;g"], "not HOST:PORT"),
        (["h", "0"], "port '0'"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_expected(words: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(words, {})
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_the_help_names_every_option_of_the_reference() -> None:
    text = usage()
    for name in (
        "--manager-name",
        "--catalog",
        "--debug-rotate-max",
        "--tls-sni",
        "--wall-time",
        "--parent-death",
        "--from-factory",
        "--max-transfer-procs",
        "--contact-hostport",
        "--task-wrapper",
        "-w",
        "-A",
        "-O",
    ):
        assert name in text


# ------------------------------------------------------------------------------------------- environment


def test_what_the_worker_decides_beats_what_the_user_sets_and_none_removes() -> None:
    base = base_environment(
        {"PATH": "/bin", "CORES": "9", "DISPLAY": ":0", "VINE_SANDBOX": "/old", "A": "1"}, "/w/temp"
    )
    assert base == {"PATH": "/bin", "A": "1", "WORKER_TMPDIR": "/w/temp"}
    spec = TaskSpec("x", env=(("A", None), ("B", "2"), ("CORES", "77"), ("OMP_NUM_THREADS", "5")))
    env = task_environment(base, spec, Resources(0, 5, 6, 1), ("0",), "/w/task.1")
    assert "A" not in env and env["B"] == "2" and env["CORES"] == "0" and env["OMP_NUM_THREADS"] == "1"
    assert env["CUDA_VISIBLE_DEVICES"] == "0" and env["GPUS"] == "1" and base["A"] == "1"


# ------------------------------------------------------------------------------------------- detection


def test_quotas_of_both_kinds_of_cgroups_limit_what_is_offered(tmp_path: Path) -> None:
    inner = tmp_path / "slice" / "job"
    inner.mkdir(parents=True)
    (tmp_path / "slice" / "cpu.max").write_text("100000 100000\n")
    (inner / "cpu.max").write_text("max 100000\n")
    (inner / "memory.max").write_text(f"{512 << 20}\n")
    assert detect.cores("0::/slice/job\n", str(tmp_path)) == 1
    assert detect.memory_mb("0::/slice/job\n", str(tmp_path)) == 512
    (tmp_path / "memory" / "job").mkdir(parents=True)
    (tmp_path / "memory" / "job" / "memory.limit_in_bytes").write_text(str(256 << 20))
    assert detect.memory_mb("5:memory:/job\n", str(tmp_path)) == 256
    assert detect.memory_mb("", str(tmp_path)) > 256
    assert detect.cores("", str(tmp_path)) == len(os.sched_getaffinity(0))


# ------------------------------------------------------------------------------------------- store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    for part in ("cache", "transfer", "trash"):
        (tmp_path / part).mkdir()
    return Store(str(tmp_path), lambda path: None)


def test_a_stored_object_is_read_only_and_intact_until_somebody_writes(store: Store) -> None:
    store.put("buffer-a", 1, 0o755, b"", b"data", False)
    path = Path(store.path_of("buffer-a"))
    assert path.stat().st_mode & 0o777 == 0o555 and store.is_intact("buffer-a")
    path.chmod(0o700)
    assert store.is_intact("buffer-a")
    path.write_bytes(b"atad")
    assert not store.is_intact("buffer-a")


def test_content_that_does_not_match_its_hash_is_not_stored(store: Store) -> None:
    with pytest.raises(IntegrityError):
        store.put("buffer-a", 1, 0, b"0" * 32, b"data", True)
    assert not os.listdir(store.cache)


def test_a_sandbox_with_many_inputs_is_left_to_the_thread_that_deletes(store: Store, tmp_path: Path) -> None:
    """Emptying it for the next run would hold up the report of its task."""
    later: list[str] = []
    store = Store(str(tmp_path), later.append)
    boxes = Sandboxes(str(tmp_path), store)
    names = [f"buffer-{number}" for number in range(CLEAN_MAX_INPUTS + 1)]
    for name in names:
        store.put(name, 1, 0, b"", b"data", False)
    for count, kept in ((CLEAN_MAX_INPUTS, True), (CLEAN_MAX_INPUTS + 1, False)):
        box = boxes.make("task")
        boxes.fill(box, TaskSpec(command=":", inputs=tuple(Mount(name, name) for name in names[:count])))
        boxes.drop(box)
        assert os.path.isdir(box.path) == kept and bool(later) != kept


def test_only_lasting_objects_with_a_sound_sidecar_are_taken_over(store: Store, tmp_path: Path) -> None:
    for name in ("file-good", "file-bent", "file-gone", "file-short"):
        store.put(name, 3, 0, b"", b"data", False)
    store.put("file-worker", 2, 0, b"", b"data", False)
    (tmp_path / "cache" / "file-bent.meta").write_text("{")
    (tmp_path / "cache" / "file-gone").unlink()
    meta = tmp_path / "cache" / "file-short.meta"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "size": 9}))
    kept = Store(str(tmp_path), lambda path: None).load()
    assert [(entry.name, entry.size_bytes) for entry in kept] == [("file-good", 4)]
    assert sorted(os.listdir(store.cache)) == ["file-good", "file-good.meta"]


def test_lowering_the_level_removes_the_sidecar_and_so_does_removal(store: Store) -> None:
    store.put("file-a", 3, 0, b"", b"x", False)
    store.relevel("file-a", 1)
    assert os.listdir(store.cache) == ["file-a"]
    store.relevel("file-a", 3)
    store.remove("file-a")
    assert not os.listdir(store.cache)


def test_an_adopted_directory_replaces_an_older_one(store: Store, tmp_path: Path) -> None:
    for number in ("1", "2"):
        (tmp_path / "transfer" / number).mkdir()
        (tmp_path / "transfer" / number / f"f{number}").write_text(number)
        store.adopt(store.transfer_path(int(number)), "file-d", 1, 0, b"")
    assert os.listdir(store.path_of("file-d")) == ["f2"] and store.is_dir("file-d")


def test_tree_size_leaves_out_links_to_the_cache_and_can_be_stopped(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "own").write_bytes(b"x" * 10)
    (tmp_path / "other").write_bytes(b"x" * 100)
    os.link(tmp_path / "other", tmp_path / "d" / "input")
    assert tree_size(str(tmp_path / "d"), skip_links=True) == (10, True)
    assert tree_size(str(tmp_path / "d"), lambda: True) == (0, False)


# ------------------------------------------------------------------------------------------- workspace


def test_a_fresh_workspace_is_made_in_the_first_writable_place_and_removed(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    space = open_workspace("", False, {"CCTOOLS_TEMP": str(tmp_path / "a"), "TMPDIR": str(tmp_path / "b")})
    assert space.path == f"{tmp_path}/b/worker-{os.getuid()}-{os.getpid()}" and not space.adopted
    assert {"cache", "temp", "transfer", "trash"} <= set(os.listdir(space.path))
    space.close()
    assert not os.listdir(tmp_path / "b")


def test_the_remains_of_a_dead_worker_are_removed_and_a_live_ones_are_not(tmp_path: Path) -> None:
    dead = tmp_path / f"worker-{os.getuid()}-999999"
    dead.mkdir()
    (dead / LOCK_NAME).write_text("999999 1\n")
    other = tmp_path / "worker-notours"
    other.mkdir()
    open_workspace("", False, {"TMPDIR": str(tmp_path)}).close()
    assert not dead.exists() and other.exists()


def test_a_worker_starts_while_another_looks_whether_the_owner_of_its_directory_is_dead(tmp_path: Path) -> None:
    own = tmp_path / f"worker-{os.getuid()}-{os.getpid()}"
    own.mkdir()
    with open(own / LOCK_NAME, "w") as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_EX)  # as the other does, who has found it not locked yet
        space = open_workspace("", False, {"TMPDIR": str(tmp_path)})
    assert space.path == f"{own}-1" and os.path.isdir(f"{own}-1/cache")
    space.close()
    assert os.listdir(tmp_path) == [own.name]
    open_workspace("", False, {"TMPDIR": str(tmp_path)}).close()  # and what is left of both is removed by the next
    assert os.listdir(tmp_path) == []


def test_a_worker_that_ends_leaves_the_directories_of_others_below_the_one_they_were_all_given(tmp_path: Path) -> None:
    given = tmp_path / "w"
    first = open_workspace(str(given), False, {})
    second = open_workspace(str(given), False, {})
    first.close()
    assert sorted(os.listdir(given)) == [os.path.basename(second.path)] and os.path.isdir(f"{second.path}/cache")
    second.close()
    assert not given.exists()


_STARTS = """
import os, sys
from taskvine_core.worker.workspace import LOCK_NAME, open_workspace
sys.stdin.read()
for _ in range(60):
    space = open_workspace(sys.argv[1], False, {"TMPDIR": sys.argv[2]})
    with open(space.path + "/cache/mine", "w") as mine:
        os.listdir(space.path)
        assert os.path.samestat(os.stat(mine.name), os.fstat(mine.fileno()))
        assert open(space.path + "/" + LOCK_NAME).read().split()[0] == str(os.getpid())
    space.close()
"""


@pytest.mark.parametrize("wanted", ["", "w"])
def test_workers_that_start_and_end_at_the_same_time_never_take_or_delete_one_anothers_directory(
        tmp_path: Path, wanted: str) -> None:
    words = [sys.executable, "-c", _STARTS, wanted and str(tmp_path / wanted), str(tmp_path)]
    gate, opener = os.pipe()
    starting = [subprocess.Popen(words, stdin=gate, stderr=subprocess.PIPE) for _ in range(8)]
    os.close(gate)
    os.close(opener)  # now they go
    ended = [worker.communicate(timeout=60)[1].decode() for worker in starting]
    assert [worker.returncode for worker in starting] == [0] * 8, "\n".join(ended)
    assert os.listdir(tmp_path) == []


def test_a_kept_workspace_keeps_its_cache_only(tmp_path: Path) -> None:
    space = open_workspace(str(tmp_path / "w"), True, {})
    (tmp_path / "w" / "cache" / "x").touch()
    (tmp_path / "w" / "task.1").mkdir()
    space.close()
    assert sorted(os.listdir(tmp_path / "w")) == [LOCK_NAME, "cache"]
    assert open_workspace(str(tmp_path / "w"), True, {}).adopted


def test_a_workspace_that_cannot_be_made_is_a_setting_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="workspace"):
        open_workspace(str(tmp_path / "file" / "w"), False, {})


# ------------------------------------------------------------------------------------------- the rest


def test_a_pool_runs_jobs_at_the_same_time_up_to_its_size_and_results_wake_the_loop() -> None:
    pool, mailbox, gate = Pool("p", 2), Mailbox(), threading.Event()
    running: list[int] = []

    def job(number: int) -> None:
        running.append(number)
        gate.wait(10)
        mailbox.post(number)

    for number in range(4):
        pool.submit(lambda number=number: job(number))  # type: ignore[misc]
    deadline = threading.Event()
    while len(running) < 2:
        assert not deadline.wait(0.001)
    assert len(running) == 2
    gate.set()
    got: list[int] = []
    import select

    while len(got) < 4:
        assert select.select([mailbox.fd], [], [], 10)[0]
        got += mailbox.drain()
    assert sorted(got) == [0, 1, 2, 3]


def test_fixed_addresses_are_tried_in_turn() -> None:
    finder = Finder(Options(addresses=(("a", 1), ("b", 2))))
    assert [finder.next_target(0.0).host for _ in range(3)] == ["a", "b", "a"]


def test_managers_found_by_name_come_by_priority_and_are_asked_for_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from taskvine_core.catalog import local

    asked: list[str | None] = []

    def find(regex: str | None) -> list[object]:
        asked.append(regex)
        return [SimpleNamespace(addresses=(f"h{p}",), port=p, priority=p, ssl_fingerprint="") for p in (1, 3, 2)]

    monkeypatch.setattr(local, "find_managers", find)
    finder = Finder(Options(manager_name="n"), random.Random(1))
    assert [finder.next_target(100.0).port for _ in range(3)] == [3, 2, 1]
    with pytest.raises(DiscoveryError):
        finder.next_target(101.0)
    assert asked == ["n"]
    assert finder.next_target(100.0 + QUERY_INTERVAL_S).port == 3


def test_the_walltime_margin_is_at_most_a_twentieth() -> None:
    long, short = (Life(LifeSettings(start_time=0.0, end_time=t), 0.0).drain_at for t in (36000.0, 100.0))
    assert long == 36000.0 - WALLTIME_MARGIN_S and short == 95.0
    assert Life(LifeSettings(), 0.0).drain_at == NEVER


@pytest.mark.parametrize("text", ["host", ":5", "host:", "host:x"])
def test_a_broken_peer_address_is_the_senders_fault(text: str) -> None:
    with pytest.raises(SourceError):
        split_address(text)


PURE = ("base", "cache", "core", "environment", "events", "fetches", "life", "machines", "objects", "running", "runs")
IMPURE = {"socket", "subprocess", "os", "time", "random", "threading", "select", "signal", "asyncio", "pathlib"}


@pytest.mark.parametrize("name", PURE)
def test_the_worker_s_decisions_import_nothing_that_acts(name: str) -> None:
    import ast

    from taskvine_core import worker

    tree = ast.parse((Path(worker.__file__).parent / f"{name}.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {module.partition(".")[0] for module in imported} & IMPURE
    acting = {"children", "store", "sandbox", "link", "jobs", "runner", "pool", "detect", "warm", "workspace", "cli"}
    assert not imported & {f"taskvine_core.worker.{module}" for module in acting}


def test_the_interpreters_program_which_can_import_nothing_of_ours_agrees_with_the_worker() -> None:
    assert pyserver.HEADER.format == warm._HEADER.format
    assert pyserver.BIND_VARIABLE == warm._BIND
    assert all(getattr(pyserver, name) == getattr(warm, name) for name in ("READY", "STARTED", "ENDED", "NO_FORK"))
    assert pyserver.REPLY.format == warm.REPLY.format


# ------------------------------------------------------------------------------------------- GPUs

#: What nvidia-smi --query-gpu=index,uuid,name --format=csv,noheader prints on machines with GPUs.
FOUR_A100 = """0, GPU-5d1c3f0e-0d6b-3c8a-9a55-0b1f9f2f7a10, NVIDIA A100-SXM4-40GB
1, GPU-8a7b6c5d-1111-2222-3333-444455556666, NVIDIA A100-SXM4-40GB
2, GPU-e0f1a2b3-7777-8888-9999-000011112222, NVIDIA A100-SXM4-40GB
3, GPU-ffffeeee-aaaa-bbbb-cccc-ddddeeeeffff, NVIDIA RTX A2000
"""
A100, A2000 = "NVIDIA A100-SXM4-40GB", "NVIDIA RTX A2000"
NO_DEVICES = "No devices were found\n"
NO_DRIVER = ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest "
             "NVIDIA driver is installed and running.\n")
MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 535.129\n"
LOST = "Unable to determine the device handle for GPU0000:3B:00.0: GPU is lost.  Reboot the system to recover it\n"


@pytest.mark.parametrize(("listed", "visible", "expected"), [
    (FOUR_A100, None, [("0", A100), ("1", A100), ("2", A100), ("3", A2000)]),
    (FOUR_A100.replace("\n", "\r\n"), None, [("0", A100), ("1", A100), ("2", A100), ("3", A2000)]),
    (FOUR_A100, "2,3", [("2", A100), ("3", A2000)]),
    (FOUR_A100, " 3 , 0 ", [("3", A2000), ("0", A100)]),
    (FOUR_A100, "1,7,2", [("1", A100)]),
    (FOUR_A100, "GPU-8a7b6c5d-1111-2222-3333-444455556666", [("GPU-8a7b6c5d-1111-2222-3333-444455556666", A100)]),
    (FOUR_A100, "GPU-ffff", [("GPU-ffff", A2000)]),
    (FOUR_A100, "MIG-5c6d7e8f-0000-1111-2222-333344445555", [("MIG-5c6d7e8f-0000-1111-2222-333344445555", "")]),
    (FOUR_A100, "", []), (FOUR_A100, "-1", []), (FOUR_A100, "NoDevFiles", []),
    ("", None, []), ("", "0,1", []), (NO_DEVICES, None, []), (NO_DRIVER, None, []), (MISMATCH, None, []),
    (LOST, None, []), (LOST + FOUR_A100, "3", [("3", A2000)]),
])
def test_gpus_are_what_nvidia_smi_lists_and_the_batch_system_allows(
    listed: str, visible: str | None, expected: list[tuple[str, str]]
) -> None:
    assert detect.visible_gpus(listed, visible) == expected


@pytest.mark.parametrize(("count", "found", "visible", "expected"), [
    (2, ["0", "1"], None, ("0", "1")), (1, ["2", "3"], "2,3", ("2",)), (2, [], "5,6", ("5", "6")),
    (2, [], None, ("0", "1")), (3, ["1"], "1", ("1", "0", "2")), (2, [], "-1", ("0", "1")), (0, [], "4", ()),
])
def test_each_offered_gpu_has_a_name_of_its_own(
    count: int, found: list[str], visible: str | None, expected: tuple[str, ...]
) -> None:
    assert detect.device_list(count, [detect.Gpu(device, "m") for device in found], visible) == expected
