"""A simulated market in Qlib's binary format, and tasks over it, for running Qlib's own workflow."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from alphakernels.data import simulate_market

FIELDS = ("open", "high", "low", "close", "vwap", "volume")
# Qlib's DNNModelPytorch wants 50 instruments a day.
INSTRUMENTS, DAYS = 52, 150


def write(folder: Path, instruments: int = INSTRUMENTS, days: int = DAYS, seed: int = 0) -> Path:
    """Writes a market as Qlib's scripts/dump_bin.py does: calendars, instruments, one file of float32 a field."""
    frame = simulate_market(instruments, days, seed=seed).frame
    dates = frame.index.levels[0]
    names = [f"S{i:03d}" for i in range(instruments)]
    for part in ("calendars", "instruments", "features"):
        (folder / part).mkdir(parents=True)
    (folder / "calendars/day.txt").write_text("".join(f"{day:%Y-%m-%d}\n" for day in dates))
    lines = (f"{name}\t{dates[0]:%Y-%m-%d}\t{dates[-1]:%Y-%m-%d}\n" for name in names)
    (folder / "instruments/all.txt").write_text("".join(lines))
    for name, instrument in zip(names, frame.index.levels[1], strict=True):
        rows = frame.xs(instrument, level="instrument").reindex(dates)
        into = folder / "features" / name.lower()
        into.mkdir()
        vwap = rows["vwap"] if "vwap" in rows else (rows["high"] + rows["low"] + rows["close"]) / 3
        for field, values in {**{f: rows[f] for f in FIELDS if f != "vwap"}, "vwap": vwap}.items():
            np.r_[0, values.to_numpy()].astype("<f4").tofile(into / f"{field}.day.bin")
    return folder
