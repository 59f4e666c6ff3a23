"""Result cache of tasks, under its published module name."""

from taskvine_core.manager.cached_result import CachedTaskResult as CachedTaskResult
from taskvine_core.manager.task_cache import TasksCache as TasksCache
from taskvine_core.manager.task_cache import TransactionLog as TransactionLog
