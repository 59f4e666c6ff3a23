"""Rules of the key: made once, private, the same for everybody who should have it, with clear refusals."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from taskvine_core import secret
from taskvine_core.errors import ConfigError, SecurityError

PROCESSES = 8
DEADLINE_S = 60
KEY_OF_SESAME = "2f0c4b84b93e3a4364c3da9a27fc1ab7e61fe22c5d3806c10ab48723e5e7b799"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def key_file() -> Path:
    return secret.state_directory() / secret.SECRET_FILE


def test_the_key_is_made_at_first_use_and_private() -> None:
    key = secret.load_secret()
    assert len(key) == secret.SECRET_BYTES
    assert secret.load_secret() == key
    assert stat.S_IMODE(key_file().stat().st_mode) == 0o600
    assert stat.S_IMODE(key_file().parent.stat().st_mode) == 0o700
    assert [entry.name for entry in key_file().parent.iterdir()] == ["secret"]  # no temporary left


def test_two_users_have_two_keys(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = secret.load_secret()
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "other"))
    assert secret.load_secret() != first


@pytest.mark.parametrize("value", ["", "relative/state"])
def test_without_a_usable_xdg_setting_the_state_is_under_home(value: str, home: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", value)
    assert secret.state_directory() == home / "home" / ".local" / "state" / "taskvine"


@pytest.mark.parametrize("links", [True, False])
def test_processes_that_start_together_agree_on_one_key(links: bool) -> None:
    """Each makes its key when it reads a byte, so that all do it at the same moment."""
    program = ("import errno, os, sys; from taskvine_core import secret\n"
               "def no_link(a, b): raise OSError(errno.EPERM, 'no links here')\n"
               f"if not {links}: os.link = no_link\n"
               "secret.state_directory(); print('ready', flush=True); sys.stdin.read(1)\n"
               "print(secret.load_secret().hex())\n")
    started = [subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                text=True)
               for _ in range(PROCESSES)]
    try:
        for process in started:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("x")
            process.stdin.flush()
        keys = [process.communicate(timeout=DEADLINE_S)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait(DEADLINE_S)
    assert set(keys) == {secret.load_secret().hex() + "\n"}
    assert [entry.name for entry in key_file().parent.iterdir()] == ["secret"]


def test_a_process_that_finds_a_faster_one_takes_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    faster = "ab" * 32

    def link(_source: Any, target: Path) -> None:
        secret._write_new(target, faster.encode())
        raise FileExistsError(errno.EEXIST, "exists")

    monkeypatch.setattr(os, "link", link)
    assert secret.load_secret().hex() == faster


def test_a_key_file_that_is_being_filled_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without hard links the faster process makes the file first and writes a moment later."""
    secret.state_directory()
    secret._write_new(key_file(), b"")
    monkeypatch.setattr(time, "sleep", lambda _: key_file().write_text("cd" * 32))
    assert secret.load_secret().hex() == "cd" * 32


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622, 0o666])
def test_a_key_file_open_to_others_is_refused(mode: int) -> None:
    secret.load_secret()
    key_file().chmod(mode)
    with pytest.raises(SecurityError, match=rf"open to other users \(mode {mode:o}\).*delete it"):
        secret.load_secret()


def test_a_state_directory_others_can_write_in_is_refused() -> None:
    secret.load_secret()
    key_file().parent.chmod(0o770)
    with pytest.raises(SecurityError, match=r"other users can write in .*chmod 700"):
        secret.load_secret()


@pytest.mark.parametrize("content", ["abc\n", "AB" * 32, "ab" * 33, "ab" * 32 + "\n\n", "zz" * 32])
def test_a_damaged_key_file_is_not_replaced_silently(content: str) -> None:
    secret.state_directory()
    secret._write_new(key_file(), content.encode())
    with pytest.raises(SecurityError, match=r"is damaged.*delete it"):
        secret.load_secret()
    assert key_file().read_text() == content


def test_an_empty_key_file_is_damaged_when_nobody_fills_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret, "_FILL_TIMEOUT_S", 0.05)
    secret.state_directory()
    secret._write_new(key_file(), b"")
    with pytest.raises(SecurityError, match="is damaged"):
        secret.load_secret()


def test_what_is_no_regular_file_is_refused_and_never_waited_for() -> None:
    os.mkfifo(secret.state_directory() / secret.SECRET_FILE, 0o600)
    with pytest.raises(SecurityError, match="not a regular file"):
        secret.load_secret()


def test_a_state_directory_that_cannot_be_made_says_what_to_set(home: Path) -> None:
    (home / "state").write_text("a file in the way")
    with pytest.raises(ConfigError, match=r"cannot be made: .*XDG_STATE_HOME"):
        secret.load_secret()


def test_no_space_for_the_key_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"cannot be made: No space left"):
        secret.load_secret()
    assert list(secret.state_directory().iterdir()) == []


# ---------------------------------------------------------------------------- passwords


def test_a_password_gives_one_key_whatever_ends_its_line(home: Path) -> None:
    expected = secret.secret_from_password("sesame")
    for content in (b"sesame", b"sesame\n", b"sesame\r\n", b"sesame\n\n"):
        (home / "pw").write_bytes(content)
        (home / "pw").chmod(0o644)  # batch systems deliver it so; the directory protects it
        assert secret.load_secret(str(home / "pw")) == expected
    assert len(expected) == secret.SECRET_BYTES
    assert expected != secret.secret_from_password("sesame ")


def test_the_key_of_a_password_never_changes() -> None:
    """Both sides may run different releases: a changed number of rounds or salt locks them out."""
    assert secret.secret_from_password("sesame").hex() == KEY_OF_SESAME


def test_a_password_that_is_not_utf8_is_the_same_from_file_and_text(home: Path) -> None:
    (home / "pw").write_bytes(b"caf\xe9\n")
    text = os.fsdecode(b"caf\xe9")
    assert secret.load_secret(str(home / "pw")) == secret.secret_from_password(text)


def test_a_copy_of_a_key_file_is_that_key(home: Path) -> None:
    key = secret.load_secret()
    (home / "shipped").write_bytes(key_file().read_bytes())
    assert secret.load_secret(str(home / "shipped")) == key


@pytest.mark.parametrize(("content", "sentence"), [(b"", "is empty"), (b"\n\r\n", "is empty"),
                                                   (b"x" * 70_000, "larger than")])
def test_a_file_that_holds_no_password_is_refused(content: bytes, sentence: str, home: Path) -> None:
    (home / "pw").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"the password file {home}/pw .*{sentence}"):
        secret.load_secret(str(home / "pw"))


def test_a_missing_password_file_or_empty_password_is_a_config_error(home: Path) -> None:
    for path in (home / "missing", home):
        with pytest.raises(ConfigError, match=r"the password file .* cannot be read"):
            secret.load_secret(str(path))
    with pytest.raises(ConfigError, match="password is empty"):
        secret.secret_from_password("")


def test_no_error_shows_a_key(home: Path) -> None:
    secret.state_directory()
    secret._write_new(key_file(), b"hunter2hunter2")
    with pytest.raises(SecurityError) as caught:
        secret.load_secret()
    assert "hunter2" not in str(caught.value)
