"""`vine_factory report`: the recorded history as one HTML page that needs no network.

Owns the page. Everything on it comes from history files, and is text of batch systems and managers: all of it is
escaped. Pure but for `main`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from taskvine_core.errors import ConfigError
from vine_factory import history, which

STATES = (("connected", "#3b7d3b"), ("draining", "#8f6bb3"), ("running", "#d9a520"), ("queued", "#7aa6d6"),
          ("held", "#d07070"), ("submitted", "#b9c9dc"),
          ("intended", "#dddddd"))
"""From the bottom of the picture to its top."""
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 900, 220, 50, 20
_MOST_POINTS = 2000
_MOST_ROWS = 200
_FAULTS = ("refused", "status", "signal", "never", "gone")
_STYLE = ("body{font:14px sans-serif;margin:2em;max-width:70em}table{border-collapse:collapse}td,th{border:1px solid "
          "#ccc;padding:2px 6px;text-align:left;vertical-align:top}pre{margin:0;white-space:pre-wrap}"
          "svg{background:#fafafa}.k{display:inline-block;width:1em;height:1em;margin:0 .3em 0 1em}")


def parser() -> argparse.ArgumentParser:
    """Of the sub-command."""
    made = argparse.ArgumentParser(prog="vine_factory report", allow_abbrev=False,
                                   description="Write the recorded history of a factory as an HTML page: workers over "
                                   "time, decisions, faults.")
    made.add_argument("-o", "--output", metavar="FILE", required=True, help="the page")
    made.add_argument("--factory-name", metavar="NAME", help="the factory, where there are several")
    return made


def main(words: Sequence[str]) -> int:
    """Write it. Returns 0.

    Raises:
        ConfigError: no history, or the page cannot be written.
    """
    given = parser().parse_args(list(words))
    home = which.home(given.factory_name)
    text = page(given.factory_name or home.name, history.read(home / history.DECISIONS),
                history.read(home / history.JOBS))
    try:
        Path(given.output).write_text(text, encoding="utf-8")
    except OSError as problem:
        raise ConfigError(f"cannot write {given.output}: {problem}") from problem
    print(f"wrote {given.output}")
    return 0


def page(name: str, decisions: Iterable[dict[str, Any]], stories: Iterable[dict[str, Any]]) -> str:
    """The page of one factory."""
    by_pool: dict[str, list[dict[str, Any]]] = {}
    for record in decisions:
        if isinstance(record.get("jobs"), dict) and isinstance(record.get("at"), int | float):
            by_pool.setdefault(str(record.get("pool")), []).append(record)
    key = "".join(f'<span class="k" style="background:{color}"></span>{state}' for state, color in STATES)
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(name)}</title><style>{_STYLE}</style>",
             f"<h1>Factory {escape(name)}</h1><p>{key}; the line is what was wanted</p>"]
    for pool, records in by_pool.items():
        parts += [f"<h2>Pool {escape(pool)}</h2>", picture(records), "<h3>Decisions</h3>", _decisions(records)]
    parts += ["<h2>Workers that failed</h2>", _faults(stories), "</html>"]
    return "\n".join(parts)


def picture(records: Sequence[dict[str, Any]]) -> str:
    """Jobs by state over time, as SVG. Between two records nothing is invented: a value holds until the next."""
    points = records[::max(1, len(records) // _MOST_POINTS)]
    start, end = float(points[0]["at"]), float(points[-1]["at"])
    span = max(1.0, end - start)
    top = max([1, *(max(sum(_count(r, s) for s, _ in STATES), _wanted(r)) for r in points)])

    def x(record: dict[str, Any]) -> float:
        return _LEFT + (float(record["at"]) - start) / span * (_WIDTH - _LEFT)

    def y(value: float) -> float:
        return _HEIGHT - value / top * (_HEIGHT - 10)
    base = [0] * len(points)
    shapes = []
    for state, color in STATES:
        upper = [below + _count(record, state) for below, record in zip(base, points, strict=True)]
        edge = _steps([(x(r), y(v)) for r, v in zip(points, upper, strict=True)])
        back = _steps([(x(r), y(v)) for r, v in zip(points, base, strict=True)])[::-1]
        shapes.append(f'<polygon fill="{color}" points="{_points(edge + back)}"/>')
        base = upper
    line = _steps([(x(record), y(_wanted(record))) for record in points])
    shapes.append(f'<polyline fill="none" stroke="#c03030" points="{_points(line)}"/>')
    shapes.append(f'<text x="0" y="{y(top) + 10:.0f}">{top}</text><text x="0" y="{_HEIGHT}">0</text>')
    shapes.append(f'<text x="{_LEFT}" y="{_HEIGHT + _BOTTOM - 4}">{_time(start)}</text><text x="{_WIDTH}" '
                  f'y="{_HEIGHT + _BOTTOM - 4}" text-anchor="end">{_time(end)}</text>')
    return (f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + _BOTTOM}" width="{_WIDTH}" height="{_HEIGHT + _BOTTOM}" '
            f'font-size="12">{"".join(shapes)}</svg>')


def _count(record: dict[str, Any], state: str) -> int:
    value = record["jobs"].get(state)
    return value if isinstance(value, int) else 0


def _wanted(record: dict[str, Any]) -> int:
    value = record.get("wanted")
    return value if isinstance(value, int) else 0


def _steps(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    found = points[:1]
    for at, value in points[1:]:
        found += [(at, found[-1][1]), (at, value)]
    return found


def _points(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{at:.1f},{value:.1f}" for at, value in points)


def _time(at: object) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(at))) if isinstance(at, int | float) else "?"


def _decisions(records: Sequence[dict[str, Any]]) -> str:
    rows: list[tuple[str, ...]] = []
    before = None
    for record in records:
        steps = record.get("steps") or []
        words = "; ".join(f"{step[0]}: {step[1]} -> {step[2]} because {step[3]}" for step in steps
                          if isinstance(step, list) and len(step) > len(("limit", "before", "after")))
        key = (record.get("target"), tuple(str(step[0]) for step in steps if step))
        if key != before:
            rows.append((_time(record["at"]), str(record.get("wanted")), str(record.get("target")), words))
        before = key
    return _table(("time", "wanted", "target", "limits"), rows[-_MOST_ROWS:])


def _faults(stories: Iterable[dict[str, Any]]) -> str:
    rows = [(_time(entry.get("at")), str(entry.get("pool")), str(entry.get("job")), str(entry.get("host", "")),
             str(entry.get("why", "")), str(entry.get("stderr") or entry.get("said") or ""))
            for entry in stories if entry.get("event") == "ended" and _bad(entry)]
    return _table(("time", "pool", "job", "host", "end", "last words"), rows[-_MOST_ROWS:])


def _bad(entry: dict[str, Any]) -> bool:
    why = str(entry.get("why", ""))
    return "status 0" not in why and any(word in why for word in _FAULTS)


def _table(heads: Sequence[str], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return "<p>none</p>"
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td><pre>{escape(cell)}</pre></td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
