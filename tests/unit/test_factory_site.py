"""Site files: pools of several shapes and batch systems, strict keys, origins, and what a change while running does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from taskvine_core.errors import ConfigError
from taskvine_core.resources import Resources
from vine_factory import command, config
from vine_factory.batch import registry
from vine_factory.batch.base import JobTag
from vine_factory.command import Delivery
from vine_factory.config import Settings, Sourced
from vine_factory.reload import ConfigFile, with_leaving

MACHINE = Resources(8, 16000, 50000, 0)
WORKER = Delivery(("worker",))
Read = Callable[..., Settings]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Settings of a site file's text and a command line."""

    def make(text: str, host: str = "", port: int = 0, **given: object) -> Settings:
        path = tmp_path / "site.toml"
        path.write_text(text, encoding="utf-8")
        line = {key.replace("_", "-"): Sourced(config.check_value(key.replace("_", "-"), value, "command line"),
                                               "command line") for key, value in given.items()}
        return config.build(line, config.read_file(path), host=host, port=port, machine=MACHINE)

    return make


SITE = """
manager-name = "phys.*"
retire-after = 120
env = ["A=top", "B=top"]

[defaults]
batch = "slurm"
cores = 8
walltime = "4h"
env = { B = "defaults", C = "defaults" }
[defaults.blocks]
setup = "module load a\\n"

[pool.small]
max-workers = 4500
min-workers = 10

[pool.big]
batch = "condor"
cores = 64
memory = 250_000
gpus = 2
features = ["avx512"]
walltime = "1-12:00:00"
timeout = "10m"
workers-per-job = 2
env = { C = "big" }
max-idle = 50
budget-core-hours = 1000
budget-period = "1w"
retire-per-minute = 3
startup-time = "90s"
python = "/opt/python"
workers-blocked = ["bad1", "bad2"]
worker-extra-options = "--disk-percent 90"
[pool.big.blocks]
launch = "exec \\"$@\\"\\n"

[pool.login]
batch = "local"
walltime = 0.5e3
"""


def test_pools_have_their_own_values_then_the_defaults_then_the_factorys(read: Read) -> None:
    made = read(SITE, max_workers="20")
    small, big, login = made.pools
    assert [pool.name for pool in made.pools] == ["small", "big", "login"]
    assert (small.batch, big.batch, login.batch) == ("slurm", "condor", "local")
    assert (small.minimum, small.maximum, big.maximum, login.maximum) == (10, 4500, 20, 20)
    assert (small.walltime_s, big.walltime_s, login.walltime_s) == (14400, 129600, 500)
    assert small.env == {"A": "top", "B": "defaults", "C": "defaults"}
    assert big.env == {"A": "top", "B": "defaults", "C": "big"}
    assert small.blocks == {"setup": "module load a\n"}
    assert big.blocks == {"setup": "module load a\n", "launch": 'exec "$@"\n'}
    assert big.asked == Resources(64, 250_000, 64 * 1024, 2)
    assert big.shape.features == ("avx512",)
    assert (big.worker_timeout_s, big.workers_per_job, big.max_idle, big.budget_core_hours) == (600, 2, 50, 1000.0)
    assert (big.budget_period_s, big.retire_per_minute, big.startup_s) == (7 * 86400, 3, 90)
    assert (big.python, big.blocked_hosts) == ("/opt/python", ("bad1", "bad2"))
    assert big.extra_options == "--disk-percent 90"
    assert (made.target.regex, made.retire_after_s, made.label) == ("phys.*", 120, "site")


def test_every_value_knows_where_it_came_from(read: Read) -> None:
    origins = {key: value.rpartition("/")[2] for key, value in read(SITE, max_workers="20").origins.items()}
    assert origins["manager-name"] == "site.toml"
    assert origins["pool.big.cores"] == "site.toml: pool.big"
    assert origins["pool.small.cores"] == "site.toml: defaults"
    assert origins["pool.big.max-workers"] == "command line"
    assert origins["pool.big.disk"] == "default"
    assert origins["pool.big.env.A"] == "site.toml"
    assert origins["pool.big.env.B"] == "site.toml: defaults"
    assert origins["pool.big.blocks.launch"] == "site.toml: pool.big.blocks"


def test_what_nobody_gave_is_shown_as_what_it_became(read: Read) -> None:
    sourced = read(SITE).sourced
    assert sourced["pool.big.disk"] == Sourced(64 * 1024, "default")
    assert sourced["pool.big.max-workers"] == Sourced(100, "default")
    assert sourced["factory-period"] == sourced["manager-period"] == Sourced(1.0, "default")


@pytest.mark.parametrize(("batch", "deliver", "managers"), [
    ("condor", "transfer", "addresses"), ("slurm", "shared", "home"), ("local", "shared", "home"),
    ("htcondor", "transfer", "addresses"), ("uge", "shared", "home"), ("flux", "shared", "home")])
def test_delivery_is_what_the_batch_system_is_made_for(read: Read, batch: str, deliver: str, managers: str) -> None:
    pool = read(f'[pool.p]\nbatch = "{batch}"').pools[0]
    assert (pool.deliver, pool.managers) == (deliver, managers)


def test_a_batch_system_is_asked_for_the_published_sizes_when_nothing_is_said(read: Read) -> None:
    assert read('[pool.p]\nbatch = "slurm"').pools[0].asked == Resources(1, 1024, 1024, -1)
    assert read('[pool.p]\nbatch = "slurm"\ncores = 4').pools[0].asked == Resources(4, 4096, 4096, -1)
    whole = read('[pool.p]\nbatch = "slurm"\ncores = 0\nmemory = 0\ndisk = 0').pools[0]
    assert whole.asked == Resources(-1, -1, -1, -1)


P = '[pool.p]\nbatch = "local"\n'


@pytest.mark.parametrize(("text", "words"), [
    (P + "max-wrokers = 3", "site.toml: pool.p: unknown key 'max-wrokers' (did you mean 'max-workers', which takes a "
                            "whole number of at least 1?"),
    ("max-wrokers = 3\n" + P, "site.toml: unknown key 'max-wrokers' (did you mean 'max-workers'?"),
    ("[defaults]\nmemroy = 3\n" + P, "site.toml: defaults: unknown key 'memroy'"),
    ("[default]\nmemory = 3\n" + P, "site.toml: unknown table [default]"),
    (P + "[pool.p.slrum]\na = 1", "unknown key 'slrum'"),
    (P + "[pool.p.slurm]\na = 1", "pool.p: slurm: the pool's batch system is 'local'"),
    (P + 'cores = "two"', "site.toml: pool.p: cores = 'two' (expected a whole number of at least 0)"),
    (P + "cores = -1", "cores = -1"), (P + "max-workers = 0", "at least 1"),
    (P + 'walltime = "soon"', "walltime = 'soon' (expected seconds"), (P + "walltime = 30", "at least 60"),
    (P + "min-workers = 5\nmax-workers = 3", "pool.p: min-workers 5 is larger than max-workers 3"),
    (P + 'deliver = "carrier"', "expected one of 'transfer', 'shared'"),
    (P + 'deliver = "transfer"', "sends no files with a job"), (P + "workers-per-job = 2", "a local job is one worker"),
    (P + 'env = ["A=1"]', "expected a table"), (P + 'env = { "A B" = "1" }', "cannot be the name of a variable"),
    (P + 'env = { A = "1\\n2" }', "line break"), (P + '[pool.p.blocks]\nx = 3', "pool.p.blocks: x = 3"),
    (P + P, 'not TOML: Cannot declare'), (P + "[pool.P]\nbatch = 'local'", "but for the case of letters"),
    ('[pool."../x"]\nbatch = "local"', "pool name '../x'"), ('[pool."a/b"]\nbatch = "local"', "pool name"),
    ("[pool]\n", "there are no pools"), ("[defaults]\ncores = 1\n", "[defaults] without any pool"), ("", "is empty"),
    ("pool = 3", "pool = 3"), ("[pool]\np = 3", "pool.p = 3"), ("x = ", "not TOML"), ("[pool.p]\n", "no batch system"),
    ('[pool.p]\nbatch = "slrum"', "pool.p: batch system 'slrum' is not known (give one: did you mean 'slurm'?"),
    ('[pool.p]\nbatch = "amazon"', "cloud machines"), ('[pool.p]\nbatch = "dryrun"', "vine_factory render"),
    ("parent-death = true\n" + P, "unknown key 'parent-death'"), ('env = ["A"]\n' + P, "expected VARIABLE=value"),
    ('password = "a\\u0000b"\n' + P, "NUL"),
])
def test_a_wrong_site_file_is_an_error_that_says_where_and_what(read: Read, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert words in re.sub(r"/\S*/site\.toml", "site.toml", str(caught.value))


def test_a_file_is_toml_or_json_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text('\ufeff{"max-workers": 2 + 1}', encoding="utf-8")
    assert config.read_file(path).values["max-workers"].value == 3
    path = tmp_path / "c.json"
    path.write_text('max-workers = 4\npassword = "x"\n')
    assert config.read_file(path).values["password"].value == "x"


def test_a_site_file_without_pools_is_for_the_pool_of_the_command_line(read: Read) -> None:
    made = read('max-workers = 4\nbatch-type = "local"\nworkers-blocked = "a b"')
    assert (made.pools[0].name, made.pools[0].maximum, made.pools[0].blocked_hosts) == ("local", 4, ("a", "b"))


def test_published_options_of_other_batch_systems_are_told_to_have_no_effect(read: Read) -> None:
    made = read(P + "", autosize=True, condor_requirements=["X", "Y"])
    assert [note.split(": ")[1] for note in made.notes] == \
        ["condor-requirements has no effect", "autosize has no effect"]


def test_published_options_become_those_of_the_batch_system(read: Read) -> None:
    text = '[pool.p]\nbatch = "condor"\n[pool.q]\nbatch = "condor"\n[pool.q.condor]\nrequirements = "C"'
    made = read(text, autosize=True, condor_requirements=["A || B", "D"], batch_options="+X = 1\\n+Y = 2")
    first, second = made.pools
    assert first.options["requirements"] == "(A || B) && (D)"
    assert (first.options["autosize"], first.options["extra-directives"]) == (True, ("+X = 1", "+Y = 2"))
    assert second.options["requirements"] == "C"
    assert made.origins["pool.p.condor.requirements"] == "command line"
    assert made.origins["pool.q.condor.requirements"].endswith("site.toml: pool.q.condor")
    assert made.notes == ()


@pytest.mark.parametrize(("text", "words"), [
    ("requirement = 'x'", "pool.p.condor: unknown key 'requirement' (did you mean 'requirements'"),
    ("priority = 'x'", "pool.p.condor: priority = 'x'"), ("requirements = \"a\\nqueue 9\"", "line break")])
def test_options_of_a_batch_system_are_checked_by_its_own_table(read: Read, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(f'[pool.p]\nbatch = "condor"\n[pool.p.condor]\n{text}')
    assert words in str(caught.value)
    with pytest.raises(ConfigError, match="defaults"):
        read(f"[defaults.condor]\n{text}\n{P}")


def test_every_batch_system_has_a_title_and_known_delivery() -> None:
    for name, driver in registry.DRIVERS.items():
        assert driver.title and driver.deliver in registry.MANAGERS, name
    assert not set(registry.ALIASES) & set(registry.DRIVERS)
    assert set(registry.ALIASES.values()) <= set(registry.DRIVERS)


# ------------------------------------------------------------------------------------------ the worker's command


def test_a_sent_worker_is_told_the_addresses_and_leaves_before_its_job_is_over(read: Read) -> None:
    made = read('[pool.p]\nbatch = "condor"\nwalltime = "4h"\ntask-wrapper = "nice -n 5"\nwrapper = "sh \'a b\'"')
    sent = Delivery(("python3", "vine_worker.pyz"), "vine_worker.key", (Path("/f/vine_worker.pyz"),))
    words = command.worker_command(made, made.pools[0], "r-1", sent, ("m1:9123", "m2:9124"))
    assert words[:4] == ("sh", "a b", "python3", "vine_worker.pyz")
    assert 0.8 * 14400 < float(words[words.index("--wall-time") + 1]) < 14400
    assert words[words.index("--password") + 1] == "vine_worker.key"
    assert words[words.index("--task-wrapper") + 1] == "nice -n 5"
    assert words[-1] in ("m1:9123;m2:9124", "m2:9124;m1:9123") and "-M" not in words


def test_workers_begin_with_different_managers(read: Read) -> None:
    made = read('[pool.p]\nbatch = "condor"')
    first = {command.worker_command(made, made.pools[0], f"r-{n}", WORKER, ("a:1", "b:2", "c:3"))[-1][0]
             for n in range(50)}
    assert first == {"a", "b", "c"}


def test_the_compiled_worker_is_given_published_options_only(read: Read) -> None:
    made = read(P)
    assert "--factory-job" in command.worker_command(made, made.pools[0], "r-1", WORKER)
    assert "--factory-job" not in command.worker_command(made, made.pools[0], "r-1",
                                                         WORKER._replace(published_only=True))


@pytest.mark.parametrize(("hosts", "expected"), [
    (["127.0.0.1", "10.0.0.5", "vm"], "10.0.0.5:9"), (["localhost", "::1"], "me.site:9"), (["fd00::1"], "[fd00::1]:9"),
    ([], "me.site:9")])
def test_no_worker_elsewhere_is_told_a_loopback_address(hosts: list[str], expected: str) -> None:
    assert command.address(hosts, 9, "me.site") == expected


def test_a_job_has_the_pools_variables_files_and_number_of_workers(read: Read) -> None:
    made = read('[pool.p]\nbatch = "slurm"\nworkers-per-job = 4\nwalltime = "1h"\nenv = { A = "1" }')
    delivery = Delivery(("w",), ship=(Path("/x"),), environment={"A": "0", "B": "2"})
    job = command.job_request(made, made.pools[0], JobTag("f", "p", "r-1"), delivery, ())
    assert (job.environment, job.ship, job.copies, job.walltime_s) == ({"A": "1", "B": "2"}, (Path("/x"),), 4, 3600)


# ------------------------------------------------------------------------------------------------- while running


def site_file(path: Path) -> ConfigFile:
    return ConfigFile(path, lambda values: config.build({}, values, host="h", port=1, machine=MACHINE))


def test_pools_come_and_go_while_running_and_those_with_jobs_drain(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text('[pool.a]\nbatch = "local"\n[pool.b]\nbatch = "local"\nmin-workers = 1')
    file = site_file(path)
    current = file.load()
    path.write_text('[pool.c]\nbatch = "local"\n')
    changed, notes = file.changed(current)
    assert changed is not None and notes == []
    merged = with_leaving(changed, current, {"b"})
    assert [(pool.name, pool.minimum, pool.maximum, pool.leaving) for pool in merged.pools] == \
        [("c", 0, 1, False), ("b", 0, 0, True)]
    assert with_leaving(changed, merged, ()) == changed


def test_a_pool_cannot_change_its_batch_system_while_running(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text(P)
    file = site_file(path)
    current = file.load()
    path.write_text('[pool.p]\nbatch = "slurm"')
    changed, notes = file.changed(current)
    assert changed is None and "give the new pool another name" in notes[0]


def test_a_file_emptied_by_an_editor_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text(P)
    file = site_file(path)
    current = file.load()
    path.write_text("")
    changed, notes = file.changed(current)
    assert changed is None and "is empty" in notes[0]
