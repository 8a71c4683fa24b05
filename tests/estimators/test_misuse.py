"""Arguments that a user may get wrong: refused before anything is trained or written, in words that say what to do."""

from __future__ import annotations

import numpy as np
import pytest

from alphakernels.estimators import DNNModelPytorch, GeneralPTNN, GRUModel, TabNetModel

GRU = {"d_feat": 3, "hidden_size": 4, "num_layers": 1, "n_epochs": 2, "batch_size": 32, "GPU": -1, "seed": 1, "progress": False}


def gru(**options):
    return GRUModel(**{**GRU, **options})


def arrays(table):
    return table.drop(columns="label"), table["label"]


@pytest.mark.parametrize(
    "model",
    [gru(), TabNetModel(d_feat=None, GPU=-1), GeneralPTNN(GPU=-1), DNNModelPytorch(GPU=-1)],
)
def test_with_a_dataset_the_second_argument_is_a_dict(panels, model):
    table = panels.frame()
    dataset, (_, y) = panels.rows(table), arrays(table)
    before = y.copy()
    for second in (y, y.to_numpy(), dataset):
        message = f"{type(model).__name__}: evals_result must be a dict, got {type(second).__name__}; a dataset holds its labels"
        with pytest.raises(TypeError, match=message):
            model.fit(dataset, second)
    assert not model.fitted and y.equals(before)
    with pytest.raises(TypeError, match="evals_result must be a dict, got list$"):
        model.fit(dataset, evals_result=[])
    with pytest.raises(TypeError, match="evals_result must be given once"):
        model.fit(dataset, {}, evals_result={})


def test_a_dataset_takes_no_arguments_of_arrays(panels):
    dataset = panels.rows()
    with pytest.raises(ValueError, match="GRUModel: eval_set, dates, instruments must be left out with a dataset.*belong to arrays"):
        gru().fit(dataset, eval_set="garbage", dates="garbage", instruments=5)
    scores = {}
    model = gru().fit(dataset, scores)
    assert list(scores) == ["train", "valid"] and len(scores["train"]) == 2
    with pytest.raises(ValueError, match="GRUModel: dates must be left out with a dataset"):
        model.predict(dataset, dates="garbage")


def test_labels_in_another_order_than_the_rows(panels):
    x, y = arrays(panels.frame())
    shuffled, others = y.sample(frac=1, random_state=0), y.copy()
    others.index = others.index.set_levels([f"T{k}" for k in range(11)], level=1)
    model = gru(n_epochs=1)
    for wrong in (shuffled, others, shuffled.to_frame(), y[:-1]):
        with pytest.raises(ValueError, match=r"GRUModel: y must have X's index.*y\.reindex\(X\.index\)"):
            model.fit(x, wrong)
    with pytest.raises(ValueError, match="y must have X's index"):
        model.fit(x, y, eval_set=(x, shuffled))
    model.fit(x, shuffled.reindex(x.index))
    with pytest.raises(ValueError, match="GRUModel: y must have X's index"):
        model.score(x, shuffled)
    # Without keys on both sides the place counts.
    assert model.score(x, y) == model.score(x, y.to_numpy()) == model.score(x, y.reset_index(drop=True))
    assert np.array_equal(model.predict(x), gru(n_epochs=1).fit(x, y.reset_index(drop=True)).predict(x))
