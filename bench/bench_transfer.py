"""Raw speed of the data plane on loopback, each figure beside its limit measured in the same run.

Three questions: one large file against a bare sendfile/recv pair with SHA-256 beside it; a directory of 1,000 small
files, and 1,000 small objects, against one tar of the same bytes (made, moved with the data plane, unpacked).
Rounds alternate between product and limit; the best rounds are compared, because others use the machine too. One JSON
line each.

    python bench/bench_transfer.py [--megabytes 1024] [--rounds 5] [--directory /dev/shm]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

from taskvine_core.dataplane.client import fetch
from taskvine_core.dataplane.objects import hash_object, remove_object
from taskvine_core.dataplane.server import DataServer, ServedObject

SECRET = b"bench" * 8
BUFFER_BYTES = 1 << 20
BUFFERS = 4
SMALL_FILES = 1000
SMALL_BYTES = 4096
LARGE, TREE, TAR = "file-rnd-large", "file-rnd-tree", "file-rnd-tar"
SMALL_NAMES = [f"file-rnd-small{index}" for index in range(SMALL_FILES)]
PATIENCE_S = 120.0


class Shelf:
    """Serves what is in a directory; knows the digests it is given."""

    def __init__(self, directory: Path, digests: dict[str, bytes]) -> None:
        self.directory = directory
        self.digests = digests

    def open_object(self, name: str) -> ServedObject | None:
        path = self.directory / name
        return ServedObject(path, self.digests.get(name, b""), lambda ok, sent: None)

    def begin_upload(self, transfer_id: int, name: str) -> Path | None:
        return None

    def end_upload(self, transfer_id: int, info: object, error: str) -> None:
        return None


def serve(directory: Path, digests: dict[str, bytes], pipe: Connection) -> None:
    """The other process: a data server, and bare senders on demand."""
    server = DataServer(secret=SECRET, role="worker", provider=Shelf(directory, digests), max_threads=4,
                        timeout_s=PATIENCE_S)
    port = server.listen("127.0.0.1", 0)
    bare = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=send_bare, args=(bare, directory / LARGE), daemon=True).start()
    pipe.send((port, bare.getsockname()[1]))
    pipe.recv()
    server.close()


def send_bare(listener: socket.socket, path: Path) -> None:
    while True:
        sock, _ = listener.accept()
        with sock, path.open("rb") as source:
            size, offset = os.fstat(source.fileno()).st_size, 0
            while offset < size:
                offset += os.sendfile(sock.fileno(), source.fileno(), offset, size - offset)


def receive_bare(port: int, size: int, dest: Path | None) -> None:
    """recv into a ring of buffers, SHA-256 in a thread beside it; also written when ``dest`` is given."""
    free: SimpleQueue[memoryview] = SimpleQueue()
    filled: SimpleQueue[memoryview | None] = SimpleQueue()
    for _ in range(BUFFERS):
        free.put(memoryview(bytearray(BUFFER_BYTES)))
    hasher = hashlib.sha256()

    def hash_all() -> None:
        while (view := filled.get()) is not None:
            hasher.update(view)
            if view.obj is not None:
                free.put(memoryview(view.obj))

    thread = threading.Thread(target=hash_all)
    thread.start()
    out = -1 if dest is None else os.open(dest, os.O_WRONLY | os.O_CREAT)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        done = 0
        while done < size:
            view = free.get()
            count = sock.recv_into(view, 0, socket.MSG_WAITALL)
            if out >= 0:
                os.write(out, view[:count])
            filled.put(view[:count])
            done += count
    filled.put(None)
    thread.join()
    if out >= 0:
        os.close(out)


def fetch_all(port: int, names: list[str], directory: Path) -> None:
    """With the product; every object must arrive."""
    for result in fetch(("127.0.0.1", port), names, lambda name: directory / name, secret=SECRET, expected={},
                        sizes={}, timeout_s=PATIENCE_S, cancel=lambda: False, room=lambda size: True):
        if result.error is not None:
            raise result.error


def timed(action: Callable[[], object], clean: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    elapsed = time.perf_counter() - start
    clean()
    return elapsed


def emit(bench: str, value: float, limit: float, ratio: float, unit: str) -> None:
    print(json.dumps({"bench": bench, "value": round(value, 3), "limit": round(limit, 3), "ratio": round(ratio, 3),
                      "unit": unit}), flush=True)


def bench_large(ports: tuple[int, int], size: int, out: Path, rounds: int) -> None:
    target = out / LARGE
    product, bare, bare_written = [], [], []
    for _ in range(rounds):
        product.append(timed(lambda: fetch_all(ports[0], [LARGE], out), lambda: remove_object(target)))
        bare.append(timed(lambda: receive_bare(ports[1], size, None), lambda: None))
        bare_written.append(timed(lambda: receive_bare(ports[1], size, target), lambda: remove_object(target)))
    speed, limit, limit_written = (size / 1e6 / min(times) for times in (product, bare, bare_written))
    emit("transfer_large", speed, limit_written, speed / limit_written, "MB/s")
    emit("transfer_large_against_receiving_without_writing", speed, limit, speed / limit, "MB/s")


def bench_small(port: int, source: Path, out: Path, rounds: int) -> None:
    def by_tar() -> None:
        subprocess.run(["tar", "cf", str(source / TAR), "-C", str(source / TREE), "."], check=True)
        fetch_all(port, [TAR], out)
        (out / "unpacked").mkdir()
        subprocess.run(["tar", "xf", str(out / TAR), "-C", str(out / "unpacked")], check=True)

    def clean() -> None:
        for entry in list(out.iterdir()):
            remove_object(entry)

    tar, tree, objects = [], [], []
    for _ in range(rounds):
        tar.append(timed(by_tar, clean))
        tree.append(timed(lambda: fetch_all(port, [TREE], out), clean))
        objects.append(timed(lambda: fetch_all(port, SMALL_NAMES, out), clean))
    limit = min(tar)
    for bench, times in (("transfer_directory_of_1000_files", tree), ("transfer_1000_objects", objects)):
        value = min(times)
        emit(bench, value * 1000, limit * 1000, value / limit, "ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", default=None, help="where to work; default: the temporary directory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as work:
        source, out = Path(work, "source"), Path(work, "out")
        source.mkdir()
        out.mkdir()
        block = os.urandom(1 << 20)
        with (source / LARGE).open("wb") as large:
            for _ in range(options.megabytes):
                large.write(block)
        (source / TREE).mkdir()
        for index, name in enumerate(SMALL_NAMES):
            data = os.urandom(SMALL_BYTES)
            (source / TREE / f"{index}.dat").write_bytes(data)
            (source / name).write_bytes(data)
        digests = {name: hash_object(source / name).sha256 for name in (LARGE, TREE, *SMALL_NAMES)}
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=serve, args=(source, digests, theirs))
        process.start()
        try:
            ports = ours.recv()
            bench_large(ports, options.megabytes << 20, out, options.rounds)
            bench_small(ports[0], source, out, options.rounds)
        finally:
            ours.send(None)
            process.join()


if __name__ == "__main__":
    main()
