"""A stand-in for pyslurm, with one or both of its interfaces, written where PYTHONPATH can point to."""

from __future__ import annotations

from pathlib import Path

_OLD = '''
class job:
    def get(self):
        return {record["job_id"]: record for record in OLD}
'''
_NEW = '''
class _Job:
    def __init__(self, **facts):
        self.__dict__.update(facts)

class Jobs(dict):
    @staticmethod
    def load():
        return Jobs((facts["id"], _Job(**facts)) for facts in NEW)
'''


def write(directory: Path, version: str, *, new: bool, old: bool, head: str = "") -> Path:
    """A directory for PYTHONPATH. ``head``: run when the module is loaded."""
    info = directory / f"pyslurm-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: pyslurm\nVersion: {version}\n")
    (directory / "pyslurm.py").write_text("\n".join([head, "import os", _records(), _NEW if new else "",
                                                      _OLD if old else ""]))
    return directory


def _records() -> str:
    """The same jobs in both shapes: a running element, the waiting rest of its array, a single job, somebody else's."""
    return '''
ME = os.geteuid()
NONE32 = 0xFFFFFFFE
OLD = [
    {"job_id": 8, "array_job_id": 7, "array_task_id": 0, "array_task_str": None, "user_id": ME, "job_state": "RUNNING",
     "state_reason": "None", "batch_host": "n1", "start_time": 1000, "end_time": 4600, "name": "w",
     "comment": "f/p/r-[1-4]"},
    {"job_id": 7, "array_job_id": 7, "array_task_id": NONE32, "array_task_str": "1-3%2", "user_id": ME,
     "job_state": "PENDING", "state_reason": "PartitionDown", "batch_host": None, "start_time": 0, "end_time": 0,
     "name": "w", "comment": "f/p/r-[1-4]"},
    {"job_id": 9, "array_job_id": 0, "array_task_id": NONE32, "array_task_str": None, "user_id": ME,
     "job_state": "FAILED", "state_reason": "NonZeroExitCode", "batch_host": "n2", "start_time": 1000, "end_time": 1001,
     "name": "x", "comment": None},
    {"job_id": 10, "array_job_id": 0, "array_task_id": NONE32, "array_task_str": None, "user_id": ME + 1,
     "job_state": "RUNNING", "state_reason": "None", "batch_host": "n2", "start_time": 1000, "end_time": 0,
     "name": "x", "comment": "f/p/r-9"},
]
NEW = [{"id": r["job_id"], "array_id": r["array_job_id"] or None,
        "array_task_id": None if r["array_task_id"] == NONE32 else r["array_task_id"],
        "array_tasks_waiting": r["array_task_str"], "user_id": r["user_id"], "state": r["job_state"],
        "state_reason": r["state_reason"], "batch_host": r["batch_host"], "start_time": r["start_time"] or None,
        "end_time": r["end_time"] or None, "name": r["name"], "comment": r["comment"]} for r in OLD]
'''
