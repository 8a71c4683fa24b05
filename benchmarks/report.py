"""Draws the README's figures from benchmarks/results.json and files the run as a record.

    python benchmarks/report.py       # docs/speedups.png, docs/scale.png and benchmarks/records/<device>-<date>-<commit>.json
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).parent
# Rows of the figure: those with a target, each against the peer that the target names.
COLOUR, BEHIND = "#0072B2", "#999999"
PEERS = ("#D55E00", "#009E73", "#CC79A7")  # of the figure by size


def bars(results: dict) -> list[tuple[str, str, float, float | None]]:
    """(name, peer, ratio, target) of every row to draw."""
    drawn = []
    for row in results["rows"]:
        for peer, ms in row["peers_ms"].items():
            if peer in row["targets"] or peer in ("Qlib", "entmax exact", "Qlib torch.compile"):
                drawn.append((row["name"], peer, ms / row["ours_ms"], row["targets"].get(peer)))
    for peak in results.get("peaks", []):
        drawn.append((peak["name"], f"{peak['peer']} (memory)", peak["theirs"] / peak["ours"], peak["target"]))
    return [bar for bar in drawn if "scale" not in bar[0] and "16384" not in bar[0] and "[800" not in bar[0]]


def draw(results: dict, path: Path) -> None:
    """Horizontal bars of the ratio of each peer's median to ours; a mark where the target lies."""
    rows = bars(results)
    figure = Figure(figsize=(8.6, 0.36 * len(rows) + 1.3), layout="constrained")
    axes = figure.add_subplot()
    for y, (_, _, ratio, target) in enumerate(rows):
        axes.barh(y, ratio, color=COLOUR if ratio >= 1 else BEHIND, height=0.68)
        axes.text(ratio * 1.04, y, f"{ratio:.1f}x" if ratio >= 3 else f"{ratio:.2f}x", va="center", fontsize=8)
        if target is not None:
            axes.plot([target, target], [y - 0.42, y + 0.42], color="#D55E00", lw=2)
    axes.axvline(1, color="black", lw=0.8)
    axes.set_xscale("log")
    axes.set_xlim(0.3, max(r for *_, r, _ in rows) * 2)
    axes.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5x", "1x", "2x", "5x", "10x", "20x"])
    axes.set_yticks(range(len(rows)), [f"{name}  vs {peer}" for name, peer, _, _ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("peer's median / ours (right of 1x: alphakernels is ahead); orange: target")
    where = results["environment"]
    axes.set_title(f"{where['device']}, {where['threads']} threads, torch {where['torch']}, fp32", fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path.parent.mkdir(exist_ok=True)
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
    where = results["environment"]
    figure.suptitle(f"{where['device']}, {where['threads']} threads, torch {where['torch']}, fp32", fontsize=9)
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
    draw(results, HERE.parent / "docs" / "speedups.png")
    draw_scale(results, HERE.parent / "docs" / "scale.png")
    print(record)


if __name__ == "__main__":
    main()
