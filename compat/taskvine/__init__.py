"""Deprecated alias: the same module as ``ndcctools.taskvine``."""

import sys
import warnings

import ndcctools.taskvine

warnings.warn("'import taskvine' is deprecated: use 'import ndcctools.taskvine as vine'", DeprecationWarning,
              stacklevel=2)
sys.modules[__name__] = ndcctools.taskvine
