"""The manager's files: what becomes of an upload whose worker is lost."""

from __future__ import annotations

from pathlib import Path

from taskvine_core.dataplane.objects import ObjectInfo
from taskvine_core.manager import events as ev
from taskvine_core.manager.effects import Effects


def effects_with_upload(directory: Path) -> tuple[Effects, list[ev.Event]]:
    posted: list[ev.Event] = []
    effects = Effects(directory / "staging", posted.append, lambda name: None, lambda name: b"")
    effects.expect(ev.ExpectUpload(7, "file-rnd-x", str(directory / "x"), "output", 0o644))
    return effects, posted


def test_an_upload_that_has_not_begun_fails_with_its_worker_and_is_refused_afterwards(tmp_path: Path) -> None:
    effects, posted = effects_with_upload(tmp_path)
    ended = effects.sender_gone(7)
    assert ended is not None and ended.transfer_id == 7 and ended.error
    assert effects.begin_upload(7, "file-rnd-x") is None
    assert effects.sender_gone(7) is None and not posted


def test_an_upload_that_has_begun_ends_as_it_ends_although_its_worker_is_lost(tmp_path: Path) -> None:
    effects, posted = effects_with_upload(tmp_path)
    path = effects.begin_upload(7, "file-rnd-x")
    assert path is not None
    path.write_bytes(b"whole")
    assert effects.sender_gone(7) is None
    effects.end_upload(7, ObjectInfo(5, b"", False, 0o644), "")
    assert posted == [ev.UploadEnded(7, 5, b"", False, "")]
    assert (tmp_path / "x").read_bytes() == b"whole"
