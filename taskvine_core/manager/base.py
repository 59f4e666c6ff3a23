"""What the parts of the ``Manager`` class share.

Owns the attributes and nothing else: each part (declarations, policy, waiting, conveniences) is a mixin over this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskvine_core.logs.rundir import RunDirectory
    from taskvine_core.manager.advert import Advert
    from taskvine_core.manager.cached_result import CachedTaskResult
    from taskvine_core.manager.caching import ResultCache
    from taskvine_core.manager.declare import FileTable
    from taskvine_core.manager.file import FileHome
    from taskvine_core.manager.python_files import PythonFiles
    from taskvine_core.manager.runner import ManagerRunner, RunnerSettings
    from taskvine_core.manager.stats import ManagerStats
    from taskvine_core.manager.task import Task


class ManagerBase:
    """Attributes set by ``Manager.__init__``."""

    _runner: ManagerRunner
    _settings: RunnerSettings
    _run: RunDirectory
    _home: FileHome
    _table: FileTable
    _python: PythonFiles
    _advert: Advert
    _stats: ManagerStats
    #: Submitted and not returned by wait.
    _tasks: dict[int, Task]
    _peer_transfers: bool
    #: Results of earlier tasks, None unless enable_tasks_cache() was called.
    _results: ResultCache | None
    #: Those that were found and that wait has not returned.
    _hits: list[CachedTaskResult]
    _peers_possible: bool
