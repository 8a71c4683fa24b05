"""HIST's predefined concepts: which stock belongs to which, from Qlib's two files, a table, or a dict."""

from __future__ import annotations

import os
import pickle
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import torch
from torch import Tensor


@dataclass(frozen=True)
class Concepts:
    """Stocks and their concepts.

    Attributes:
        stocks: S names, each once.
        matrix: float32 [S + 1, K], how much each stock belongs to each concept; the last row is that of unmapped stocks.
    """

    stocks: pd.Index
    matrix: Tensor

    def positions(self, index: pd.MultiIndex) -> np.ndarray:
        """The row of `matrix` of each (datetime, instrument): int64 [N]."""
        level = index.names.index("instrument") if "instrument" in index.names else 1
        row = self.stocks.get_indexer(pd.Index(index.levels[level].astype(str)))
        return np.where(row < 0, len(self.stocks), row)[np.asarray(index.codes[level])]

    def to(self, device: torch.device) -> Concepts:
        """These concepts with their matrix on `device`; themselves where it is there."""
        return self if self.matrix.device == device else replace(self, matrix=self.matrix.to(device))

    def digest(self) -> str:
        """Tells concepts apart, for the fingerprint of a run."""
        total = zlib.crc32(self.matrix.cpu().numpy(), zlib.crc32("\n".join(self.stocks).encode()))
        return f"{len(self.stocks)} stocks, {self.matrix.shape[1]} concepts, crc32 {total:08x}"

    @classmethod
    def read(cls, stock2concept: Any, stock_index: Any = None, default_row: int | None = None) -> Concepts:
        """Reads the two arguments of HIST.

        Args:
            stock2concept: a frame, stocks x concepts; a dict or Series from a stock to its concept or concepts; a CSV file of the frame,
                stocks in its first column; or a matrix [R, K], as an array or in an .npy file (Qlib's format), with stock_index.
            stock_index: a stock's row in the matrix: a dict or Series, a CSV file of two columns (stock, row), or Qlib's .npy
                file, which holds a pickled dict; nothing but plain values is unpickled from it.
            default_row: the matrix's row for stocks which are not in stock_index; None gives them no concept.

        Raises:
            FileNotFoundError: no such file; nothing is downloaded.
            ValueError: another form, rows outside the matrix, numbers that are not finite or negative.
        """
        if stock2concept is None:
            raise ValueError("stock2concept must say which stocks belong to which concepts, got None: give a frame, a dict or a file")
        if isinstance(stock2concept, (str, os.PathLike)):
            stock2concept = _file("stock2concept", stock2concept)
        if isinstance(stock2concept, pd.Series):
            stock2concept = stock2concept.to_dict()
        if isinstance(stock2concept, Mapping):
            stock2concept = _frame(stock2concept)
        if isinstance(stock2concept, pd.DataFrame):
            stocks, matrix = pd.Index(stock2concept.index.astype(str)), stock2concept.to_numpy(np.float32)
            default = None if default_row is None else matrix[default_row]
        else:
            table = np.asarray(stock2concept, dtype=np.float32)
            if table.ndim != 2 or stock_index is None:
                raise ValueError(
                    f"stock2concept as a matrix must be [R, K] with stock_index to say whose its rows are, got shape {table.shape} and "
                    f"stock_index {'None' if stock_index is None else 'given'}"
                )
            rows = _rows(stock_index)
            wrong = rows[(rows < 0) | (rows >= len(table))]
            if len(wrong) or (default_row is not None and not 0 <= default_row < len(table)):
                raise ValueError(
                    f"stock_index and default_row must name rows of the matrix, from 0 to {len(table) - 1}, got "
                    f"{wrong[:3].to_dict() or default_row}"
                )
            stocks, matrix = pd.Index(rows.index), table[rows.to_numpy()]
            default = None if default_row is None else table[default_row]
        if not stocks.is_unique:
            raise ValueError(f"each stock must have one row of concepts, got {stocks[stocks.duplicated()][0]!r} more than once")
        if matrix.shape[1] == 0 or not np.isfinite(matrix).all() or (matrix < 0).any():
            raise ValueError("stock2concept must hold finite numbers >= 0 for at least one concept")
        last = np.zeros_like(matrix[:1]) if default is None else default[None]
        return cls(stocks, torch.from_numpy(np.concatenate([matrix, last]).astype(np.float32)))


def _file(name: str, path: str | os.PathLike[str]) -> pd.DataFrame | np.ndarray:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{name}: no file at {path}; nothing is downloaded, see Qlib's HIST example for where it comes from")
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".csv":
        return pd.read_csv(path, index_col=0, dtype={0: str})
    raise ValueError(f"{name}: a file must be .npy or .csv, got {path.name}")


def _frame(concepts: Mapping[Any, Any]) -> pd.DataFrame:
    """Stocks x concepts, 0 and 1, from a stock's concept or concepts."""
    pairs = [(str(stock), name) for stock, of in concepts.items() for name in ([of] if isinstance(of, str) else of)]
    names = sorted({name for _, name in pairs}, key=str)
    frame = pd.DataFrame(0.0, index=[str(stock) for stock in concepts], columns=names)
    for stock, name in pairs:
        frame.loc[stock, name] = 1.0
    return frame


def _rows(stock_index: Any) -> pd.Series:
    """Row by stock."""
    if isinstance(stock_index, (str, os.PathLike)):
        path = Path(stock_index)
        if path.suffix == ".npy" and path.is_file():
            with path.open("rb") as file:
                stock_index = _pickled_dict(file, path)
        else:
            stock_index = _file("stock_index", path).iloc[:, 0]
    if isinstance(stock_index, pd.DataFrame):
        stock_index = stock_index.iloc[:, 0]
    rows = pd.Series(dict(stock_index), dtype=float)
    if rows.isna().any() or (rows % 1 != 0).any():
        raise ValueError(f"stock_index must give each stock a row's number, got {rows[rows.isna() | (rows % 1 != 0)][:3].to_dict()}")
    return pd.Series(rows.to_numpy(np.int64), index=rows.index.astype(str))


class _Plain(pickle.Unpickler):
    """Knows NumPy's arrays and scalars, and nothing that could run code."""

    ALLOWED = {"_reconstruct", "ndarray", "dtype", "scalar"}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in self.ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def _pickled_dict(file: BinaryIO, path: Path) -> dict[str, Any]:
    """The dict of `np.save(path, a_dict)`."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        values = _Plain(file).load() if dtype.hasobject else None
        found = values.item() if shape == () and values is not None else None
    except (ValueError, EOFError, pickle.UnpicklingError, AttributeError) as error:
        raise ValueError(f"stock_index: {path} must hold a plain dict as np.save writes it, but {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"stock_index: {path} must hold a dict from stocks to rows, got an array of shape {shape}")
    return found
