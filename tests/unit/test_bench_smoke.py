"""Every bench runs with tiny sizes and prints one valid line; run_all puts them beside the published figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import run_all  # noqa: E402 - lies beside the scripts it runs

KEYS = {"bench", "value", "unit", "limit", "ratio", "target", "detail"}
PATIENCE_S = 60
OURS = [name for name, bench in run_all.BENCHES.items() if bench.common]


@pytest.mark.parametrize("name", OURS)
def test_a_bench_prints_one_line_with_a_positive_figure_and_leaves_nothing_behind(name, tmp_path):
    bench = run_all.BENCHES[name]
    done = subprocess.run([sys.executable, str(BENCH / bench.script), *bench.small, "--repeat", "1", "--scratch",
                           str(tmp_path)], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    found = json.loads(line)
    assert set(found) == KEYS
    assert found["bench"] == name
    assert found["value"] > 0
    assert len(found["detail"]["others_busy"]) == 2
    assert list(tmp_path.iterdir()) == []
    missing = [row.what for row in run_all.ROWS if row.bench == name and "workers connected" not in row.what
               and row.path[:2] not in _BY_SIZE and run_all.pick(found, row.path) is None]
    assert missing == []


#: Parts of the line that carry sizes in their names, which tiny runs do not have.
_BY_SIZE = {("detail", f"{count} workers") for count in (50, 200, 500)}


def test_every_script_is_run_by_run_all():
    # These start a real batch system, which not every machine can.
    elsewhere = {"bench_support.py", "bench_batch.py", "bench_submit_connect.py"}
    scripts = {path.name for path in BENCH.glob("bench_*.py")} - elsewhere
    assert scripts == {bench.script for bench in run_all.BENCHES.values()}


def test_the_table_compares_in_the_direction_in_which_a_figure_is_better():
    rate = run_all.Row("a", "rate", 100, "/s", "x", ("value",))
    time = rate._replace(less_is_better=True)
    assert run_all.better(rate, 200) == "2.00"
    assert run_all.better(time, 200) == "0.50"
    assert run_all.better(time, 0) == "-"


def test_a_bench_that_fails_is_shown_as_failed():
    assert "no such script" in run_all.summary([{"bench": "commands", "error": "no such script"}])
