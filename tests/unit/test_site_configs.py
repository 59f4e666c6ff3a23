"""Shipped site files: each can be read, rendered and checked offline."""

from __future__ import annotations

from pathlib import Path

import pytest

from vine_factory import cli

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "site-configs").glob("*.toml"))


def test_there_are_site_files() -> None:
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_shipped_site_file_is_rendered_and_checked(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert cli.main(["render", "-C", str(path), "--scratch-dir", str(tmp_path / "home")]) == 0
    assert "==> pool " in capsys.readouterr().out
    assert cli.main(["check", "--offline", "-C", str(path), "--scratch-dir", str(tmp_path / "home")]) == 0
    assert "PROBLEM" not in capsys.readouterr().out
