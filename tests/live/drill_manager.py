"""A manager program that a test can kill: `drill_manager.py PORT`.

Takes orders on standard input, a line each: "COUNT COMMAND" submits so many tasks. Writes JSON lines: each task that
came back, and after each quarter of a second what the manager counts. Ends when standard input does.
"""

from __future__ import annotations

import json
import select
import sys
import tempfile

import taskvine_core as vine

POLL_S = 0.25


def main(port: int) -> None:
    with tempfile.TemporaryDirectory() as scratch, vine.Manager(port, run_info_path=scratch) as manager:
        print(json.dumps({"port": manager.port}), flush=True)
        while True:
            while select.select([sys.stdin], [], [], 0)[0]:
                line = sys.stdin.readline()
                if not line:
                    return
                count, command = line.split(" ", 1)
                for _ in range(int(count)):
                    task = vine.Task(command.strip())
                    task.set_cores(1)
                    manager.submit(task)
            task = manager.wait(POLL_S)
            while task is not None:
                print(json.dumps({"task": task.id, "ok": task.successful(), "out": task.std_output}), flush=True)
                task = manager.wait(0)
            stats = manager.stats
            print(json.dumps({"connected": stats.workers_connected, "running": stats.tasks_running,
                              "waiting": stats.tasks_waiting}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
