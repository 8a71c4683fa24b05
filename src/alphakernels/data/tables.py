"""Reads a user's own table of prices or features, CSV or Parquet, long or wide, and says what is wrong with one it cannot.

Long: a column of dates, one of instruments, and numeric columns. Wide: dates first, then one column an instrument.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from alphakernels.data.alphas import alpha158 as make_alpha158
from alphakernels.data.assemble import FeatureNorm, LabelNorm, assemble
from alphakernels.data.features import forward_returns, price_windows
from alphakernels.data.frames import shown
from alphakernels.data.index import SHOWN, PanelIndex
from alphakernels.data.panel import PanelDataset

DEFAULT_SHARES = {"train": 0.7, "valid": 0.15, "test": 0.15}

# In the order they are looked for: the first that a table has is taken.
DATE_NAMES = ("datetime", "date", "timestamp", "trade_date", "time", "day")
INSTRUMENT_NAMES = ("instrument", "symbol", "ticker", "ts_code", "asset", "stock", "code", "name")
BAR_NAMES = {"open", "high", "low", "close", "adj close", "vwap", "volume"}

CSV_SUFFIXES = (".csv", ".csv.gz", ".csv.bz2", ".csv.xz", ".csv.zip")
PARQUET_SUFFIXES = (".parquet", ".pq")

_logger = logging.getLogger(__name__)


def read_table(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Reads a table of an instrument's numbers by day.

    A table with a date column and an instrument column is long (their names are looked for in `DATE_NAMES` and
    `INSTRUMENT_NAMES`, whatever the case). One without an instrument column, whose first column holds the dates, each
    once, is wide: its other columns are instruments and its numbers closing prices. Instruments are read as text:
    "000001" keeps its zeros. Columns without any number are left out with a warning in the log.

    Args:
        path: a file ending in one of `CSV_SUFFIXES` or `PARQUET_SUFFIXES`.

    Returns:
        Long: a frame indexed by (datetime, instrument), sorted, with numeric columns. Wide: a float64 frame with a
        sorted DatetimeIndex "datetime" and columns "instrument". `frame.index.nlevels` tells them apart.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a Parquet file without pyarrow installed.
        ValueError: an unknown suffix, a file that cannot be read, an empty table, missing date or instrument
            columns, dates that cannot be read, duplicate keys, a column of numbers that holds text, or no numeric
            column; each names what was found.
    """
    path = Path(path)
    table = _read(path)
    if table.shape[0] == 0 or table.shape[1] == 0:
        raise ValueError(f"{path}: the table must have rows, got none (columns: {shown(table.columns) or 'none'})")
    date, instrument = _key_columns(path, table)
    days = _dates(path, table[date])
    numbers = _numeric(path, table.drop(columns=[date] if instrument is None else [date, instrument]))
    if instrument is None:
        return _wide(path, days, numbers)
    names = table[instrument]
    _check_present(path, instrument, names.isna() | (names.astype(str).str.strip() == ""), "an instrument")
    names = names.astype(str).str.strip()
    index = pd.MultiIndex.from_arrays([days, names], names=["datetime", "instrument"])
    keys = PanelIndex.from_pandas(index)
    try:
        order = keys.sorting()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if order is not None:
        numbers, keys = numbers.take(order), keys.take(order)
    return numbers.set_axis(keys.to_pandas(), axis=0)


def _read(path: Path) -> pd.DataFrame:
    """The file as it stands, with dates and instruments as text where it is CSV."""
    name = path.name.lower()
    if not name.endswith(CSV_SUFFIXES + PARQUET_SUFFIXES):
        known = ", ".join(CSV_SUFFIXES + PARQUET_SUFFIXES)
        raise ValueError(f"{path}: a table's name must end in {known}, got {path.suffix or 'no suffix'}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file (looked in {path.parent.resolve()})")
    try:
        if name.endswith(CSV_SUFFIXES):
            header = pd.read_csv(path, nrows=0).columns
            first = header[:1]
            keys = {column for column in header if _plain(column) in DATE_NAMES + INSTRUMENT_NAMES} | set(first)
            # As text: 000001 must keep its zeros, and 20200102 is a date. "NA" and "NULL" are tickers.
            text = pd.read_csv(path, usecols=list(keys), dtype=str, keep_default_na=False, na_values=[""])
            table = pd.read_csv(path, dtype=dict.fromkeys(keys, str), low_memory=False)
            return table.assign(**{column: text[column] for column in keys})
        table = pd.read_parquet(path)
    except ImportError as error:
        raise ImportError(f"{path}: reading Parquet needs pyarrow (pip install pyarrow): {error}") from error
    except pd.errors.EmptyDataError:
        raise ValueError(f"{path}: the table must have rows, got an empty file") from None
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read as {path.suffix.lstrip('.')}: {error}") from error
    named = [level for level in table.index.names if level is not None]
    return table.reset_index() if named or isinstance(table.index, pd.DatetimeIndex) else table


def _plain(column: object) -> str:
    return str(column).strip().lower()


def _key_columns(path: Path, table: pd.DataFrame) -> tuple[object, object | None]:
    """The date column, and the instrument column or None in a wide table."""
    plain = {_plain(column): column for column in reversed(table.columns)}
    date = next((plain[name] for name in DATE_NAMES if name in plain), None)
    instrument = next((plain[name] for name in INSTRUMENT_NAMES if name in plain and plain[name] != date), None)
    found = f"the table has the columns {shown(table.columns)}"
    # A wide table may have a stock whose ticker is CODE: prices are no names.
    wide = date is not None and date == table.columns[0] and table[date].is_unique
    if wide and instrument is not None and _reads_as_prices(table[instrument]):
        instrument = None
    if instrument is not None and date is None:
        raise ValueError(
            f"{path}: a date column is missing (one of {', '.join(DATE_NAMES)}); {found}; rename the column of dates"
        )
    if instrument is not None:
        return date, instrument
    date = table.columns[0] if date is None else date
    bars = [column for column in table.columns if _plain(column) in BAR_NAMES]
    if len(bars) > 1 or not table[date].dropna().is_unique:
        why = (
            f"{shown(bars)} are fields of one instrument"
            if len(bars) > 1
            else f"a wide table has each date once, but {table[date].dropna().duplicated().sum()} rows repeat a date"
        )
        if _all_unique_numbers(table[date]) and len(bars) > 1:
            why = f"a date column is missing too, and {why}"
        raise ValueError(
            f"{path}: an instrument column is missing (one of {', '.join(INSTRUMENT_NAMES)}): {why}; {found}; "
            f"rename or add the column of instruments"
        )
    return date, None


def _reads_as_prices(column: pd.Series) -> bool:
    """Whether a column of text holds numbers with decimals: prices, where instruments would be names or codes."""
    values = pd.to_numeric(column.dropna(), errors="coerce")
    return len(values) > 0 and bool(values.notna().all()) and bool((values % 1 != 0).any())


def _all_unique_numbers(column: pd.Series) -> bool:
    """Whether a column holds plain numbers that are no dates, such as prices."""
    values = pd.to_numeric(column, errors="coerce")
    return bool(values.notna().all()) and bool(((values < 19000101) | (values > 21001231)).all())


def _check_present(path: Path, column: object, missing: pd.Series, what: str) -> None:
    if missing.any():
        rows = ", ".join(str(row + 1) for row in np.flatnonzero(missing)[:SHOWN])
        raise ValueError(
            f"{path}: every row must have {what}, got {int(missing.sum())} rows without in column {str(column)!r}, "
            f"the first are data rows {rows}"
        )


def _dates(path: Path, column: pd.Series) -> pd.DatetimeIndex:
    """The dates of every row; 20200102 is a date too."""
    if not pd.api.types.is_datetime64_any_dtype(column):
        text = column.astype(str).str.strip().where(column.notna(), None)
        _check_present(path, column.name, text.isna() | (text == ""), "a date")
        parsed = pd.to_datetime(text, errors="coerce", format="ISO8601")
        if parsed.isna().any():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pandas says that it guesses; what it cannot read is refused below
                parsed = pd.to_datetime(text, errors="coerce")
        bad = np.flatnonzero(parsed.isna())
        if bad.size:
            shown_values = ", ".join(f"{text.iloc[row]!r} (data row {row + 1})" for row in bad[:SHOWN])
            raise ValueError(
                f"{path}: column {str(column.name)!r} must hold dates such as 2020-01-31, got {bad.size} values that "
                f"cannot be read: {shown_values}"
            )
        column = parsed
    _check_present(path, column.name, column.isna(), "a date")
    return pd.DatetimeIndex(column)


def _numeric(path: Path, columns: pd.DataFrame) -> pd.DataFrame:
    """The columns as numbers; those without any number are left out with a warning in the log."""
    kept, dropped = {}, []
    for position, name in enumerate(columns.columns):
        column = columns.iloc[:, position]
        values = pd.to_numeric(column, errors="coerce")
        if values.notna().any():
            text = np.flatnonzero(values.isna() & column.notna())
            if text.size:
                examples = ", ".join(f"{column.iloc[row]!r} (data row {row + 1})" for row in text[:SHOWN])
                raise ValueError(f"{path}: column {str(name)!r} must hold numbers, got {text.size} texts: {examples}")
            kept[str(name)] = values
        else:
            dropped.append(str(name))
    if not kept:
        raise ValueError(f"{path}: the table must have a numeric column, got {shown(columns.columns) or 'none'} beside its keys")
    if dropped:
        _logger.warning("%s: columns without a number are left out: %s", path, ", ".join(dropped))
    return pd.DataFrame(kept, index=columns.index)


def _wide(path: Path, days: pd.DatetimeIndex, numbers: pd.DataFrame) -> pd.DataFrame:
    """Closes by day and instrument, sorted by day."""
    twice = days[days.duplicated()].unique()
    if len(twice):
        raise ValueError(f"{path}: a wide table has each date once, got {len(twice)} more than once: {shown(twice)}")
    frame = numbers.astype(np.float64).set_axis(days.rename("datetime"), axis=0).sort_index()
    return frame.rename_axis(columns="instrument")


def panel_from_table(
    table: pd.DataFrame,
    *,
    label: str | None = None,
    features: Sequence[str] | None = None,
    lags: int = 20,
    fields: Sequence[str] | None = None,
    horizon: int = 1,
    delay: int = 1,
    segments: Mapping[str, Any] | None = None,
    label_norm: LabelNorm = "rank",
    feature_norm: FeatureNorm = "robust_zscore",
    alpha158: bool = False,
) -> PanelDataset:
    """A dataset ready to train on, from what `read_table` gives.

    Args:
        table: long or wide.
        label: the label's column in a long table; None makes the label from the closes: their forward return.
        features: the feature columns of a long table; None takes all but the label, or, where the label is made from
            the closes, windows of `lags` values of `fields` (all of open, high, low, close, vwap, volume that there are).
        lags, fields: of the windows, see `price_windows`; a wide table has the field close.
        horizon, delay: of the forward return, see `forward_returns`.
        segments: (first, last) day or share of the days by name; by default train 0.7, valid 0.15, test 0.15.
        label_norm, feature_norm: see `assemble`.
        alpha158: the features are Alpha158's, made from the bars of a long table; `features` then names some of them.

    Rows that hold a NaN in a feature are left out.

    Raises:
        ValueError: a column that is missing (the message lists what there is), no complete row, or what `assemble` raises.
    """
    segments = DEFAULT_SHARES if segments is None else segments
    wide = table.index.nlevels == 1
    for column in [*(() if alpha158 else features or ()), *(fields or ()), *([label] if label else ())]:
        known = ["close"] if wide else list(table.columns)
        if column not in known:
            raise ValueError(f"the table has no column {column!r}; it has {shown(known)}")
    if label is None and not wide and "close" not in table.columns:
        raise ValueError(
            f"without label= the label is the return of the column 'close'; the table has {shown(table.columns)}; name its label's column "
            "by label=, on the command line by --config with data: {label: COLUMN}"
        )
    closes = {"close": table} if wide else table
    if alpha158:
        if wide:
            raise ValueError("Alpha158 is made from bars, the columns of a long table; this one is wide: dates, then one column an instrument")
        rows = make_alpha158(table, features, complete=True)
    elif features is not None or label is not None:
        if wide:
            raise ValueError("features and label name columns of a long table; this one is wide: dates, then one column an instrument")
        rows = table[[c for c in table.columns if c != label] if features is None else list(features)]
        rows = rows[rows.notna().all(axis=1)]
    else:
        bars = [name for name in ("open", "high", "low", "close", "vwap", "volume") if wide is False and name in table.columns]
        rows = price_windows(closes, list(fields or bars or ["close"]), lags, complete=True)
    if len(rows) == 0:
        raise ValueError("no row is complete: each holds a NaN in some feature; take fewer lags, or fill the columns first")
    if label is not None:
        target = table[label]
    else:
        target = forward_returns(table if wide else table["close"], horizon, delay)
    return assemble(rows, target, segments, label_norm, feature_norm)
