"""Cached names: how a declared file is called in worker caches (reference, section 11.2).

Owns the forms ``<kind>-<how>-<value>``, the reading of local files and URL headers they are made from, and the random
names. Must not know managers or tasks. A name that stands for content is the same in every run; the others are only
unique.
"""

from __future__ import annotations

import hashlib
import os
import stat
from typing import Any

from taskvine_core.constants import VINE_CACHE_LEVEL_WORKER
from taskvine_core.model.tasks import TaskSpec
from taskvine_core.records import NamedTuple

#: Files are hashed in pieces of this size: large enough that calls do not matter, small enough to stay in cache.
_CHUNK_BYTES = 1 << 20

#: How long a server may take to answer about a URL being declared; after that the name comes from the URL alone.
URL_HEADERS_TIMEOUT_S = 10.0

#: 8 random bytes give 16 letters: each hexadecimal digit becomes one of a-p.
_RANDOM_BYTES = 8
_RANDOM_LETTERS = 2 * _RANDOM_BYTES
_LETTERS = str.maketrans("0123456789abcdef", "abcdefghijklmnop")
#: Random values drawn at a time. Each call of the generator gives up the interpreter lock, and a program that declares
#: a temp per task would hand it to the manager's thread, and wait to get it back, once per task.
_DRAWN_AT_ONCE = 256
_drawn: list[str] = []
# A forked child must not go on with the names its parent will use.
os.register_at_fork(after_in_child=_drawn.clear)


class LocalFacts(NamedTuple):
    """What a local path is now. ``exists`` False: nothing is there (yet)."""

    exists: bool
    size: int = -1
    mtime_ns: int = 0
    is_dir: bool = False


def random_letters() -> str:
    """16 random letters from the system's generator; callable from any thread."""
    try:
        return _drawn.pop()
    except IndexError:
        text = os.urandom(_RANDOM_BYTES * _DRAWN_AT_ONCE).hex().translate(_LETTERS)
        _drawn.extend([text[at:at + _RANDOM_LETTERS] for at in range(_RANDOM_LETTERS, len(text), _RANDOM_LETTERS)])
        return text[:_RANDOM_LETTERS]


def random_name(kind: str) -> str:
    """``<kind>-rnd-<16 random letters>``."""
    return f"{kind}-rnd-{random_letters()}"


def text_md5(*parts: str) -> str:
    """Digest of several strings, so that ("a", "bc") and ("ab", "c") differ."""
    digest = hashlib.md5(usedforsecurity=False)
    for part in parts:
        raw = part.encode("utf-8", "surrogateescape")
        digest.update(f"{len(raw)}:".encode())
        digest.update(raw)
    return digest.hexdigest()


def buffer_name(data: bytes) -> str:
    """Name of an input buffer that is kept by content."""
    return f"buffer-md5-{hashlib.md5(data, usedforsecurity=False).hexdigest()}"


def local_facts(path: str) -> LocalFacts:
    """Look at a local path. A directory has no size here (-1): it is measured when it is sent."""
    try:
        found = os.stat(path)
    except OSError:
        return LocalFacts(False)
    is_dir = stat.S_ISDIR(found.st_mode)
    return LocalFacts(True, -1 if is_dir else found.st_size, found.st_mtime_ns, is_dir)


def file_name(path: str, level: int, facts: LocalFacts, content_md5: str = "") -> str:
    """Name of a local file or directory.

    Args:
        path: absolute path.
        level: VINE_CACHE_LEVEL_*.
        facts: what ``local_facts`` saw.
        content_md5: digest of the content, given when the level keeps files beyond one workflow.
    """
    if not facts.exists:
        return random_name("file")
    if level >= VINE_CACHE_LEVEL_WORKER and content_md5:
        return f"file-md5-{content_md5}"
    return f"file-meta-{text_md5(path, str(facts.size), str(facts.mtime_ns))}"


def content_digests(path: str, is_dir: bool) -> tuple[str, bytes]:
    """MD5 (hexadecimal) of what is at ``path`` and, for a regular file, its SHA-256 (else b"").

    Raises:
        OSError: it cannot be read.
    """
    if is_dir:
        return _directory_md5(path), b""
    md5 = hashlib.md5(usedforsecurity=False)
    sha256 = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(_CHUNK_BYTES):
            md5.update(piece)
            sha256.update(piece)
    return md5.hexdigest(), sha256.digest()


def _directory_md5(path: str) -> str:
    """Digest over the sorted recursive listing: name, mode and content digest of each entry."""
    lines = []
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            mode = entry.stat(follow_symlinks=False).st_mode
            if entry.is_symlink():
                value = text_md5(os.readlink(entry.path))
            elif entry.is_dir():
                value = _directory_md5(entry.path)
            else:
                value = content_digests(entry.path, False)[0]
            lines.append(f"{entry.name}\0{mode:o}\0{value}")
    return text_md5(*lines)


def url_name(url: str, level: int, headers: dict[str, str], content_md5: str = "") -> str:
    """Name of a URL.

    Args:
        headers: answer of its server, keys in lower case; empty when it did not answer.
        content_md5: digest of the content, for ``file://`` URLs.
    """
    if level < VINE_CACHE_LEVEL_WORKER:
        return random_name("url")
    if content_md5:
        return f"url-md5-content-{content_md5}"
    if said := _safe_digest(headers.get("content-md5", "")):
        return f"url-md5-content-{said}"
    if etag := headers.get("etag"):
        return f"url-md5-et-{text_md5(url, etag)}"
    if modified := headers.get("last-modified"):
        return f"url-md5-lm-{text_md5(url, modified)}"
    return f"url-md5-url-{text_md5(url)}"


def _safe_digest(said: str) -> str:
    """A Content-MD5 header (base64 or hexadecimal) as hexadecimal, "" when it is neither."""
    import base64
    import binascii

    md5_bytes = 16
    try:
        raw = bytes.fromhex(said) if len(said) == 2 * md5_bytes else base64.b64decode(said, validate=True)
    except (ValueError, binascii.Error):
        return ""
    return raw.hex() if len(raw) == md5_bytes else ""


def url_headers(url: str) -> dict[str, str]:
    """Ask the server of a URL about it, following redirects; {} when it does not answer, for any reason.

    The reason is not kept: a worker that later fails to fetch it tells the reason then.
    """
    if not url.startswith(("http://", "https://")):
        return {}
    from http.client import HTTPException
    from urllib.request import HTTPRedirectHandler, Request, build_opener

    class KeepHead(HTTPRedirectHandler):
        def redirect_request(self, *args: Any, **kwargs: Any) -> Request | None:
            request = super().redirect_request(*args, **kwargs)
            if request is not None:
                request.method = "HEAD"  # older Pythons ask the new place for the whole content
            return request

    try:
        with build_opener(KeepHead).open(Request(url, method="HEAD"), timeout=URL_HEADERS_TIMEOUT_S) as answer:
            return {key.lower(): value for key, value in answer.headers.items()}
    except (OSError, ValueError, HTTPException):
        return {}


def mini_task_name(spec: TaskSpec, source: str, level: int) -> str:
    """Name of what a mini-task produces: by its canonical description when it is kept beyond one workflow."""
    if level < VINE_CACHE_LEVEL_WORKER:
        return random_name("task")
    parts = [spec.command, source]
    for mount in sorted(spec.inputs, key=lambda m: m.remote):
        parts += ["input", mount.remote, mount.name]
    for mount in sorted(spec.outputs, key=lambda m: m.remote):
        parts += ["output", mount.remote, mount.name]
    for name, value in sorted(spec.env, key=lambda pair: pair[0]):
        parts += ["env", name, "unset" if value is None else "=" + value]
    return f"task-md5-{text_md5(*parts)}"
