"""Builds the one-file worker: ``python -m taskvine_core.worker.zipapp OUT.pyz``.

Owns what goes into the file and the few lines that start it. Must not be needed by a running worker. Inside are the
parts of this package a worker loads, pure-Python msgpack, cloudpickle, byte code for the building interpreter (any
other compiles at start), and msgpack's C extension, which is copied to the user's cache directory and used when it
fits the running interpreter.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import marshal
import os
import sys
import zipfile
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from taskvine_core.errors import ConfigError

#: Parts of taskvine_core a worker may load; directories are taken whole.
PARTS = ("__init__.py", "constants.py", "errors.py", "records.py", "resources.py", "secret.py", "tls.py", "model",
         "protocol", "dataplane", "worker", "catalog")
VENDORED = ("msgpack", "cloudpickle")
NATIVE_DIRECTORY = "_native"
SHEBANG = b"#!/usr/bin/env python3\n"
#: Same input, same file: nothing in it depends on when it was built.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_MODE = 0o644 << 16
#: Flag of byte code that is valid whatever the source beside it is (PEP 552).
UNCHECKED = 1

MAIN = '''\
import hashlib
import os
import sys
import zipimport
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec

if sys.version_info < (3, 10):
    sys.exit("vine_worker: this Python is %d.%d, at least 3.10 is needed" % sys.version_info[:2])

NATIVE = "@NATIVE@"
NATIVE_SHA256 = "@NATIVE_SHA256@"


class Native:
    """Finds msgpack's C extension where ``unpack`` has put it."""

    def __init__(self, path):
        self.path = path

    def find_spec(self, name, path=None, target=None):
        if name != "msgpack._cmsgpack":
            return None
        return ModuleSpec(name, ExtensionFileLoader(name, self.path), origin=self.path)


def unpack():
    """The path of the C extension that fits this interpreter; "" when there is none or it cannot be put on disk."""
    if not NATIVE or not NATIVE.endswith(EXTENSION_SUFFIXES[0]):
        return ""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    place = os.path.join(base, "taskvine", "native-" + NATIVE_SHA256[:16])
    path = os.path.join(place, os.path.basename(NATIVE))
    try:
        os.makedirs(place, mode=0o700, exist_ok=True)
        status = os.stat(place)
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            return ""
        try:
            with open(path, "rb") as file:
                if hashlib.sha256(file.read()).hexdigest() == NATIVE_SHA256:
                    return path
        except OSError:
            pass
        part = "%s.%d" % (path, os.getpid())
        with open(part, "wb") as file:
            file.write(__loader__.get_data(__loader__.archive + os.sep + NATIVE))
        os.rename(part, path)
    except OSError:
        return ""
    return path


native = unpack()
if native:
    sys.meta_path.insert(0, Native(native))
    try:
        import msgpack._cmsgpack
    except ImportError:
        sys.meta_path.pop(0)
        for module in [name for name in sys.modules if name.startswith("msgpack")]:
            del sys.modules[module]

from taskvine_core.worker.cli import main

sys.exit(main())
'''


def build(output: str | os.PathLike[str]) -> Path:
    """Write the one-file worker.

    Args:
        output: the file to make; replaced when it exists.

    Returns:
        its path.

    Raises:
        ConfigError: msgpack or cloudpickle is not installed, or the file cannot be written.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        members = dict(_members())
        for name, data in (("__main__.py", _main(members)), *members.items()):
            _add(archive, name, data)
            if name.endswith(".py"):
                _add(archive, name + "c", _compiled(name, data))
    path = Path(output)
    try:
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_bytes(SHEBANG + buffer.getvalue())
        part.chmod(0o755)
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}", hint="give another path") from error
    return path


def _main(members: dict[str, bytes]) -> bytes:
    """The start script. It knows the C extension by its digest, so that a start does not unpack it to compare."""
    native = next((name for name in members if name.startswith(NATIVE_DIRECTORY)), "")
    digest = hashlib.sha256(members[native]).hexdigest() if native else ""
    return MAIN.replace("@NATIVE@", native).replace("@NATIVE_SHA256@", digest).encode()


def _members() -> Iterator[tuple[str, bytes]]:
    package = Path(__file__).resolve().parent.parent
    for part in PARTS:
        source = package / part
        for file in sorted(source.rglob("*.py")) if source.is_dir() else [source]:
            if file != Path(__file__).resolve():
                yield f"taskvine_core/{file.relative_to(package)}", file.read_bytes()
    for name in VENDORED:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:
            raise ConfigError(f"the Python package {name} is not installed", hint=f"pip install {name}")
        root = Path(found.origin).parent
        for file in sorted(root.rglob("*.py")):
            yield f"{name}/{file.relative_to(root)}", file.read_bytes()
        for file in sorted(root.glob("_cmsgpack*")):
            if file.name.endswith(EXTENSION_SUFFIXES[0]):
                yield f"{NATIVE_DIRECTORY}/{file.name}", file.read_bytes()


def _compiled(name: str, source: bytes) -> bytes:
    """Byte code that is used without looking at the source."""
    code = compile(source, name, "exec", dont_inherit=True)
    head = importlib.util.MAGIC_NUMBER + UNCHECKED.to_bytes(4, "little") + importlib.util.source_hash(source)
    return head + marshal.dumps(code)


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.external_attr = _MODE
    # What every start reads is not compressed: inflating the byte code took a sixth of the start.
    info.compress_type = zipfile.ZIP_STORED if name.endswith(".pyc") else zipfile.ZIP_DEFLATED
    archive.writestr(info, data)


def main(arguments: list[str]) -> int:
    """Command line: one argument, the file to make."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m taskvine_core.worker.zipapp OUT.pyz", file=sys.stderr)
        return 1
    try:
        path = build(arguments[0])
    except ConfigError as error:
        print(f"zipapp: {error}", file=sys.stderr)
        return 1
    print(f"{path}: {path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
