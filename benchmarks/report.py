"""Draws the README's figures from benchmarks/results.json and files the run as a record.

    python benchmarks/report.py       # docs/{speedups,scale,sweep}.png and benchmarks/records/<device>-<date>-<commit>.json
"""

from __future__ import annotations

import json
import re
import shutil
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

HERE = Path(__file__).parent
COLOUR, BEHIND = "#0072B2", "#999999"
PEERS = ("#D55E00", "#009E73", "#CC79A7")  # of the figure by size


# The speed-up figure's panels: title, and what its rows' names end with.
PANELS = (
    ("Training step", (" training step", " train")),
    ("Inference", (" inference", " infer")),
    ("An epoch of fit: training pass, evaluation of both sets", (", epoch of fit",)),
    ("Features out of bars", (" days",)),
    ("An op alone", (" fwd + bwd", " forward")),
)
PEAKS = "Peak memory of a training step"


def bars(results: dict) -> dict[str, list[tuple[str, float, float | None]]]:
    """Panel -> (label, ratio, target) of its rows: those with a target but for sweeps, and torch.compile's."""
    drawn: dict[str, list[tuple[str, float, float | None]]] = {title: [] for title, _ in PANELS}
    for row in results["rows"]:
        found = next(((title, end) for title, ends in PANELS for end in ends if row["name"].endswith(end)), None)
        for peer, ms in row["peers_ms"].items():
            if found and peer != "torch.nn" and (peer in row["targets"] or "torch.compile" in peer):
                name = row["name"] if found[0] == PANELS[-1][0] else row["name"].removesuffix(found[1])
                drawn[found[0]].append((f"{name}  vs {peer}", ms / row["ours_ms"], row["targets"].get(peer)))
    drawn[PEAKS] = []
    for peak in results.get("peaks", []):
        name = peak["name"].replace(" training step", "").removesuffix(", peak")
        drawn[PEAKS].append((f"{name}  vs {peak['peer']}", peak["theirs"] / peak["ours"], peak["target"]))
    return {title: rows for title, rows in drawn.items() if rows}


def draw(results: dict, path: Path) -> None:
    """Horizontal bars of the ratio of each peer's median to ours; a mark where the target lies."""
    panels = bars(results)
    heights = [len(rows) + 1.2 for rows in panels.values()]
    figure = Figure(figsize=(9.4, 0.24 * sum(heights) + 0.9), layout="constrained")
    every = figure.subplots(len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, (title, rows) in zip(every, panels.items(), strict=True):
        for y, (_, ratio, target) in enumerate(rows):
            axes.barh(y, ratio, color=COLOUR if ratio >= 1 else BEHIND, height=0.7)
            beyond = ratio if target is None or not ratio < target < 1.4 * ratio else target  # the mark is not written over
            axes.text(beyond * 1.04, y, f"{ratio:.1f}x" if ratio >= 3 else f"{ratio:.2f}x", va="center", fontsize=7.5)
            if target is not None:
                axes.plot([target, target], [y - 0.42, y + 0.42], color="#D55E00", lw=2)
        axes.axvline(1, color="black", lw=0.8)
        axes.set_yticks(range(len(rows)), [label for label, *_ in rows], fontsize=7.5)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_title(title, fontsize=9, loc="left", fontweight="bold")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    last = every[-1]
    last.set_xscale("log")
    last.set_xlim(0.3, 2 * max(ratio for rows in panels.values() for _, ratio, _ in rows))
    last.set_xticks([0.5, 1, 2, 5, 10, 20, 50, 100], ["0.5x", "1x", "2x", "5x", "10x", "20x", "50x", "100x"])
    figure.supxlabel("peer's median (of memory: peak) / ours; right of 1x alphakernels is ahead; orange: target", fontsize=8)
    figure.suptitle(where_measured(results), fontsize=9)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)


def where_measured(results: dict) -> str:
    where = results["environment"]
    return f"{where['device']}, {where['threads']} threads, torch {where['torch']}, fp32"


def draw_sweep(results: dict, path: Path) -> None:
    """Recurrent stacks of every size against torch.nn's own: the ratio by hidden size, coloured by batch, T by marker."""
    pattern = re.compile(r"(GRU|LSTM) H (\d+) B (\d+) T (\d+) (.+)")
    found = [(pattern.fullmatch(row["name"]), row) for row in results["rows"] if "torch.nn" in row["peers_ms"]]
    points = [(*m.groups(), row["peers_ms"]["torch.nn"] / row["ours_ms"]) for m, row in found if m]
    if not points:
        return
    hidden, batches, steps = (sorted({int(point[i]) for point in points}) for i in (1, 2, 3))
    colours = dict(zip(batches, colormaps["viridis"](np.linspace(0, 0.9, len(batches))), strict=True))
    markers = dict(zip(steps, "osD^v", strict=False))
    figure = Figure(figsize=(9.4, 6.4), layout="constrained")
    for axes, (cell, what) in zip(
        figure.subplots(2, 2, sharex=True, sharey=True).flat, product(("GRU", "LSTM"), ("inference", "forward + backward")), strict=True
    ):
        for _, h, b, t, _, ratio in (point for point in points if (point[0], point[4]) == (cell, what)):
            x = hidden.index(int(h)) + 0.1 * (batches.index(int(b)) - (len(batches) - 1) / 2)
            axes.plot(x, ratio, marker=markers[int(t)], ms=5, color=colours[int(b)], alpha=0.85, lw=0)
        axes.axhline(1, color="black", lw=0.8)
        axes.set_yscale("log")
        axes.set_yticks([1, 2, 5, 10, 20], ["1x", "2x", "5x", "10x", "20x"])
        axes.set_xticks(range(len(hidden)), hidden)
        axes.set_title(f"{cell}, {what}", fontsize=10, loc="left")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    handles = [Line2D([], [], color=colours[b], marker="o", lw=0, label=f"B {b}") for b in batches]
    handles += [Line2D([], [], color="grey", marker=markers[t], lw=0, label=f"T {t}") for t in steps]
    figure.legend(handles=handles, loc="outside right center", fontsize=8, frameon=False)
    figure.supxlabel("hidden size", fontsize=9)
    figure.supylabel("torch.nn's median / ours", fontsize=9)
    figure.suptitle(f"Two layers against torch.nn. {where_measured(results)}", fontsize=9)
    figure.savefig(path, dpi=130)


def by_size(results: dict) -> dict[str, list[dict]]:
    """Rows that are drawn against their size, by the name they have in common, sizes rising."""
    groups: dict[str, list[dict]] = {}
    for row in sorted((row for row in results["rows"] if row.get("size")), key=lambda row: row["size"]):
        name = row["name"].replace(str(row["size"]), "N").removesuffix(", scale")
        groups.setdefault(name, []).append(row)
    return {name: rows for name, rows in groups.items() if len(rows) > 1}


def draw_scale(results: dict, path: Path) -> None:
    """Median time and peak memory against N, both axes logarithmic: a row of two panels for each group of rows."""
    groups = by_size(results)
    if not groups:
        return
    figure = Figure(figsize=(9.4, 3.7 * len(groups) + 0.3), layout="constrained")
    axes = figure.subplots(len(groups), 2, squeeze=False)
    for (time, memory), (name, rows) in zip(axes, groups.items(), strict=True):
        _against_size(time, rows, [{"alphakernels": row["ours_ms"], **row["peers_ms"]} for row in rows], "median time [ms]")
        _against_size(memory, rows, [{who: b / 1e6 for who, b in row["peak_bytes"].items()} for row in rows], "peak memory [MB]")
        time.set_title(name, fontsize=10, loc="left")
    figure.suptitle(where_measured(results), fontsize=9)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)


def _against_size(axes: Axes, rows: list[dict], values: list[dict[str, float]], what: str) -> None:
    """A line for each contender, named at its end; dotted beside ours the slope of N, beside the slowest peer's that of N^2."""
    names = list(dict.fromkeys(name for value in values for name in value))
    ends = {name: [value[name] for value in values if value.get(name)][-1] for name in names}
    for name, colour in zip(names, (COLOUR, *PEERS), strict=False):
        points = [(row["size"], value[name]) for row, value in zip(rows, values, strict=True) if value.get(name)]
        if not points:
            continue
        (first, start), (last, end) = points[0], points[-1]
        axes.plot(*zip(*points, strict=True), marker="o", ms=4, lw=2 if name == "alphakernels" else 1.3, color=colour)
        near = sorted((other for other in names if 1 / 2 < ends[other] / end < 2), key=ends.get, reverse=True)
        aside = 0 if len(near) == 1 else 5 if near[0] == name else -5  # names of lines that end side by side
        axes.annotate(name, points[-1], xytext=(7, aside), textcoords="offset points", color=colour, fontsize=8, va="center")
        power = 2 if end / start > (last / first) ** 1.5 else 1
        apart = 0.4 if power == 1 else 1.8
        if name == "alphakernels" or power == 2:
            axes.plot([first, last], [apart * end * (first / last) ** power, apart * end], color="black", lw=0.7, ls=":")
            axes.annotate("N" if power == 1 else "N²", (last, apart * end), xytext=(4, 0), textcoords="offset points", fontsize=8, va="center")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(right=4.5 * rows[-1]["size"])  # room for the names
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.set_xlabel("N")
    axes.set_ylabel(what)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def main() -> None:
    source = HERE / "results.json"
    results = json.loads(source.read_text())
    where = results["environment"]
    device = re.sub(r"[^a-z0-9]+", "-", where["device"].lower()).strip("-")
    record = HERE / "records" / f"{device}-{where['date']}-{where['commit']}.json"
    record.parent.mkdir(exist_ok=True)
    shutil.copy(source, record)
    of = "" if where["driver"] is None else "gpu-"  # beside the CPU's
    draw(results, HERE.parent / "docs" / f"{of}speedups.png")
    draw_scale(results, HERE.parent / "docs" / f"{of}scale.png")
    draw_sweep(results, HERE.parent / "docs" / f"{of}sweep.png")
    print(record)


if __name__ == "__main__":
    main()
