"""``File`` under the published module name."""

from taskvine_core.manager.file import File as File
