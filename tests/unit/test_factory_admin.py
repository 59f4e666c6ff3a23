"""What admins get besides the factory itself: man page, completion, unit, metrics, report, systemd's protocol."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from taskvine_core import __version__
from taskvine_core.errors import ConfigError
from vine_factory import cli, manpage, metrics, report, status
from vine_factory.notify import Notifier

PACKAGE = Path(cli.__file__).parent
TIMEOUT_S = 30
# Every option of the published command (the forms with one letter as well).
PUBLISHED = (
    "-T", "--batch-type", "-C", "--config-file", "-M", "-N", "--manager-name", "--master-name", "-F",
    "--foremen-name", "--catalog", "-P", "--password", "-S", "--scratch-dir", "--parent-death", "-d", "-o", "-O",
    "--debug-workers", "--ssl", "--tls-sni", "--factory-name", "-w", "--min-workers", "-W", "--max-workers",
    "--workers-per-cycle", "-t", "--timeout", "--factory-timeout", "--factory-period", "--tasks-per-worker", "-c",
    "--capacity", "--cores", "--gpus", "--memory", "--disk", "--autosize", "--feature", "--env", "-E",
    "--extra-options", "--transfer-port", "--worker-binary", "--wrapper", "--wrapper-input", "--task-wrapper",
    "--single-shot", "--poncho-env", "--python-env", "--python-package", "-B", "--batch-options",
    "--amazon-config", "--condor-requirements", "--condor-spool", "--disable-afs-check", "--k8s-image",
    "--k8s-worker-image", "--mesos-master", "--mesos-path", "--mesos-preload", "--runos",
    "--run-factory-as-manager", "-v", "--version", "-h", "--help")


@pytest.mark.parametrize("option", PUBLISHED)
def test_every_published_option_is_taken(option: str) -> None:
    assert option in cli._parser()._option_string_actions


def test_the_shipped_manual_page_is_current_and_names_every_option() -> None:
    page = manpage.manual(cli._parser(), cli.parsers(), __version__)
    assert (PACKAGE / "man" / "vine_factory.1").read_text() == page, "run: vine_factory man > .../man/vine_factory.1"
    for name in (*cli.OPTIONS, "wait", "replay", "watch", "stderr"):
        assert f"\\-\\-{name.replace('-', chr(92) + '-')}" in page


@pytest.mark.skipif(shutil.which("man") is None, reason="needs man")
def test_the_manual_page_has_no_errors_of_roff() -> None:
    done = subprocess.run(["man", "--warnings", "-l", str(PACKAGE / "man" / "vine_factory.1")], capture_output=True,
                          text=True, timeout=TIMEOUT_S, check=False, env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"})
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "vine_factory explain" in done.stdout


def test_every_sub_command_has_a_parser() -> None:
    assert cli.parsers().keys() | {"run"} == cli.COMMANDS.keys()


@pytest.mark.parametrize("words,expected", [
    (["vine_factory", "dr"], {"drain"}), (["vine_factory", "drain", "--w"], {"--wait"}),
    (["vine_factory", "--min-w"], {"--min-workers"}), (["vine_factory", "explain", "--re"], {"--replay"})])
def test_bash_completes_commands_and_options(words: list[str], expected: set[str]) -> None:
    script = manpage.completion("bash", cli._parser(), cli.parsers())
    quoted = " ".join(f"'{word}'" for word in words)
    script += f'\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _vine_factory; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    assert set(done.stdout.split()) == expected


# What the shell's own completion would offer, "word<TAB or :>meaning" per line.
ASK = {"fish": "source {script}; complete -C '{line}'",
       "zsh": "compdef() {{ }}; _files() {{ }}; compadd() {{ print -l -- ${{(P)2}} }}; "
              "_describe() {{ print -l -- ${{(P)2}} }}; "
              "source {script}; words=({line} ''); CURRENT=$(( ${{#words}} - 1 )); _vine_factory"}


@pytest.mark.parametrize("shell", sorted(ASK))
@pytest.mark.parametrize(("line", "offered"), [
    ("vine_factory dr", "drain"), ("vine_factory ru", "run"), ("vine_factory drain --w", "--wait"),
    ("vine_factory --min-w", "--min-workers"), ("vine_factory run --min-w", "--min-workers"),
    ("vine_factory simulate --see", "--seed")])
def test_the_other_shells_complete_commands_and_options(shell: str, line: str, offered: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    (script := tmp_path / "script").write_text(manpage.completion(shell, cli._parser(), cli.parsers()))
    done = subprocess.run([shell, "-c", ASK[shell].format(script=script, line=line)], capture_output=True, text=True,
                          timeout=TIMEOUT_S, check=False, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})
    assert done.returncode == 0 and done.stderr == "", done
    found = dict(re.split("[:\t]", text, maxsplit=1) if re.search("[:\t]", text) else (text, "")
                 for text in done.stdout.splitlines())
    assert offered in found and "%(" not in done.stdout
    if offered == "--seed":
        assert re.search(r"default: \d", found[offered])


@pytest.mark.parametrize("shell", manpage.SHELLS)
def test_the_script_of_every_shell_knows_every_option(shell: str) -> None:
    script = manpage.completion(shell, cli._parser(), cli.parsers())
    assert all(re.search(rf"\b{name}\b", script) for name in cli.OPTIONS)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "vine_factory@x.service"
    shutil.copy(PACKAGE / "systemd" / "vine_factory@.service", unit)
    done = subprocess.run(["systemd-analyze", "--user", "--man=no", "verify", str(unit)], capture_output=True,
                          text=True, timeout=TIMEOUT_S, check=False,
                          env={"XDG_RUNTIME_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"})
    ours = [line for line in done.stderr.splitlines() if "vine_factory" in line]
    assert ours == []


@pytest.fixture
def listener(tmp_path: Path) -> Any:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.setblocking(False)
        yield made


def heard(listener: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(listener.recv(4096).decode())
        except BlockingIOError:
            return found


def test_systemd_hears_ready_once_the_status_when_it_changes_and_a_watchdog_thrice_per_period(
        listener: Any, tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "9000000"})
    notifier.passed("1 job")
    notifier.passed("1 job")
    notifier.passed("2 jobs")
    assert heard(listener) == ["READY=1\nSTATUS=1 job", "STATUS=2 jobs"]
    for now in range(10):
        notifier.alive(float(now))
    assert heard(listener) == ["WATCHDOG=1"] * 4
    notifier.stopping()
    assert heard(listener) == ["STOPPING=1"]


def test_without_systemd_nothing_is_said_and_a_dead_socket_hurts_nobody(tmp_path: Path) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "none"), "WATCHDOG_USEC": "x"}):
        notifier = Notifier(environment)
        notifier.passed("a")
        notifier.alive(0.0)
        notifier.stopping()


STATE: dict[str, Any] = {
    "factory_name": "f", "pid": 1, "host": "h", "target": "t", "stopping": "", "pools": [
        {"name": "a-pool-with-a-very-long-name", "wanted": 123456, "target": 5, "intended": 0, "submitted": 1,
         "queued": 2, "held": 0, "running": 3, "connected": 4500, "idle": 4, "draining": 5,
         "order": "paused", "why": "because",
         "last_fault": "sbatch: error: invalid account", "held_words": "", "faults": {"held": 7}, "preempted": 2}],
    "managers": [{"address": "m:1", "project": "p", "answers": False, "why": "silent", "tasks_waiting": 9,
                  "tasks_running": 8, "workers": 7}]}


def test_the_table_fits_into_eighty_columns_and_quotes_the_last_fault() -> None:
    lines = status.table(STATE).splitlines()
    assert max(map(len, lines)) <= 80
    assert any("last fault: sbatch: error: invalid account" in line for line in lines)
    assert any("paused on request: because" in line for line in lines)


def test_what_is_watched_on_a_terminal_is_folded_and_cut_to_it() -> None:
    text = status._fitted("x " * 200 + "\n" + "y\n" * 50, 80, 24)
    assert len(text.splitlines()) == 22 and max(map(len, text.splitlines())) < 80


def test_metrics_have_the_numbers_of_each_pool_and_manager() -> None:
    samples = {(metric.name, *labels): value for metric in metrics.METRICS for labels, value in metric.read(STATE)}
    pool = "a-pool-with-a-very-long-name"
    assert samples["vine_factory_jobs", pool, "connected"] == 4500
    assert samples["vine_factory_faults", pool, "held"] == 7
    assert samples["vine_factory_manager_answers", "m:1", "p"] == 0
    assert all(list(metric.read({})) == [] for metric in metrics.METRICS)


@pytest.mark.parametrize("text", ["", "x", "0", "65536", "-1"])
def test_a_metrics_port_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="metrics-port"):
        metrics.port_number(text)


def record(at: float, connected: int, **more: object) -> dict[str, Any]:
    return {"pool": "p", "at": at, "jobs": {"connected": connected}, "wanted": 5, "target": 3,
            "steps": [["max", 5, 3, "the pool holds at most 3"]], **more}


class Outside(HTMLParser):
    """Finds what a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "img", "link", "iframe") or any(name in ("src", "href") for name, _ in attrs):
            self.found.append(tag)


def test_the_report_shows_workers_decisions_and_faults_and_loads_nothing() -> None:
    evil = "<script src='http://evil'></script>"
    ended = {"at": 20.0, "pool": evil, "job": "j", "event": "ended", "why": "ended with status 127 after 0 s",
             "stderr": evil, "host": evil}
    page = report.page(evil, [record(10, 1), record(70, 3), {"jobs": 3}, record(130, 2, steps=[[evil, 1, 2, evil]])],
                       [ended, {"event": "ended", "why": "ended with status 0 after 9 s", "job": "good"}])
    outside = Outside()
    outside.feed(page)
    assert outside.found == [] and "http://evil" in page
    assert page.count("<polygon") == len(report.STATES) and "the pool holds at most 3" in page
    assert "status 127" in page and "good" not in page


def test_the_picture_of_a_long_history_stays_small_and_inside_its_frame() -> None:
    picture = report.picture([record(float(at), at % 7) for at in range(50_000)])
    assert len(picture) < 2_000_000
    numbers = [float(text) for text in re.findall(r"points=\"([0-9. ,-]*)\"", picture)[0].replace(",", " ").split()]
    assert min(numbers) >= 0 and max(numbers) <= 900


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as closed:
        done = subprocess.run([sys.executable, "-m", "vine_factory", "man"], stdout=closed, stderr=subprocess.PIPE,
                              text=True, timeout=TIMEOUT_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")
