"""The directory of one run of a manager (reference, section 21.1).

Owns its layout, its uniqueness and the ``most-recent`` link. Must not know what is written into it.

    <run_info_path>/most-recent -> <absolute path of the newest run>
    <run_info_path>/vine-cache/
    <run_info_path>/<stamp>/{vine-logs,library-logs,staging}/
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from taskvine_core.errors import ConfigError, VineError
from taskvine_core.records import NamedTuple

DEFAULT_TEMPLATE = "%Y-%m-%dT%H%M%S"
ENVIRONMENT_NAME = "VINE_RUNTIME_INFO_DIR"
MOST_RECENT = "most-recent"
#: Runs that start in the same second get the suffixes -1, -2, ... up to this many.
MAX_SAME_STAMP = 10_000


class RunDirectory(NamedTuple):
    """Absolute paths of one run.

    Args:
        runtime: this run's directory.
        logs: ``vine-logs``.
        library_logs: ``library-logs``.
        staging: for temporary files of the manager; removed by ``remove_staging``.
        cache: shared by all runs of one ``run_info_path``.
    """

    runtime: Path
    logs: Path
    library_logs: Path
    staging: Path
    cache: Path

    def remove_staging(self) -> str:
        """Delete the staging directory; idempotent. Returns what could not be removed in words, "" when all was."""
        problems: list[str] = []

        def note(_function: object, path: str, error: tuple[object, BaseException, object]) -> None:
            if not isinstance(error[1], FileNotFoundError):
                problems.append(f"{path}: {error[1]}")

        shutil.rmtree(self.staging, onerror=note)
        return "; ".join(problems)


def create_run_directory(run_info_path: str | Path, template: str | None = None,
                         staging_path: str | Path | None = None, now: float | None = None) -> RunDirectory:
    """Make a directory that no other run has, set the ``most-recent`` link and VINE_RUNTIME_INFO_DIR.

    Args:
        run_info_path: parent of the runs, made when missing.
        template: strftime pattern of the run's directory; an absolute path is used as it is, also when it exists.
        staging_path: put staging into a new ``vine-staging…`` directory there, instead of into the run's directory.
        now: seconds since the epoch for the stamp, default the current time.

    Raises:
        ConfigError: the template gives an empty name.
        VineError: a directory cannot be made.
    """
    base = Path(run_info_path).expanduser().absolute()
    name = time.strftime(DEFAULT_TEMPLATE if template is None else template,
                         time.localtime(time.time() if now is None else now))
    if not name or name in (".", ".."):
        raise ConfigError(f"run_info_template {template!r} gives the directory name {name!r}",
                          hint="use a strftime pattern such as %Y-%m-%dT%H%M%S")
    try:
        base.mkdir(parents=True, exist_ok=True)
        runtime = _unique(base, name)
        staging = runtime / "staging"
        if staging_path is not None:
            parent = Path(staging_path).expanduser().absolute()
            parent.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix="vine-staging-", dir=parent))
        run = RunDirectory(runtime, runtime / "vine-logs", runtime / "library-logs", staging, base / "vine-cache")
        for directory in (run.logs, run.library_logs, run.staging, run.cache):
            directory.mkdir(parents=True, exist_ok=True)
        _link(base / MOST_RECENT, runtime)
    except OSError as error:
        raise VineError(f"cannot make the run directory {name!r} in {base}: {error}",
                        hint="give a writable run_info_path") from error
    os.environ[ENVIRONMENT_NAME] = str(runtime)
    return run


def _unique(base: Path, name: str) -> Path:
    if os.path.isabs(name):
        path = Path(name)
        path.mkdir(parents=True, exist_ok=True)
        return path
    (base / name).parent.mkdir(parents=True, exist_ok=True)
    for number in range(MAX_SAME_STAMP):
        path = base / (f"{name}-{number}" if number else name)
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise FileExistsError(f"{MAX_SAME_STAMP} directories with that name exist")


def _link(link: Path, target: Path) -> None:
    """Point the link at the target in one step, so that a reader never finds it missing."""
    temp = link.with_name(f".{link.name}-{os.getpid()}-{os.urandom(4).hex()}")
    temp.symlink_to(target)
    try:
        os.replace(temp, link)
    except OSError:
        temp.unlink(missing_ok=True)
        raise
