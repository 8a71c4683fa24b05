"""Tables of the user's own: read, or refused with what is wrong."""

from __future__ import annotations

import pandas as pd
import pytest

from alphakernels.data import panel_from_table, read_table, simulate_market


@pytest.fixture(scope="module")
def long() -> pd.DataFrame:
    return simulate_market(8, 60, seed=3).frame.reset_index()


def write(frame: pd.DataFrame, tmp_path, name: str = "t.csv"):
    path = tmp_path / name
    frame.to_parquet(path) if name.endswith("parquet") else frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet"])
def test_long_tables(long, tmp_path, name):
    pytest.importorskip("pyarrow")
    table = read_table(write(long.sample(frac=1, random_state=0), tmp_path, name))
    assert table.index.names == ["datetime", "instrument"]
    assert table.index.is_monotonic_increasing
    pd.testing.assert_series_equal(
        table["close"].astype("float32").reset_index(drop=True), long["close"].reset_index(drop=True), check_exact=False, rtol=1e-5
    )
    panel = panel_from_table(table, lags=4, fields=["close", "volume"])
    assert panel.features == tuple(f"{field}{lag}" for field in ("CLOSE", "VOLUME") for lag in (3, 2, 1, 0))
    assert set(panel.segments) == {"train", "valid", "test"}


def test_wide_tables(long, tmp_path):
    wide = long.pivot(index="datetime", columns="instrument", values="close").reset_index()
    table = read_table(write(wide, tmp_path))
    assert table.index.nlevels == 1 and table.shape == (60, 8)
    assert len(panel_from_table(table, lags=5).features) == 5


def test_own_features_and_label(long, tmp_path):
    panel = panel_from_table(
        read_table(write(long, tmp_path)), features=["open", "high"], label="volume", label_norm=None, feature_norm=None
    )
    assert panel.features == ("open", "high")
    assert panel.y.tolist() == pytest.approx(long["volume"].tolist(), rel=1e-5)


def spoil(frame: pd.DataFrame, column: str, row: int, value) -> pd.DataFrame:
    frame = frame.astype({column: object})
    frame.loc[row, column] = value
    return frame


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: spoil(f, "datetime", 3, "soon"), r"'soon' \(data row 4\)"),
        (lambda f: pd.concat([f, f.head(2)]), r"2 keys more than once: \(2010-01-04.*S0000\)"),
        (lambda f: f.drop(columns="instrument"), "an instrument column is missing"),
        (lambda f: f.drop(columns="datetime"), "a date column is missing"),
        (lambda f: spoil(f, "close", 5, "n.b."), r"column 'close' must hold numbers, got 1 texts: 'n.b.' \(data row 6\)"),
        (lambda f: f[["datetime", "instrument"]].assign(note="x"), "must have a numeric column"),
        (lambda f: f.head(0), "must have rows"),
    ],
)
def test_what_is_wrong_is_said(long, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read_table(write(change(long), tmp_path))


def test_files_that_cannot_be_tables(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="must end in .csv"):
        read_table(tmp_path / "t.xlsx")


def test_a_segment_without_rows_and_a_missing_column(long, tmp_path):
    table = read_table(write(long, tmp_path))
    with pytest.raises(ValueError, match="segment 'train' .* has no rows: the data runs from 2010"):
        panel_from_table(table, lags=3, segments={"train": ("1990", "1991")})
    with pytest.raises(ValueError, match="no column 'alpha'; it has open"):
        panel_from_table(table, label="alpha")
