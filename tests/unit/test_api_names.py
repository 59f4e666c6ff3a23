"""Rules of importing: which names exist, under which modules, at what cost (reference, section 1.1)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: Exactly this and the constants; a name that is not ready must not be here.
PUBLIC = {"Factory", "File", "JupyterDisplay", "Manager", "PythonTask", "PythonTaskNoResult", "StatusDisplay", "Task",
          "__version__", "cvine"}


def run(code, *flags):
    """Run code in a fresh interpreter that sees the project only; returns its standard output."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "compat", ROOT / "factory")))
    done = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": path}, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_names_are_these_and_the_constants():
    names = run("from taskvine_core import *\nimport taskvine_core\nprint(*taskvine_core.__all__)\n"
                "print(*(n for n in taskvine_core.__all__ if n not in globals()))").split("\n")
    listed = set(names[0].split())
    constants = {n for n in listed if n.startswith(("VINE_", "CATEGORY_ALLOCATION_MODE_"))}
    assert listed - constants == PUBLIC and names[1] == ""
    assert {"VINE_RESULT_SUCCESS", "VINE_SCHEDULE_FILES", "CATEGORY_ALLOCATION_MODE_MAX"} <= constants


def test_what_is_not_built_yet_is_not_there():
    code = "import ndcctools.taskvine as v\nprint(hasattr(v, 'FunctionCall'), hasattr(v, 'DaskVine'))"
    assert run(code) == "False False\n"


def test_the_published_imports_work():
    assert run("""
import ndcctools.taskvine as vine, taskvine_core
from ndcctools.taskvine import cvine, Manager, Task
from ndcctools.taskvine.manager import Manager as M
from ndcctools.taskvine.task import Task as T, PythonTask, PythonTaskNoResult
from ndcctools.taskvine.file import File
from ndcctools.taskvine.display import StatusDisplay, JupyterDisplay
from ndcctools.taskvine.vine_cache import CachedTaskResult, TasksCache, TransactionLog
assert Manager is M is taskvine_core.Manager and Task is T and vine.File is File and vine.PythonTask is PythonTask
assert vine.VINE_SCHEDULE_FILES == vine.cvine.VINE_SCHEDULE_FILES == cvine.VINE_SCHEDULE_FILES == 2
assert cvine.VINE_RESULT_MISSING_LIBRARY == 14 << 3 and vine.__version__ == taskvine_core.__version__
from ndcctools.taskvine import *
print(VINE_ALLOCATION_MODE_MAX)
""") == "1\n"


def test_the_short_name_is_deprecated_and_the_same_module():
    assert run("""
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import taskvine
assert [w.category for w in caught] == [DeprecationWarning], caught
import sys, ndcctools.taskvine
print(taskvine is ndcctools.taskvine is sys.modules["taskvine"], taskvine.Manager is ndcctools.taskvine.Manager)
""") == "True True\n"


def test_utils_know_constants_and_port_ranges():
    assert run("""
import os
from ndcctools.taskvine.utils import get_c_constant, set_port_range
assert get_c_constant("result_success") == 0 and get_c_constant("cache_level_forever") == 3
try:
    get_c_constant("nonsense")
except AttributeError:
    print("unknown")
print(set_port_range((9100, 9200)), os.environ["TCP_LOW_PORT"], os.environ["TCP_HIGH_PORT"], set_port_range(9123))
""") == "unknown\n0 9100 9200 9123\n"


def test_another_distribution_may_add_to_ndcctools(tmp_path):
    (tmp_path / "ndcctools" / "other").mkdir(parents=True)
    (tmp_path / "ndcctools" / "__init__.py").write_text("from pkgutil import extend_path\n"
                                                        "__path__ = extend_path(__path__, __name__)\n")
    (tmp_path / "ndcctools" / "other" / "__init__.py").write_text("x = 1\n")
    assert run(f"import sys\nsys.path.append({str(tmp_path)!r})\nimport ndcctools.taskvine, ndcctools.other\n"
               "print(ndcctools.other.x)") == "1\n"


def test_importing_needs_no_extra_and_loads_little():
    loaded = run("""
import sys
before = set(sys.modules)
for name in ("dask", "numpy", "rich", "IPython", "prometheus_client", "psutil", "cryptography", "htcondor", "drmaa"):
    sys.modules[name] = None
import taskvine_core, ndcctools.taskvine
print(len(set(sys.modules) - before))
taskvine_core.Manager, taskvine_core.PythonTask
print("cloudpickle" in sys.modules, "urllib.request" in sys.modules)
""").split("\n")
    assert int(loaded[0]) < 60 and loaded[1] == "False False"
