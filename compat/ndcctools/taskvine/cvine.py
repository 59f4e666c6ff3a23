"""The constants, under the published module name."""

from taskvine_core.constants import *  # noqa: F403 - VINE_* and CATEGORY_ALLOCATION_MODE_*
