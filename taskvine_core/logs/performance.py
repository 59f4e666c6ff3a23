"""Rows of the ``performance`` log (reference, section 21.2).

Owns the column order. Must not know where the numbers come from.
"""

from __future__ import annotations

from taskvine_core.logs.text import microseconds

HEADER = (
    "# timestamp workers_connected workers_init workers_idle workers_busy workers_able workers_joined workers_removed "
    "workers_released workers_idled_out workers_blocked workers_slow workers_lost tasks_waiting tasks_on_workers "
    "tasks_running tasks_with_results tasks_submitted tasks_dispatched tasks_done tasks_failed tasks_successful "
    "tasks_cancelled tasks_exhausted_attempts tasks_recovery time_send time_receive time_send_good "
    "time_receive_good time_status_msgs time_internal time_polling time_application time_scheduling time_execute "
    "time_execute_good time_execute_exhaustion bytes_sent bytes_received bandwidth capacity_tasks capacity_cores "
    "capacity_memory capacity_disk capacity_instantaneous capacity_weighted total_cores total_memory total_disk "
    "committed_cores committed_memory committed_disk max_cores max_memory max_disk min_cores min_memory min_disk "
    "inuse_cache\n")
COLUMNS = HEADER.split()[2:]

#: Columns whose name differs from the attribute of the statistics object.
_ATTRIBUTES = {
    "time_execute": "time_workers_execute",
    "time_execute_good": "time_workers_execute_good",
    "time_execute_exhaustion": "time_workers_execute_exhaustion",
}
_SOURCES = [_ATTRIBUTES.get(column, column) for column in COLUMNS]


def row(now: float, stats: object) -> str:
    """One line from an object with the attributes of reference section 7.1."""
    values = [str(microseconds(now))]
    for name in _SOURCES:
        value = getattr(stats, name)
        values.append(f"{value:.6f}" if name == "bandwidth" else str(int(value)))
    return " ".join(values) + "\n"
