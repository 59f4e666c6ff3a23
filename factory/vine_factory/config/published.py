"""Published command line options that are about one batch system, as that system's own options.

Owns the translation of ``--batch-options``, ``--condor-requirements``, ``--autosize`` and ``--condor-spool``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from taskvine_core.errors import ConfigError
from vine_factory.batch import registry
from vine_factory.config.options import Sourced

_EXTRA = "extra-directives"
_FLAGS = (("autosize", "autosize"), ("condor-spool", "spool"))


def system_options(batch: str, factory: Mapping[str, Sourced]) -> dict[str, Sourced]:
    """Options of ``batch`` that the factory's own options stand for.

    Raises:
        ConfigError: the batch system has nothing of the kind.
    """
    known = {option.key: option for option in registry.options_of(batch)}
    found: dict[str, Sourced] = {}
    extra, requirements = factory["batch-options"], factory["condor-requirements"]
    if extra.value:
        if _EXTRA not in known:
            raise ConfigError(f"{extra.origin}: batch-options: {batch!r} takes no further options")
        # Published: line breaks are written as \n.
        lines = tuple(line for line in str(extra.value).split("\\n") if line.strip())
        found[_EXTRA] = Sourced(lines, extra.origin)
    if requirements.value and "requirements" in known:
        assert isinstance(requirements.value, tuple)  # by check_value
        both = " && ".join(f"({text})" for text in requirements.value)
        found["requirements"] = Sourced(both, requirements.origin)
    for key, option in _FLAGS:
        if factory[key].value and option in known:
            found[option] = Sourced(True, factory[key].origin)
    return found


def without_effect(batches: Sequence[str], factory: Mapping[str, Sourced]) -> list[str]:
    """What to tell about options that no pool's batch system has."""
    known = {option.key for batch in batches for option in registry.options_of(batch)}
    return [f"{factory[key].origin}: {key} has no effect: no pool's batch system has it"
            for key, option in (("condor-requirements", "requirements"), *_FLAGS)
            if factory[key].value and option not in known]
