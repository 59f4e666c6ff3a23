"""Is a configuration right? `vine_factory check`.

Owns the tests that can be made without running a job, and how their results are shown: the effective settings with
their origins, then pool by pool what is well and what is not.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from taskvine_core.errors import ConfigError, VineError
from taskvine_core.records import NamedTuple
from vine_factory.batch import registry
from vine_factory.batch.tool import run
from vine_factory.config import PoolSettings, Settings
from vine_factory.pools import place_of
from vine_factory.preview import NO_MANAGER, Preview, prepare, shown_value

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"
_PYTHON_TIMEOUT_S = 20.0
_PYTHON_TEST = "import sys; print('%d.%d.%d' % sys.version_info[:3]); sys.exit(sys.version_info < (3, 10))"


class Finding(NamedTuple):
    """One result. ``level``: OK, NOTE (cannot be tested from here) or PROBLEM."""

    level: str
    what: str
    words: str


def check(settings: Settings, only: str | None, as_json: bool, *, offline: bool) -> int:
    """Test all and print it. Returns 0, or 1 when there are problems.

    Raises:
        ConfigError: nothing can be tested: no such pool, no key.
    """
    preview = prepare(settings, only)
    findings = {pool.name: list(of_pool(preview, pool, offline)) for pool in preview.settings.pools}
    if as_json:
        print(json.dumps({"settings": {key: {"value": sourced.value, "origin": sourced.origin}
                                       for key, sourced in settings.sourced.items()},
                          "notes": settings.notes,
                          "pools": {name: [found._asdict() for found in founds] for name, founds in findings.items()}},
                         indent=1))
    else:
        _print(preview, settings, findings)
    return int(any(found.level == PROBLEM for founds in findings.values() for found in founds))


def of_pool(preview: Preview, pool: PoolSettings, offline: bool) -> Iterator[Finding]:
    """All tests of one pool, cheapest first; the batch system is asked only when a job for it can be made."""
    yield from _tried("driver", lambda: _driver(pool))
    yield from _tried("worker", lambda: " ".join(preview.payload.delivery(preview.settings, pool).start))
    yield from _key(preview, pool)
    yield from _python(pool)
    yield from _directory(preview, pool)
    yield from _wrapper(pool)
    yield from _package(pool)
    yield from _managers(preview, pool)
    if not pool.excludes_hosts:
        yield Finding(NOTE, "hosts", "the batch system cannot be told to avoid single hosts: a job that starts on one "
                                     "that is to be avoided leaves at once, and counts as a fault")
    rendered = list(_tried("render", lambda: ", ".join(preview.texts(pool))))
    yield from rendered
    if rendered[0].level != OK:
        return
    if offline:
        yield Finding(NOTE, "batch system", "not asked (--offline)")
    else:
        yield from _tried("batch system", lambda: _ask(preview, pool) or "would take the job")


def _tried(what: str, test: Callable[[], str]) -> Iterator[Finding]:
    try:
        yield Finding(OK, what, test())
    except (OSError, VineError) as problem:
        yield Finding(PROBLEM, what, str(problem))


def _driver(pool: PoolSettings) -> str:
    registry.require(pool.batch)
    return registry.DRIVERS[pool.batch].title


def _ask(preview: Preview, pool: PoolSettings) -> str:
    system = preview.system(pool)
    try:
        return system.check(preview.job(pool))
    finally:
        system.close()


def _key(preview: Preview, pool: PoolSettings) -> Iterator[Finding]:
    given = preview.settings.password
    source = given or "the user's own key file"
    how = "a copy is sent with each job" if pool.deliver == registry.TRANSFER else "jobs read it themselves"
    if given and os.stat(given).st_mode & 0o077:
        yield Finding(PROBLEM, "key", f"others can read {given}: chmod 600 {shlex.quote(given)}")
    else:
        yield Finding(OK, "key", f"{source}; {how}")


def _python(pool: PoolSettings) -> Iterator[Finding]:
    if pool.worker_binary:
        return
    if pool.deliver == registry.TRANSFER:
        yield Finding(NOTE, "python", f"{pool.python or 'python3'} of the machine where a job runs has to be 3.10 or "
                                      "newer")
    elif pool.python:
        yield from _tried("python", lambda: _version(pool.python))


def _version(python: str) -> str:
    if shutil.which(python) is None:
        raise ConfigError(f"{python} is not found here", hint="deliver = \"shared\" needs paths that exist everywhere")
    done = run([python, "-c", _PYTHON_TEST], timeout_s=_PYTHON_TIMEOUT_S)
    if done.status != 0:
        raise ConfigError(f"{python}: {done.said}", hint="a worker needs 3.10 or newer")
    return f"{python} is {done.stdout.strip()}"


def _directory(preview: Preview, pool: PoolSettings) -> Iterator[Finding]:
    wanted = place_of(preview.home, pool).directory
    there = next(path for path in (wanted, *wanted.parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        yield Finding(OK, "directory", str(wanted))
    else:
        yield Finding(PROBLEM, "directory", f"{wanted} cannot be made: {there} is not writable")


def _wrapper(pool: PoolSettings) -> Iterator[Finding]:
    for file in pool.wrapper_input:
        if not Path(file).is_file():
            yield Finding(PROBLEM, "wrapper", f"wrapper-input: there is no file {file}")
    if pool.wrapper:
        words = shlex.split(pool.wrapper)
        found = bool(words) and shutil.which(words[0]) is not None
        yield Finding(OK if found else NOTE, "wrapper", pool.wrapper if found else
                      f"{words[0] if words else pool.wrapper!r} is not found here; jobs have to find it")


def _package(pool: PoolSettings) -> Iterator[Finding]:
    if not pool.poncho_env:
        return
    if Path(pool.poncho_env).is_file() and tarfile.is_tarfile(pool.poncho_env):
        yield Finding(OK, "package", pool.poncho_env)
    else:
        yield Finding(PROBLEM, "package", f"poncho-env: {pool.poncho_env} is not the tar file of an environment")


def _managers(preview: Preview, pool: PoolSettings) -> Iterator[Finding]:
    if pool.managers == "addresses":
        known = ";".join(preview.managers)
        yield Finding(OK if known else NOTE, "managers", known or f"none is found now; {NO_MANAGER} stands for one")
    elif preview.settings.target.host:
        yield Finding(OK, "managers", preview.settings.target.text())
    elif pool.deliver == registry.TRANSFER:
        yield Finding(NOTE, "managers", "workers look in the home directory of the machine where they run; without a "
                                        "shared home set managers = \"addresses\"")
    else:
        yield Finding(OK, "managers", "workers look for them in the shared home")


def _print(preview: Preview, settings: Settings, findings: dict[str, list[Finding]]) -> None:
    print(f"factory {preview.home.name}, serves {settings.target.text()}\n")
    width = max(len(key) for key in settings.sourced)
    for key, sourced in settings.sourced.items():
        unset = sourced.value in ("", -1, (), None)
        print(f"{key:<{width}} {'unset' if unset else '= ' + shown_value(sourced.value)}   # {sourced.origin}")
    for text in settings.notes:
        print(f"note: {text}")
    for name, founds in findings.items():
        print(f"\npool {name}")
        for found in founds:
            print(f"  {found.level:<8} {found.what:<13} {found.words}")
