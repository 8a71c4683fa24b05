"""HIST's concepts from every form they come in; nothing but plain values is unpickled."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from alphakernels.estimators._concepts import Concepts

INDEX = pd.MultiIndex.from_product([pd.bdate_range("2020-01-01", periods=2), ["A", "B", "X"]], names=["datetime", "instrument"])
MATRIX = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0.5, 0]], dtype=np.float32)
FRAME = pd.DataFrame(MATRIX[[2, 0]], index=["B", "A"], columns=["oil", "tech", "big"])


def of_rows(concepts):
    return concepts.matrix.numpy()[concepts.positions(INDEX)]


EXPECTED = np.tile([[1, 0, 1], [0, 1, 0], [0, 0, 0]], (2, 1))


def test_every_form(tmp_path):
    np.save(tmp_path / "m.npy", MATRIX)
    np.save(tmp_path / "i.npy", {"A": 0, "B": 2})
    FRAME.to_csv(tmp_path / "m.csv")
    pd.Series({"A": 0, "B": 2}).to_csv(tmp_path / "i.csv")
    for arguments in (
        (FRAME,),
        ({"A": ["oil", "big"], "B": "tech"},),
        (pd.Series({"A": ["oil", "big"], "B": "tech"}),),
        (tmp_path / "m.csv",),
        (MATRIX, {"A": 0, "B": 2}),
        (MATRIX, pd.Series({"A": np.int64(0), "B": np.int64(2)})),
        (tmp_path / "m.npy", str(tmp_path / "i.npy")),
        (str(tmp_path / "m.npy"), tmp_path / "i.csv"),
    ):
        found = of_rows(Concepts.read(*arguments))
        columns = [1, 2, 0] if isinstance(arguments[0], (dict, pd.Series)) else [0, 1, 2]  # a dict's concepts go by name: big, oil, tech
        np.testing.assert_array_equal(found[:, columns], EXPECTED)


def test_a_stock_that_is_not_mapped():
    assert (of_rows(Concepts.read(MATRIX, {"A": 0, "B": 2}))[2] == 0).all()
    np.testing.assert_array_equal(of_rows(Concepts.read(MATRIX, {"A": 0, "B": 2}, default_row=3))[2], MATRIX[3])


def test_index_files_of_qlib_with_numpy_numbers(tmp_path):
    np.save(tmp_path / "i.npy", {"A": np.int64(0), "B": np.float64(2)})
    np.testing.assert_array_equal(of_rows(Concepts.read(MATRIX, tmp_path / "i.npy")), EXPECTED)


class Harm:
    def __reduce__(self):
        return (eval, ("1 / 0",))


def test_a_file_that_runs_code_is_refused(tmp_path):
    np.save(tmp_path / "i.npy", {"A": Harm()})
    with pytest.raises(ValueError, match="must hold a plain dict as np.save writes it, but it holds builtins.eval"):
        Concepts.read(MATRIX, tmp_path / "i.npy")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None,), ValueError, "got None: give a frame, a dict or a file"),
        ((MATRIX,), ValueError, r"must be \[R, K\] with stock_index"),
        ((MATRIX, {"A": 0, "B": 4}), ValueError, "must name rows of the matrix, from 0 to 3, got {'B': 4}"),
        ((MATRIX, {"A": 0}, 9), ValueError, "must name rows of the matrix, from 0 to 3, got 9"),
        ((MATRIX, {"A": np.nan}), ValueError, "must give each stock a row's number"),
        ((-FRAME,), ValueError, "finite numbers >= 0"),
        ((pd.concat([FRAME, FRAME]),), ValueError, "one row of concepts, got 'B' more than once"),
        (("none.npy",), FileNotFoundError, "nothing is downloaded"),
        ((__file__,), ValueError, "must be .npy or .csv"),
    ],
)
def test_what_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Concepts.read(*arguments)
