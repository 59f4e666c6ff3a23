"""Task classes under the published module name."""

from taskvine_core.manager.python_task import PythonTask as PythonTask
from taskvine_core.manager.python_task import PythonTaskNoResult as PythonTaskNoResult
from taskvine_core.manager.task import Task as Task
