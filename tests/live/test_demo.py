"""The demo: its physics and its merge tree by themselves, and the whole of it on local workers.

The events are made here, so that no network is needed; `.ci/run` runs `make demo` on the real ones.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ak = pytest.importorskip("awkward", reason="the demo's own extra is not installed: pip install -e .[demo]")
np = pytest.importorskip("numpy")
uproot = pytest.importorskip("uproot")

# Run from a checkout: the examples are not part of the installed packages.
sys.path.insert(0, str(ROOT))
from examples.demo import analysis, fetch_data, report, site, workflow  # noqa: E402
from taskvine_core.errors import ConfigError  # noqa: E402
from vine_factory.config import read_file  # noqa: E402

DEMO_TIMEOUT_S = 100
END_TIMEOUT_S = 15
EVENTS_PER_FILE = 40
Z_MASS_GEV = 91.19


def write_events(path: Path, *, simulated: bool, seed: int, events: int = EVENTS_PER_FILE) -> None:
    """A small NanoAOD-like file with 0 to 3 muons per event."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4, events)
    total = int(counts.sum())
    muons = {
        "pt": rng.exponential(20.0, total).astype("float32") + 1,
        "eta": rng.uniform(-2.6, 2.6, total).astype("float32"),
        "phi": rng.uniform(-3.1, 3.1, total).astype("float32"),
        "mass": np.full(total, 0.1057, dtype="float32"),
        "charge": rng.choice(np.array([-1, 1], dtype="int32"), total),
    }
    branches: dict[str, Any] = {
        "Muon": ak.zip({name: ak.unflatten(values, counts) for name, values in muons.items()}),
        "MET_pt": rng.exponential(40.0, events).astype("float32"),
    }
    if simulated:
        branches["genWeight"] = rng.choice(np.array([-26331.2, 26331.2], dtype="float32"), events)
    with uproot.recreate(path) as file:
        # Named types, as a plain assignment writes the newer RNTuple format.
        tree = file.mktree("Events", {name: ak.Array(values).type.content for name, values in branches.items()})
        tree.extend(branches)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    write_events(data / "collisions.root", simulated=False, seed=1)
    write_events(data / "drell_yan.root", simulated=True, seed=2)
    return data


# ------------------------------------------------------------------------------------------------ physics


def test_the_mass_of_a_back_to_back_pair_is_the_sum_of_its_momenta() -> None:
    half = Z_MASS_GEV / 2
    muons = ak.Array(
        [
            [
                {"pt": half, "eta": 0.0, "phi": 0.0, "mass": 0.0, "charge": 1},
                {"pt": half, "eta": 0.0, "phi": np.pi, "mass": 0.0, "charge": -1},
            ],
            [
                {"pt": half, "eta": 0.0, "phi": 0.0, "mass": 0.0, "charge": 1},
                {"pt": half, "eta": 0.0, "phi": np.pi, "mass": 0.0, "charge": 1},
            ],
        ]
    )
    has_pair, mass = analysis.leading_pair_mass(muons)
    assert has_pair.tolist() == [True, False], "a pair of equal charge is no candidate"
    assert mass == pytest.approx([Z_MASS_GEV])


def test_values_beyond_the_axis_are_counted_in_its_outer_bins() -> None:
    sums = analysis.fill(np.array([-5.0, 10.0, 1e9]), np.array([1.0, 1.0, -1.0]), analysis.MET_EDGES_GEV)
    assert sums[0].sum() == 1.0 and sums[1].sum() == 3.0
    assert sums[0][0] == 1.0 and sums[0][-1] == -1.0


@pytest.mark.parametrize("step", [3, 16, 40])
def test_the_sum_over_chunks_is_identical_to_the_whole_whatever_the_size(folder: Path, step: int) -> None:
    files = sorted(folder.glob("*.root"))
    ranges = workflow.chunks(files, step)
    names = [variation.name for variation in analysis.VARIATIONS]
    parts = [analysis.analyse(str(c.path), c.path.stem, c.start, c.stop, name) for c in ranges for name in names]
    random.Random(step).shuffle(parts)
    assert analysis.equal(analysis.add(parts), workflow.single_process(files))


def test_a_single_event_that_is_lost_or_counted_twice_is_noticed(folder: Path) -> None:
    files = sorted(folder.glob("*.root"))
    whole = workflow.single_process(files)
    one = analysis.analyse(str(files[0]), files[0].stem, 0, 1, "nominal")
    assert not analysis.equal(whole, analysis.add([whole, one]))


def test_chunks_cover_every_entry_once_and_stay_few(folder: Path) -> None:
    files = sorted(folder.glob("*.root"))
    for step in (None, 1, 9):
        covered = [(c.path, i) for c in workflow.chunks(files, step) for i in range(c.start, c.stop)]
        assert sorted(covered) == [(path, i) for path in files for i in range(EVENTS_PER_FILE)]
    assert len(workflow.chunks(files, None)) <= workflow.TARGET_CHUNKS


def test_a_file_without_muons_is_refused_by_name(tmp_path: Path) -> None:
    with uproot.recreate(tmp_path / "jets.root") as file:
        file.mktree("Events", {"Jet_pt": "f4"}).extend({"Jet_pt": np.ones(3, dtype="f4")})
    with pytest.raises(ValueError, match=r"jets\.root.*Muon_pt"):
        analysis.analyse(str(tmp_path / "jets.root"), "jets", 0, 3, "nominal")


# --------------------------------------------------------------------------------------------- merge tree


@pytest.mark.parametrize("seed", range(20))
def test_the_merge_tree_ends_in_one_last_merge_whatever_the_order_of_completion(seed: int) -> None:
    rng = random.Random(seed)
    tree = workflow.MergeTree(5)
    running = [1] * rng.randrange(1, 200)  # each task will leave a part of this weight
    total, last_weight = sum(running), 0
    while running:
        weight = running.pop(rng.randrange(len(running)))
        tree.add(weight)
        while (ready := tree.take(len(running))) is not None:
            parts, last = ready
            assert 1 <= len(parts) <= 5
            assert len(parts) == 5 or not running, "a small merge before the end is a wasted task"
            assert last_weight == 0, "something was merged after the last merge"
            if last:
                last_weight = sum(parts)
            else:
                running.append(sum(parts))
    assert last_weight == total


# ------------------------------------------------------------------------------------------------- input


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_only_the_samples_leave_the_archive_and_only_with_the_right_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {name: name.encode() for name in fetch_data.SAMPLES}
    monkeypatch.setattr(fetch_data, "SAMPLES", {n: hashlib.sha256(c).hexdigest() for n, c in contents.items()})
    members = {f"coffea-1/tests/samples/{name}": content for name, content in contents.items()}
    good = archive(tmp_path / "good.tar.gz", members | {"coffea-1/setup.py": b"", "coffea-1/../../evil.root": b""})
    target = tmp_path / "data"
    target.mkdir()
    fetch_data.extract(good, target)
    assert sorted(path.name for path in target.iterdir()) == sorted(contents)

    bad = archive(tmp_path / "bad.tar.gz", members | {"coffea-1/tests/samples/nano_dy.root": b"other"})
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(fetch_data.DataError, match=r"nano_dy\.root has sha256"):
        fetch_data.extract(bad, empty)
    assert not (empty / "nano_dy.root").exists()


def test_without_network_the_message_names_both_ways_out(tmp_path: Path) -> None:
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_EXTRA_INDEX_URL": "", "PIP_RETRIES": "0",
               "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}  # fmt: skip
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path; from examples.demo import fetch_data as f\n"
        f"f.fetch(Path({str(tmp_path / 'data')!r}))"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False, env=kept | nowhere
    )
    assert done.returncode == 1
    assert "VINE_DEMO_DATA" in done.stderr and "PIP_INDEX_URL" in done.stderr


def test_an_empty_folder_of_ones_own_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VINE_DEMO_DATA", str(tmp_path))
    with pytest.raises(fetch_data.DataError, match=re.escape(str(tmp_path))):
        fetch_data.input_files()


# ------------------------------------------------------------------------------------------------ report


def test_the_sparkline_shows_the_rise_and_the_fall_of_workers() -> None:
    counts = [0] * 10 + [4] * 20 + [1] * 10
    line = report.sparkline([workflow.Sample(float(i), n, 0, 0, 0, 0, 0) for i, n in enumerate(counts)])
    assert len(line) == report.SPARK_WIDTH
    assert line[0] == " " and "█" in line and line[-1] not in " █"


def test_bytes_between_workers_are_what_was_fetched_less_what_the_manager_sent(tmp_path: Path) -> None:
    log = tmp_path / "transactions"
    log.write_text(
        "# header\n"
        "1 7 MANAGER 7 START 0\n"
        "# time manager_pid WORKER worker_id CACHE_UPDATE cache_name size_bytes wall_us start_us\n"
        "2 7 WORKER worker-a CACHE_UPDATE file-x 1000 60 2\n"
        "2 7 WORKER worker-a TRANSFER INPUT buffer-small 10 0 2\n"
        "3 7 WORKER worker-b CACHE_UPDATE file-x 1000 70 3\n"
        "4 7 WORKER worker-b CACHE_UPDATE temp-made-here 300 0 4\n"
        "5 7 WORKER worker-a CACHE_UPDATE temp-made-here 300 20 5\n"
        "6 7 MANAGER 7 END 9\n"
    )
    # The manager sent the small buffer and file-x, the latter once; worker-b had it from worker-a.
    assert workflow.peer_bytes(log, sent_bytes=1010) == 1300


# ------------------------------------------------------------------------------------------- whose workers


def test_without_a_site_file_one_is_written_that_names_this_python(tmp_path: Path) -> None:
    assert site.choose(None, None, tmp_path) == site.Workers("local")
    chosen = site.choose("htcondor", None, tmp_path)
    assert chosen.label == "condor" and chosen.site is not None
    (pool,) = read_file(chosen.site).pools or ()
    assert pool.values["python"].value == sys.executable and pool.values["batch"].value == "condor"


def test_a_site_file_of_another_batch_system_than_asked_for_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('[defaults]\nbatch = "local"\n[pool.a]\n[pool.b]\nbatch = "condor"\n')
    assert site.choose(None, own, tmp_path).label == "local, condor"
    assert site.choose("condor", own, tmp_path).batch == "condor"
    with pytest.raises(ConfigError, match="no pool of 'sge'"):
        site.choose("sge", own, tmp_path)


# -------------------------------------------------------------------------------------------- the whole


def start_demo(folder: Path, output: Path, home: Path, *more: str) -> subprocess.Popen[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "VINE_"))}
    # Grid Engine's jobs have the home directory of the account, whatever HOME is here.
    env |= {"HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "VINE_DEMO_DATA": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-m", "examples.demo", "--output", str(output), *more],
        cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def descendants_with(text: str) -> list[str]:
    """Command lines of processes that mention ``text`` in their environment: all that the demo started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if text.encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue  # it ended meanwhile
    return [line for line in found if line]


def wait_for_no_process(text: str) -> None:
    deadline = time.monotonic() + END_TIMEOUT_S
    while left := descendants_with(text):
        assert time.monotonic() < deadline, f"left running: {left}"
        time.sleep(0.05)


@pytest.mark.live
@pytest.mark.slow
def test_the_demo_verifies_itself_and_leaves_plot_numbers_and_page(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    demo = start_demo(folder, output, tmp_path)
    try:
        said, _ = demo.communicate(timeout=DEMO_TIMEOUT_S)
    finally:
        demo.kill()
    assert demo.returncode == 0, said
    assert "verified: identical to a single-process run" in said
    assert (output / "dimuon_met.png").read_bytes().startswith(b"\x89PNG")
    page = (output / "report.html").read_text()
    assert "data:image/png;base64," in page and not re.search(r'(src|href)="(?!data:)', page)
    numbers = json.loads((output / "summary.json").read_text())
    assert numbers["map_tasks"] == len(workflow.chunks(sorted(folder.glob("*.root")), None)) * len(analysis.VARIATIONS)
    assert numbers["batch_system"] == "local"
    assert numbers["workers_most"] >= workflow.MIN_WORKERS
    # Partial results stay on the workers: the manager gets messages and one result.
    assert numbers["bytes_workers_to_manager"] < 200_000
    wait_for_no_process(f"VINE_DEMO_DATA={folder}")


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.parametrize(("batch", "fixture"), [("condor", "htcondor_pool"), ("slurm", "slurm_cluster"),
                                                ("drmaa", "grid_engine")])
def test_the_demo_verifies_itself_with_workers_of_a_batch_system(request: pytest.FixtureRequest, folder: Path,
                                                                 tmp_path: Path, batch: str, fixture: str) -> None:
    request.getfixturevalue(fixture)
    output = tmp_path / "output"
    demo = start_demo(folder, output, tmp_path, "--batch", batch, "--events-per-task", "20")
    try:
        said, _ = demo.communicate(timeout=DEMO_TIMEOUT_S)
    finally:
        demo.kill()
    assert demo.returncode == 0, said
    assert "verified: identical to a single-process run" in said
    numbers = json.loads((output / "summary.json").read_text())
    assert numbers["batch_system"] == batch and numbers["workers_most"] >= 1
    assert "all workers removed" in (output / "factory.log").read_text()
    wait_for_no_process(f"VINE_DEMO_DATA={folder}")


@pytest.mark.live
@pytest.mark.slow
def test_an_interrupted_demo_leaves_no_process(folder: Path, tmp_path: Path) -> None:
    demo = start_demo(folder, tmp_path / "output", tmp_path)
    assert demo.stdout is not None
    try:
        for line in demo.stdout:
            if "tasks done" in line:
                break
        demo.send_signal(signal.SIGINT)
        said, _ = demo.communicate(timeout=END_TIMEOUT_S)
        assert demo.returncode == 130, said
        assert "interrupted" in said and "Traceback" not in said
        wait_for_no_process(f"VINE_DEMO_DATA={folder}")
    finally:
        demo.kill()
