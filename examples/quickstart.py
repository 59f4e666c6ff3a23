"""Three commands over one text, run by whatever workers connect: the shortest useful program.

    python examples/quickstart.py &
    vine_worker --single-shot localhost 9123
"""

from __future__ import annotations

import sys

import ndcctools.taskvine as vine

TEXT = """\
The needle was in the house,
the house was by the water,
and the water was as cold as the needle.
"""


def main(port: int) -> None:
    m = vine.Manager(port)
    print(f"Listening on port {m.port}", flush=True)

    # One input, shared by all tasks: a worker gets it once and keeps it.
    text = m.declare_buffer(TEXT, cache=True)
    for keyword in ("needle", "house", "water"):
        task = vine.Task(f"grep -c {keyword} text.txt")
        task.add_input(text, "text.txt")
        task.set_cores(1)
        task.set_tag(keyword)
        m.submit(task)

    while not m.empty():
        task = m.wait(5)
        if task is None:
            continue
        if task.successful():
            print(f"{task.tag}: {task.output.strip()} lines, counted by {task.hostname}")
        else:
            print(f"{task.tag}: {task.result}, exit code {task.exit_code}: {task.output}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9123)
