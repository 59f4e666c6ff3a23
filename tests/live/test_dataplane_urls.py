"""Objects from URLs: what arrives, what the server's refusals become, and how a URL is named."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from taskvine_core.dataplane import urls
from taskvine_core.dataplane.channel import Cancelled
from taskvine_core.dataplane.objects import ObjectInfo, hash_object
from taskvine_core.dataplane.urls import fetch_url
from taskvine_core.errors import DiskFullError, IntegrityError, SourceError, TransferError

BODY = os.urandom(3_000_000)
MD5 = hashlib.md5(BODY).digest()
TIMEOUT_S = 5.0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    release: threading.Event
    agents: list[str]

    def do_GET(self) -> None:
        self.agents.append(self.headers["User-Agent"])
        getattr(self, "go_" + self.path.strip("/").replace("-", "_"), self.go_unknown)()

    do_HEAD = do_GET

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def go_unknown(self) -> None:
        self.send_error(404)

    def go_broken(self) -> None:
        self.send_error(503)

    def go_good(self) -> None:
        self.answer(200, {"Content-Length": str(len(BODY))}, BODY)

    def go_moved(self) -> None:
        self.answer(302, {"Location": "/good", "Content-Length": "0"})

    def go_moved_etag(self) -> None:
        self.answer(302, {"Location": "/etag", "Content-Length": "0"})

    def go_unsized(self) -> None:
        self.close_connection = True
        self.answer(200, {"Connection": "close"}, BODY)

    def go_short(self) -> None:
        self.close_connection = True
        self.answer(200, {"Content-Length": str(len(BODY) + 1)}, BODY)

    def go_stall(self) -> None:
        self.close_connection = True
        self.answer(200, {"Content-Length": str(len(BODY))}, BODY[:100_000])
        self.release.wait(TIMEOUT_S * 2)

    def go_etag(self) -> None:
        self.answer(200, {"Content-Length": "0", "ETag": '"v1"', "Last-Modified": "yesterday"})

    def go_modified(self) -> None:
        self.answer(200, {"Content-Length": "0", "Last-Modified": "yesterday"})

    def go_md5(self) -> None:
        self.answer(200, {"Content-Length": "0", "Content-MD5": base64.b64encode(MD5).decode(), "ETag": "x"})

    def go_odd_md5(self) -> None:
        self.answer(200, {"Content-Length": "0", "Content-MD5": "../../etc", "ETag": "x"})

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    Handler.release = threading.Event()
    Handler.agents = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    Handler.release.set()
    server.shutdown()
    thread.join(TIMEOUT_S)
    server.server_close()


def get(url: str, dest: Path, **more: Any) -> ObjectInfo:
    options = {"timeout_s": TIMEOUT_S, "cancel": lambda: False, "room": lambda size: True} | more
    return fetch_url(url, dest, **options)


@pytest.mark.parametrize("path", ["good", "moved", "unsized"])
def test_http_objects_arrive_whole(web: str, tmp_path: Path, path: str) -> None:
    info = get(f"{web}/{path}", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY
    assert info == hash_object(tmp_path / "x")
    assert info.mode == 0o644
    assert set(Handler.agents) == {urls.USER_AGENT}


@pytest.mark.parametrize(("path", "words"), [("nothing", "HTTP 404 Not Found for http"),
                                             ("broken", "HTTP 503 Service")])
def test_refusals_come_in_the_words_of_the_server(web: str, tmp_path: Path, path: str, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        get(f"{web}/{path}", tmp_path / "x")
    assert os.listdir(tmp_path) == []


def test_fewer_bytes_than_announced_are_not_an_object(web: str, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="3000000 of 3000001"):
        get(f"{web}/short", tmp_path / "x")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", ["good", "unsized"])
def test_no_room_is_our_own_fault(web: str, tmp_path: Path, path: str) -> None:
    with pytest.raises(DiskFullError):
        get(f"{web}/{path}", tmp_path / "x", room=lambda size: size < 1_000_000)
    assert os.listdir(tmp_path) == []


def test_a_silent_server_is_left_after_the_timeout(web: str, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(SourceError, match="no answer in time"):
        get(f"{web}/stall", tmp_path / "x", timeout_s=0.5)
    assert time.monotonic() - start < 3
    assert os.listdir(tmp_path) == []


def test_a_cancelled_download_ends_within_half_a_second(web: str, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(Cancelled):
        get(f"{web}/stall", tmp_path / "x", cancel=lambda: True)
    assert time.monotonic() - start < 0.75
    assert os.listdir(tmp_path) == []


def speak_ftp(listener: socket.socket, announced: int, open_controls: list[socket.socket]) -> None:
    """One passive binary download of BODY, as far as urllib needs it."""
    control, _ = listener.accept()
    open_controls.append(control)
    with control.makefile("rwb", buffering=0) as line, socket.create_server(("127.0.0.1", 0)) as data:
        port = data.getsockname()[1]
        answers = {"USER": "331 who", "PASS": "230 in", "TYPE": "200 ok", "CWD": "250 ok", "PWD": '257 "/"',
                   "QUIT": "221 bye", "PASV": f"227 at (127,0,0,1,{port // 256},{port % 256})",
                   "RETR": f"150 sending ({announced} bytes)"}
        line.write(b"220 hello\r\n")
        while words := line.readline().split():
            command = words[0].decode()
            if words[-1] == b"bad":
                line.write(b"550 no such file\r\n")
                continue
            line.write(answers.get(command, "500 what").encode() + b"\r\n")
            if command == "RETR":
                connection, _ = data.accept()
                with connection:
                    connection.sendall(BODY)
                line.write(b"226 done\r\n")


@pytest.fixture
def ftp(request: pytest.FixtureRequest) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        controls: list[socket.socket] = []
        thread = threading.Thread(target=speak_ftp, args=(listener, getattr(request, "param", len(BODY)), controls))
        thread.start()
        yield f"ftp://127.0.0.1:{listener.getsockname()[1]}/dir"
        for control in controls:  # urllib leaves it open after an error, until the exception is forgotten
            with contextlib.suppress(OSError):
                control.shutdown(socket.SHUT_RDWR)
            control.close()
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


def test_ftp_objects_arrive_whole(ftp: str, tmp_path: Path) -> None:
    assert get(f"{ftp}/good", tmp_path / "x") == hash_object(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY


@pytest.mark.parametrize("ftp", [len(BODY) + 1], indirect=True)
def test_ftp_objects_shorter_than_announced_are_none(ftp: str, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError):
        get(f"{ftp}/good", tmp_path / "x")


def test_ftp_refusals_come_in_the_words_of_the_server(ftp: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        get(f"{ftp}/bad", tmp_path / "x")


def test_nobody_there_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="refused for http"):
        get("http://127.0.0.1:1/x", tmp_path / "x")


@pytest.mark.parametrize("url", ["gopher9://x/y", "no-scheme", "", "://x"])
def test_unknown_schemes_are_named(tmp_path: Path, url: str) -> None:
    with pytest.raises(SourceError):
        get(url, tmp_path / "x")
    assert os.listdir(tmp_path) == []


def test_without_curl_other_schemes_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match="'sftp' is not known"):
        get("sftp://host/x", tmp_path / "x")


def fake_curl(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (directory / "bin").mkdir()
    (directory / "bin" / "curl").write_text("#!/bin/sh\n" + script)
    (directory / "bin" / "curl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory / 'bin'}:{os.environ['PATH']}")


def test_curl_fetches_what_urllib_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_curl(tmp_path, monkeypatch, 'while [ "$1" != --output ]; do shift; done; printf %s "$4" > "$2"\n')
    info = get("sftp://host/x; touch evil", tmp_path / "x")
    assert (tmp_path / "x").read_text() == "sftp://host/x; touch evil"
    assert info == hash_object(tmp_path / "x")


def test_curl_complaints_and_full_disks_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_curl(tmp_path, monkeypatch, 'echo "curl: no" >&2; case "$*" in *no-quota*) exit 23;; esac; exit 7\n')
    with pytest.raises(SourceError, match="curl: no for sftp"):
        get("sftp://host/x", tmp_path / "x")
    with pytest.raises(DiskFullError):
        get("sftp://host/no-quota", tmp_path / "x")


def test_a_cancelled_curl_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_curl(tmp_path, monkeypatch, "exec sleep 60\n")
    start = time.monotonic()
    with pytest.raises(Cancelled):
        get("sftp://host/x", tmp_path / "x", cancel=lambda: True)
    assert time.monotonic() - start < 2


def test_file_urls_copy_files_and_directories(tmp_path: Path) -> None:
    root = tmp_path / "a b"
    (root / "dir" / "empty").mkdir(parents=True)
    (root / "dir" / "large").write_bytes(BODY)
    (root / "dir" / "small").write_bytes(b"s")
    (root / "dir" / "zero").write_bytes(b"")
    (root / "dir" / "small").chmod(0o755)
    (root / "link").symlink_to("dir/small")
    info = get(root.as_uri(), tmp_path / "copy")
    assert info == hash_object(root) == hash_object(tmp_path / "copy")
    assert get((root / "dir" / "small").as_uri(), tmp_path / "one") == hash_object(root / "dir" / "small")
    assert get(f"file://localhost{root / 'dir' / 'zero'}", tmp_path / "two").size_bytes == 0


@pytest.mark.parametrize(("url", "words"), [("file:///no/such/thing", "No such file"), ("file://other/x", "other")])
def test_bad_file_urls_say_why(tmp_path: Path, url: str, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        get(url, tmp_path / "x")


def test_a_file_url_of_a_directory_copies_links_that_lead_out_as_links(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "link").symlink_to("/etc")
    assert get((tmp_path / "d").as_uri(), tmp_path / "x").size_bytes == 0
    assert os.readlink(tmp_path / "x" / "link") == "/etc"


def test_what_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"mine")
    with pytest.raises(TransferError, match="exists"):
        get("file:///etc/hostname", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"mine"
