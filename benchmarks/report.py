"""Draws the README's figure from benchmarks/results.json and files the run as a record.

    python benchmarks/report.py            # docs/speedups.png and benchmarks/records/<device>-<date>-<commit>.json
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from matplotlib.figure import Figure

HERE = Path(__file__).parent
# Rows of the figure: those with a target, each against the peer that the target names.
COLOUR, BEHIND = "#0072B2", "#999999"


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


def main() -> None:
    source = HERE / "results.json"
    results = json.loads(source.read_text())
    where = results["environment"]
    device = re.sub(r"[^a-z0-9]+", "-", where["device"].lower()).strip("-")
    record = HERE / "records" / f"{device}-{where['date']}-{where['commit']}.json"
    record.parent.mkdir(exist_ok=True)
    shutil.copy(source, record)
    draw(results, HERE.parent / "docs" / "speedups.png")
    print(record)


if __name__ == "__main__":
    main()
