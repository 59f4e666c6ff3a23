"""What jobs are given, and what `render` and `check` say of it: files for this user only, nothing run or locked."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from taskvine_core.errors import ConfigError
from taskvine_core.resources import Resources
from taskvine_core.secret import load_secret
from vine_factory import cli, config
from vine_factory.config import Settings
from vine_factory.payload import KEY_FILE, WORKER_FILE, Payload
from vine_factory.start import finished

TIMEOUT_S = 60


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own state directory, which is also where we are."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(text: str) -> Settings:
    Path("site.toml").write_text(text, encoding="utf-8")
    return finished("f", config.build({}, config.read_file(Path("site.toml")), host="", port=0,
                                      machine=Resources(1, 1, 1, 0)))


def payload(state: Path) -> Payload:
    return Payload(state / "home", state / "state", load_secret())


# ---------------------------------------------------------------------------------------------------- payload


def test_what_is_sent_is_the_one_file_worker_and_a_key_for_this_user_only(state: Path) -> None:
    made = settings('[pool.p]\nbatch = "condor"')
    delivery = payload(state).delivery(made, made.pools[0])
    worker, key = delivery.ship
    assert delivery.start == ("python3", WORKER_FILE) and worker.name == WORKER_FILE
    assert (delivery.password, key.name) == (KEY_FILE, KEY_FILE)
    assert key.stat().st_mode & 0o777 == 0o600
    assert load_secret(str(key)) == load_secret()
    done = subprocess.run([sys.executable, str(worker), "--version"], capture_output=True, text=True, check=True,
                          timeout=TIMEOUT_S, cwd=state, env={"PATH": "/usr/bin:/bin", "HOME": str(state)})
    assert "vine_worker" in done.stdout


def test_the_worker_is_kept_by_content_and_the_key_replaced_when_it_changes(state: Path) -> None:
    made = settings('[pool.p]\nbatch = "condor"')
    first = payload(state).delivery(made, made.pools[0]).ship
    assert payload(state).delivery(made, made.pools[0]).ship == first
    first[1].write_text("something else")
    first[1].chmod(0o644)
    again = payload(state).delivery(made, made.pools[0]).ship[1]
    assert load_secret(str(again)) == load_secret() and again.stat().st_mode & 0o777 == 0o600


def test_a_shared_worker_is_named_by_absolute_paths_and_nothing_is_sent(state: Path) -> None:
    made = settings('[pool.p]\nbatch = "slurm"')
    delivery = payload(state).delivery(made, made.pools[0])
    assert delivery.ship == ()
    assert delivery.start[0] == sys.executable and Path(delivery.start[1]).is_absolute()
    assert Path(delivery.start[1]).is_file() and Path(delivery.password).is_absolute()
    assert delivery.environment == {"XDG_STATE_HOME": str(state / "state")}


def test_no_text_of_the_key_is_in_what_a_job_is_told(state: Path) -> None:
    made = settings('[pool.p]\nbatch = "condor"\n[pool.q]\nbatch = "slurm"\n[pool.r]\nbatch = "local"')
    for pool in made.pools:
        delivery = payload(state).delivery(made, pool)
        told = " ".join([*delivery.start, delivery.password, *delivery.environment.values()])
        assert load_secret().hex() not in told


def test_a_compiled_worker_gets_published_options_and_the_password_file_as_it_is(state: Path) -> None:
    Path("vine_worker").write_bytes(b"\x7fELF and so on")
    Path("pw").write_text("password")
    made = settings('password = "pw"\n[pool.p]\nbatch = "condor"\nworker-binary = "vine_worker"')
    delivery = payload(state).delivery(made, made.pools[0])
    assert delivery.published_only and delivery.start == ("./vine_worker",)
    assert delivery.ship == (state / "vine_worker", state / "pw") and delivery.password == "pw"


def test_a_file_that_cannot_be_sent_is_an_error(state: Path) -> None:
    made = settings('[pool.p]\nbatch = "condor"\nwrapper-input = ["none.sh"]')
    with pytest.raises(ConfigError, match=r"none\.sh cannot be sent with jobs: there is no such file"):
        payload(state).delivery(made, made.pools[0])
    Path("d").mkdir()
    Path("d", WORKER_FILE).write_text("")
    made = settings(f'[pool.p]\nbatch = "condor"\nwrapper-input = ["d/{WORKER_FILE}"]')
    with pytest.raises(ConfigError, match="the same name"):
        payload(state).delivery(made, made.pools[0])


# --------------------------------------------------------------------------------------------- render and check

SITE = '[pool.here]\nbatch = "local"\nmax-workers = 3\ncores = 2\nfeatures = ["a b"]\n[pool.other]\nbatch = "local"\n'


def test_render_prints_the_command_of_every_pool(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("site.toml").write_text(SITE)
    assert cli.main(["render", "-C", "site.toml", "-M", "phys.*"]) == 0
    said = capsys.readouterr().out
    assert said.count("==> pool ") == 2
    assert f"==> pool here: command <==\n{sys.executable} -m taskvine_core.worker.cli -t 300 " in said
    assert "--cores 2 --feature 'a b' -M 'phys.*'\n" in said
    assert cli.main(["render", "-C", "site.toml", "--pool", "other", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["other"]


def test_render_without_a_site_file_shows_the_pool_of_the_command_line(
        state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["render", "--batch", "local", "m:9123"]) == 0
    assert capsys.readouterr().out.endswith(" m 9123\n")


def test_check_shows_values_with_origins_and_what_was_tested(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("site.toml").write_text(SITE)
    assert cli.main(["check", "-C", "site.toml", "--timeout", "60"]) == 0
    said = capsys.readouterr().out
    assert "pool.here.cores " in said and "= 2   # site.toml: pool.here\n" in said
    assert "= 60   # command line\n" in said
    assert said.count("ok       batch system") == 2
    assert cli.main(["check", "-C", "site.toml", "--json", "--offline", "--pool", "here"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["settings"]["pool.here.max-workers"] == {"value": 3, "origin": "site.toml: pool.here"}
    assert {found["what"]: found["level"] for found in record["pools"]["here"]}["batch system"] == "note"


@pytest.mark.parametrize(("line", "words"), [
    ('worker-binary = "/no/worker"', "PROBLEM  batch system"), ('python = "/no/python"', "PROBLEM  python"),
    ('wrapper-input = ["none"]', "PROBLEM  wrapper"), ('directory = "site.toml"', "PROBLEM  directory"),
    ("worker-extra-options = \"'\"", "PROBLEM  render"),
])
def test_check_names_what_is_not_well_and_ends_with_status_one(
        state: Path, capsys: pytest.CaptureFixture[str], line: str, words: str) -> None:
    Path("site.toml").write_text(f'[pool.p]\nbatch = "local"\n{line}\n')
    assert cli.main(["check", "-C", "site.toml"]) == 1
    assert words in capsys.readouterr().out


def test_a_key_that_others_can_read_is_a_problem(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("pw").write_text("secret words")
    Path("pw").chmod(0o644)
    assert cli.main(["check", "--batch", "local", "--password", "pw"]) == 1
    said = capsys.readouterr().out
    assert "chmod 600" in said and "secret words" not in said


@pytest.mark.parametrize("words", [["--pool", "x", "-C", "site.toml"], ["-C", "none.toml"], ["-C", "bad.toml"], []])
@pytest.mark.parametrize("command", ["check", "render"])
def test_wrong_use_ends_with_status_two(command: str, words: list[str], state: Path,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    Path("site.toml").write_text(SITE)
    Path("bad.toml").write_text(SITE + "\nx = ")
    assert cli.main([command, *words]) == 2
    assert capsys.readouterr().err.startswith("vine_factory: ")


def test_options_without_effect_are_told(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--batch", "local", "--disable-afs-check", "--autosize"]) == 0
    said = capsys.readouterr().out
    for key in ("--disable-afs-check", "autosize"):
        assert f"{key} has no effect: " in said, key


def pack(path: Path) -> Path:
    with tarfile.open(path, "w:gz") as members:
        members.add(__file__, "bin/python")
    return path


@pytest.mark.parametrize("option", ["--poncho-env", "--python-env", "--python-package"])
def test_an_environment_package_is_sent_with_jobs_and_named_to_the_worker(option: str, state: Path, tmp_path: Path,
                                                                          capsys: pytest.CaptureFixture[str]) -> None:
    package = pack(tmp_path / "mine.tar.gz")
    Path("site.toml").write_text('[pool.sent]\nbatch = "condor"\n[pool.there]\nbatch = "slurm"\ncores = 1\n')
    assert cli.main(["render", "-C", "site.toml", option, "mine.tar.gz", "h:1"]) == 0
    said = capsys.readouterr().out
    sent, there = said.split("==> pool there", 1)
    assert re.search(r"--poncho-env\W+mine\.tar\.gz\W", sent) and str(package) in sent  # found beside the worker
    assert re.search(rf"--poncho-env\W+{package}\W", there)


def test_a_package_of_one_pool_leaves_the_others_alone(state: Path, tmp_path: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    pack(tmp_path / "mine.tar.gz")
    Path("site.toml").write_text('[pool.in]\nbatch = "slurm"\nponcho-env = "mine.tar.gz"\n'
                                 '[pool.out]\nbatch = "slurm"\n')
    assert cli.main(["render", "-C", "site.toml", "--pool", "in", "h:1"]) == 0
    assert "--poncho-env" in capsys.readouterr().out
    assert cli.main(["render", "-C", "site.toml", "--pool", "out", "h:1"]) == 0
    assert "--poncho-env" not in capsys.readouterr().out


def test_check_tells_a_package_that_is_none(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--batch", "local", "--poncho-env", str(pack(tmp_path / "good.tar.gz")), "h:1"]) == 0
    (tmp_path / "bad.tar.gz").write_text("no tar file")
    capsys.readouterr()
    assert cli.main(["check", "--batch", "local", "--poncho-env", "bad.tar.gz", "h:1"]) == 1
    assert "bad.tar.gz is not the tar file of an environment" in capsys.readouterr().out
    assert cli.main(["check", "--batch", "local", "--poncho-env", "good.tar.gz", "--worker-binary", "/bin/sh",
                     "h:1"]) == 1
    assert "cannot enter an environment package by itself" in capsys.readouterr().out


def test_the_published_spool_option_is_the_one_of_htcondor(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--offline", "--json", "--batch", "condor", "--condor-spool", "h:1"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["settings"]["condor-spool"]["value"] is True
    assert cli.main(["render", "--batch", "condor", "--condor-spool", "h:1"]) == 0
    assert "-spool" in capsys.readouterr().out
