"""What is left of a run: a table on the terminal, a plot, a JSON file and one HTML page.

Owns presentation only; everything it says comes from the record of the run.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from examples.demo import analysis
from examples.demo.workflow import FAN_IN, Record, Sample

BLOCKS = " ▁▂▃▄▅▆▇█"
SPARK_WIDTH = 40
BAR_WIDTH = 24
FLOOR = 0.3  # lower end of the logarithmic axes: below one event, above nothing
# A palette that colour-blind readers can tell apart.
COLOURS = ("#5790fc", "#f89c20", "#964a8b", "#9c9ca1", "#7a21dd")


def megabytes(count: float) -> str:
    """Bytes as a short text."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.0f} kB"


def progress_line(now: Sample, total: int) -> str:
    """One line of live progress, short enough for a terminal of 110 columns."""
    filled = BAR_WIDTH * now.done // max(total, 1)
    bar = "█" * filled + "·" * (BAR_WIDTH - filled)
    return (
        f"{bar} {now.done:3d}/{total} tasks done, {now.running} running, {now.waiting} waiting"
        f" | {now.workers} workers | manager sent {megabytes(now.sent_bytes)}, got {megabytes(now.received_bytes)}"
    )


def sparkline(samples: Sequence[Sample]) -> str:
    """Workers over time as one line of block characters."""
    if not samples:
        return ""
    highest = max(1, max(sample.workers for sample in samples))
    end = samples[-1].at_s or 1.0
    marks = []
    for column in range(SPARK_WIDTH):
        at = end * (column + 1) / SPARK_WIDTH
        workers = next((s.workers for s in reversed(samples) if s.at_s <= at), samples[0].workers)
        marks.append(BLOCKS[-(-workers * (len(BLOCKS) - 1) // highest)])
    return "".join(marks)


def summary(record: Record, verified: bool) -> dict[str, Any]:
    """The run in numbers; keys carry their units."""
    return {
        "events_in_files": record.events,
        "systematic_variations": len(analysis.VARIATIONS),
        "events_analysed": record.events * len(analysis.VARIATIONS),
        "map_tasks": record.maps,
        "merge_tasks": record.merges,
        "merge_fan_in": FAN_IN,
        "retries": record.retries,
        "recovery_tasks": record.recoveries,
        "batch_system": record.batch,
        "workers_most": max((s.workers for s in record.samples), default=0),
        "workers_over_time": [[round(s.at_s, 2), s.workers] for s in record.samples],
        "bytes_manager_to_workers": record.sent_bytes,
        "bytes_workers_to_manager": record.received_bytes,
        "bytes_worker_to_worker": record.peer_bytes,
        "wall_s": round(record.wall_s, 2),
        "events_analysed_per_s": round(record.events * len(analysis.VARIATIONS) / max(record.wall_s, 1e-9), 1),
        "identical_to_single_process": verified,
    }


def table(record: Record, verified: bool) -> list[tuple[str, str]]:
    """The same for people: label and value."""
    numbers = summary(record, verified)
    return [
        ("input", f"{record.events} events, read {len(analysis.VARIATIONS)} times (once per systematic variation)"),
        ("tasks", f"{record.maps} map + {record.merges} merge ({FAN_IN} to 1, on the workers)"),
        ("retries", f"{record.retries}, of lost temporary files rebuilt: {record.recoveries}"),
        ("workers", f"{record.batch}: {numbers['workers_most']} at most, over time {sparkline(record.samples)}"),
        ("manager → workers", megabytes(record.sent_bytes)),
        ("worker → worker", megabytes(record.peer_bytes)),
        ("workers → manager", megabytes(record.received_bytes)),
        ("time", f"{record.wall_s:.1f} s, {numbers['events_analysed_per_s']:.0f} events/s"),
        ("check", "identical to a single-process run" if verified else "DIFFERENT from a single-process run"),
    ]


def format_table(rows: Sequence[tuple[str, str]]) -> str:
    """Aligned text."""
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"  {label:<{width}}  {value}" for label, value in rows)


def write(folder: Path, record: Record, verified: bool) -> list[Path]:
    """Write the plot, summary.json and report.html into folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    plot, numbers, page = folder / "dimuon_met.png", folder / "summary.json", folder / "report.html"
    draw(record.result, plot)
    numbers.write_text(json.dumps(summary(record, verified), indent=1) + "\n")
    page.write_text(page_text(table(record, verified), plot.read_bytes()), encoding="utf-8")
    return [plot, numbers, page]


def draw(result: analysis.Partial, path: Path) -> None:
    """Two panels: dimuon mass (both axes logarithmic) and missing transverse momentum."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (mass, met) = plt.subplots(1, 2, figsize=(13, 5.2), dpi=120)
    panel(mass, result, "mass", analysis.MASS_EDGES_GEV)
    mass.set_xscale("log")
    mass.set_xlabel(r"$m_{\mu^{+}\mu^{-}}$ [GeV]", loc="right")
    for name, gev in (("J/ψ", 3.097), ("\N{GREEK CAPITAL LETTER UPSILON}", 9.46), ("Z", 91.19)):
        mass.axvline(gev, color="0.75", lw=0.8, zorder=0)
        mass.annotate(name, (gev, 0.97), xycoords=("data", "axes fraction"), ha="right", va="top", color="0.45")
    panel(met, result, "met", analysis.MET_EDGES_GEV)
    met.set_xlabel(r"$p_{T}^{miss}$ [GeV]", loc="right")
    met.legend(frameon=False, fontsize="small")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def panel(axes: Any, result: analysis.Partial, what: str, edges: npt.NDArray[np.float64]) -> None:
    """Simulation stacked with its uncertainty, data as points, on a logarithmic count axis."""
    datasets = sorted({dataset for dataset, _ in result})
    simulated = [d for d in datasets if result[d, "nominal"]["simulated"]]
    observed = [d for d in datasets if d not in simulated]
    base = np.zeros(len(edges) - 1)
    for colour, dataset in zip(COLOURS * len(simulated), simulated, strict=False):
        values = counts(result, what, [dataset])
        axes.stairs(base + values, edges, baseline=base, fill=True, color=colour, label=f"{dataset} (simulation)")
        base = base + values
    if simulated:
        half = uncertainty(result, what, simulated)
        axes.stairs(base + half, edges, baseline=np.maximum(base - half, FLOOR), fill=True, hatch="////",
                    facecolor="none", edgecolor="0.35", lw=0, label="stat. and scale variations")
    centres = np.sqrt(edges[1:] * edges[:-1]) if what == "mass" else (edges[1:] + edges[:-1]) / 2
    for marker, dataset in zip("osD^v" * len(observed), observed, strict=False):
        values = counts(result, what, [dataset])
        seen = values > 0
        axes.errorbar(centres[seen], values[seen], yerr=np.sqrt(values[seen]), fmt=f"k{marker}", ms=4, lw=1,
                      label=f"{dataset} (data)")
    axes.set_yscale("log")
    axes.set_ylim(FLOOR, None)
    axes.set_ylabel("events per bin", loc="top")
    axes.set_title("CMS", loc="left", fontweight="bold")
    axes.set_title("sample events, raw counts; a demo, not a CMS result", loc="right", fontsize="small", style="italic")
    axes.tick_params(which="both", direction="in", top=True, right=True)


def counts(
    result: analysis.Partial, what: str, datasets: Sequence[str], variation: str = "nominal", row: int = 0
) -> npt.NDArray[np.float64]:
    """Sum over data sets of one histogram; row 0 the weights, row 1 their squares."""
    total = np.zeros(len(result[datasets[0], variation]["mass" if what == "mass" else "met"][row]))
    for dataset in datasets:
        histograms = result[dataset, variation]
        total += (histograms["mass"] if what == "mass" else histograms["met"])[row]
    return total


def uncertainty(result: analysis.Partial, what: str, datasets: Sequence[str]) -> npt.NDArray[np.float64]:
    """Per bin: statistical error and, per source, the larger of the up and down shifts, added in quadrature."""
    nominal = counts(result, what, datasets)
    squared = counts(result, what, datasets, row=1)
    sources = {v.name.removesuffix(" up").removesuffix(" down") for v in analysis.VARIATIONS} - {"nominal"}
    for source in sources:
        shifts = [abs(counts(result, what, datasets, f"{source} {way}") - nominal) for way in ("up", "down")]
        squared = squared + np.maximum(*shifts) ** 2
    return np.sqrt(squared)


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Dimuon mass and missing momentum: demo run</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
img {{ width: 100%; background: white; border-radius: 6px; }}
th {{ text-align: left; font-weight: 600; padding: .2rem 1.5rem .2rem 0; white-space: nowrap; vertical-align: top; }}
td {{ font-variant-numeric: tabular-nums; }}
</style>
<h1>Dimuon mass and missing momentum</h1>
<img alt="two histograms: dimuon mass and missing transverse momentum" src="data:image/png;base64,{plot}">
<table>{rows}</table>
<p>Each map task filled histograms from one range of events under one systematic variation and left them on its
worker. Merging tasks added them up, also on the workers; only the last sum came to the manager.</p>
</html>
"""


def page_text(rows: Sequence[tuple[str, str]], plot: bytes) -> str:
    """One self-contained HTML page."""
    cells = "".join(f"<tr><th>{html.escape(label)}</th><td>{html.escape(value)}</td></tr>" for label, value in rows)
    return PAGE.format(plot=base64.b64encode(plot).decode(), rows=cells)
