"""Settings: tables of options, typed values with their origin, strict reading.

Owns which options exist, their types, bounds and defaults, and how command line and files combine: a value in a file
wins over the command line (as in the published factory, where the file is re-read while running), a pool's own value
over the file's defaults. Unknown keys are errors that name the nearest valid one. Must not parse argv, know processes
or talk to anyone.
"""

from vine_factory.config.build import build
from vine_factory.config.files import FileValues, PoolTable, from_mapping, read_file
from vine_factory.config.options import ALIASES, OPTIONS, WITHOUT_EFFECT, Option, Sourced, check_value
from vine_factory.config.pool_options import POOL_OPTIONS
from vine_factory.config.settings import EVERYBODY, PoolSettings, Settings, Target

__all__ = ["ALIASES", "EVERYBODY", "OPTIONS", "POOL_OPTIONS", "WITHOUT_EFFECT", "FileValues", "Option", "PoolSettings",
           "PoolTable", "Settings", "Sourced", "Target", "build", "check_value", "from_mapping", "read_file"]
