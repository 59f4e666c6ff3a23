"""What an object is, and that no stream can place anything outside its destination."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from taskvine_core.dataplane.objects import (
    DIR,
    FILE,
    LINK,
    MAX_DEPTH,
    RECORD,
    SMALL_FILE_BYTES,
    UP_RECORD,
    check_link_target,
    hash_object,
    remove_object,
)
from taskvine_core.dataplane.receive import disk_error
from taskvine_core.dataplane.tree import TreeWriter, write_all
from taskvine_core.errors import DiskFullError, IntegrityError, SecurityError, SourceError


def entry(kind: int, name: bytes, content: bytes = b"", mode: int = 0o644, size: int | None = None) -> bytes:
    return RECORD.pack(kind, mode, len(name), len(content) if size is None else size) + name + content


class BytesSource:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, count: int) -> bytes:
        if count > len(self.data):
            raise SourceError("the stream ends early")
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    def copy(self, fd: int, count: int) -> None:
        write_all(fd, memoryview(self.take(count)))


def write_tree(dest: Path, *records: bytes, size: int = 1000, entries: int = 1000) -> None:
    TreeWriter(BytesSource(b"".join(records)), dest, size, entries).write(0o755)


def make_tree(root: Path, order: list[str]) -> None:
    root.mkdir()
    for name in order:
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())


def test_digest_of_a_file_is_that_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc" * 1_000_000)
    info = hash_object(tmp_path / "f")
    assert info.sha256 == hashlib.sha256(b"abc" * 1_000_000).digest()
    assert (info.size_bytes, info.is_dir) == (3_000_000, False)


def test_digest_of_a_directory_does_not_depend_on_order_of_creation_or_place(tmp_path: Path) -> None:
    names = ["b", "a", "dir/z", "dir/y", "c"]
    make_tree(tmp_path / "one", names)
    make_tree(tmp_path / "two", list(reversed(names)))
    assert hash_object(tmp_path / "one") == hash_object(tmp_path / "two")


@pytest.mark.parametrize("change", ["content", "mode", "name", "empty directory", "link", "large file"])
def test_digest_of_a_directory_sees_every_change(tmp_path: Path, change: str) -> None:
    root = tmp_path / "d"
    make_tree(root, ["a", "dir/z"])
    (root / "large").write_bytes(b"x" * (SMALL_FILE_BYTES + 1))
    (root / "link").symlink_to("a")
    before = hash_object(root).sha256
    if change == "content":
        (root / "a").write_bytes(b"b")
    elif change == "mode":
        (root / "a").chmod(0o755)
    elif change == "name":
        (root / "a").rename(root / "A")
    elif change == "empty directory":
        (root / "empty").mkdir()
    elif change == "link":
        (root / "link").unlink()
        (root / "link").symlink_to("dir")
    else:
        (root / "large").write_bytes(b"x" * SMALL_FILE_BYTES + b"y")
    assert hash_object(root).sha256 != before


def test_pipes_have_no_place_in_an_object(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="pipe"):
        hash_object(tmp_path)
    with pytest.raises(SourceError, match="neither"):
        hash_object(tmp_path / "pipe")


def test_a_link_may_lead_anywhere_but_must_be_the_text_of_a_link() -> None:
    for target in (b"../../a/b", b"/usr/bin/python3", b"../../..", b"nowhere", b"\xff"):
        check_link_target(target)
    for target in (b"", b"a\0b", b"x" * 4097):
        with pytest.raises(SecurityError):
            check_link_target(target)


def test_nothing_follows_a_link_that_leads_out_when_a_directory_is_hashed_or_removed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    make_tree(outside, ["secret"])
    inside = tmp_path / "d"
    inside.mkdir()
    (inside / "out").symlink_to(outside)
    (inside / "passwd").symlink_to("/etc/passwd")
    before = hash_object(inside)
    (outside / "secret").write_text("other")
    assert hash_object(inside) == before and before.size_bytes == 0
    remove_object(inside)
    assert (outside / "secret").read_text() == "other" and not inside.exists()


def test_missing_object_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file"):
        hash_object(tmp_path / "nothing")


def test_read_only_directories_are_removed(tmp_path: Path) -> None:
    make_tree(tmp_path / "d", ["dir/z"])
    (tmp_path / "d" / "link").symlink_to("dir")
    (tmp_path / "d" / "dir").chmod(0o555)
    remove_object(tmp_path / "d")
    remove_object(tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_removing_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    make_tree(tmp_path / "d", ["a"])
    (tmp_path / "link").symlink_to("d")
    remove_object(tmp_path / "link")
    assert (tmp_path / "d" / "a").exists()


def test_a_stream_recreates_files_links_directories_and_modes(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        write_tree(tmp_path / "d", entry(FILE, b"a", b"hello", 0o4755), entry(DIR, b"b", mode=0o555),
                   entry(FILE, b"c", b"", 0o600), UP_RECORD, entry(LINK, b"l", b"b/c"), UP_RECORD, size=5)
    finally:
        os.umask(old)
    root = tmp_path / "d"
    assert (root / "a").read_bytes() == b"hello"
    assert (root / "a").stat().st_mode & 0o7777 == 0o755
    assert (root / "b").stat().st_mode & 0o7777 == 0o555
    assert os.readlink(root / "l") == "b/c"
    assert root.stat().st_mode & 0o777 == 0o755
    remove_object(root)


@pytest.mark.parametrize("name", [b"..", b".", b"a/b", b"/a", b"", b"a\0b", b"x" * 256])
def test_entry_names_are_single_components(tmp_path: Path, name: bytes) -> None:
    with pytest.raises(SecurityError):
        write_tree(tmp_path / "d", entry(FILE, name, b"evil"), UP_RECORD)
    assert sorted(os.listdir(tmp_path)) == ["d"]


@pytest.mark.parametrize("target", [b"", b"a\0b"])
def test_text_that_is_no_link_is_not_created(tmp_path: Path, target: bytes) -> None:
    with pytest.raises(SecurityError):
        write_tree(tmp_path / "d", entry(LINK, b"l", target), UP_RECORD)
    assert not os.path.lexists(tmp_path / "d" / "l")


@pytest.mark.parametrize("target", [b"/etc", b"..", b"../x", b"a/../.."])
def test_a_link_is_created_as_it_is_and_nothing_can_follow_below_it(tmp_path: Path, target: bytes) -> None:
    write_tree(tmp_path / "d", entry(LINK, b"l", target), UP_RECORD, size=0)
    assert os.fsencode(os.readlink(tmp_path / "d" / "l")) == target
    for below in (entry(FILE, b"l/f", b"evil"), entry(DIR, b"l"), entry(FILE, b"l", b"evil")):
        with pytest.raises((SecurityError, IntegrityError)):
            write_tree(tmp_path / "e", entry(LINK, b"l", target), below, UP_RECORD)
        remove_object(tmp_path / "e")


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    with pytest.raises((IntegrityError, OSError)):
        write_tree(tmp_path / "d", entry(DIR, b"real"), UP_RECORD, entry(LINK, b"s", b"real"), entry(DIR, b"s"),
                   entry(FILE, b"f", b"evil"), UP_RECORD, UP_RECORD)
    assert os.listdir(tmp_path / "d" / "real") == []


@pytest.mark.parametrize(("records", "size", "entries"), [
    ([entry(FILE, b"b"), entry(FILE, b"a")], 0, 9),
    ([entry(FILE, b"a"), entry(FILE, b"a")], 0, 9),
    ([entry(FILE, b"a"), entry(FILE, b"b")], 0, 1),
    ([entry(FILE, b"a", b"12345")], 4, 9),
    ([entry(FILE, b"a", b"12345"), UP_RECORD], 6, 9),
    ([entry(FILE, b"a", size=1 << 62)], 10, 9),
    ([entry(9, b"a")], 0, 9),
    ([entry(DIR, b"a", size=3)], 0, 9),
    ([entry(LINK, b"a", size=1 << 40)], 0, 9),
    ([entry(DIR, b"d") for _ in range(MAX_DEPTH + 1)], 0, 9999),
    ([entry(DIR, b"d" * 250) for _ in range(20)], 0, 9999),
], ids=["order", "twice", "entries", "more bytes", "fewer bytes", "huge", "kind", "sized dir", "long link", "deep",
        "long path"])
def test_streams_that_are_not_canonical_are_refused(tmp_path: Path, records: list[bytes], size: int,
                                                     entries: int) -> None:
    with pytest.raises(IntegrityError):
        write_tree(tmp_path / "d", *records, UP_RECORD, size=size, entries=entries)
    remove_object(tmp_path / "d")


def test_descriptors_are_given_back_after_a_bad_stream(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for index in range(3):
        with pytest.raises(SourceError):
            write_tree(tmp_path / f"d{index}", entry(DIR, b"a"), entry(DIR, b"b"), entry(FILE, b"f", size=5))
    assert len(os.listdir("/proc/self/fd")) == before


def test_lack_of_space_is_told_apart_from_other_faults() -> None:
    assert isinstance(disk_error(OSError(28, "No space left on device"), "x"), DiskFullError)
    assert not isinstance(disk_error(OSError(13, "Permission denied"), "x"), DiskFullError)
