"""Arguments that a user may get wrong: refused before anything is trained or written, in words that say what to do."""

from __future__ import annotations

import os
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from alphakernels.estimators import DNNModelPytorch, GeneralPTNN, GRUModel, SFMModel, TabNetModel, TransformerModel, _device
from alphakernels.estimators._device import own_random_streams
from alphakernels.training import Callback, CheckpointError, Trainer

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


@pytest.mark.parametrize(
    ("model", "name", "values", "expected"),
    [
        (GRUModel, "n_epochs", (1.5, None, -1, "2", True), "an integer of at least 0"),
        (GRUModel, "batch_size", ("32", 1.5, 0, None), "an integer of at least 1"),
        (GRUModel, "hidden_size", ("8", 8.0), "an integer of at least 1"),
        (GRUModel, "d_feat", (0, "6"), "an integer of at least 1 or None"),
        (GRUModel, "lr", ("0.1", -1.0, float("nan"), float("inf"), None), "a finite number of at least 0"),
        (GRUModel, "dropout", (2.0, "a", -0.1), "a probability, a number from 0 to 1"),
        (GRUModel, "seed", ("a", -1, 2**32, 1.0), "an integer from 0 to 4294967295 or None"),
        (SFMModel, "output_dim", (0,), "an integer of at least 1"),
        (TabNetModel, "n_steps", (0,), "an integer of at least 1"),
        (TabNetModel, "relax", (-1.0,), "a finite number of at least 0"),
        (TransformerModel, "nhead", (2.0,), "an integer of at least 1"),
        (GeneralPTNN, "n_epochs", (1.5,), "an integer of at least 0"),
        (DNNModelPytorch, "max_steps", (1.5,), "an integer of at least 1"),
    ],
)
def test_hyper_parameters(model, name, values, expected):
    for value in values:
        with pytest.raises(ValueError, match=re.escape(f"{model.__name__}: {name} must be {expected}, got {value!r}")):
            model(**{name: value})


def test_a_tabnet_of_one_step_has_no_output():
    with pytest.raises(ValueError, match="n_steps must be at least 2, of which the first gives no output, got 1"):
        TabNetModel(variant="paper", n_steps=1)


def test_numbers_of_numpy_are_numbers():
    model = gru(n_epochs=np.int64(1), batch_size=np.int32(8), seed=np.uint32(3), lr=np.float32(0.5), dropout=np.float64(0))
    assert model.n_epochs == 1
    with pytest.raises(ValueError, match="lr must be a finite number"):
        model.set_params(lr="a")


def test_names_made_up_for_an_array_are_not_compared(panels, tmp_path):
    x, y = arrays(panels.frame())
    named, unnamed = gru(n_epochs=1).fit(x, y), gru(n_epochs=1).fit(x.to_numpy(), y.to_numpy())
    assert (named.features_, unnamed.features_) == (list(x.columns), None)
    assert named.predict(x.to_numpy()).shape == unnamed.predict(x).shape == (len(x),)
    unnamed.save(tmp_path / "m")
    assert GRUModel.load(tmp_path / "m").predict(x).shape == (len(x),)
    gru(n_epochs=1).fit(x, y, eval_set=(x.to_numpy(), y.to_numpy()))
    with pytest.raises(ValueError, match="feature 0 must be 'OPEN5' as in training, got 'VOLUME0'; the names are the same"):
        named.predict(x[x.columns[::-1]])
    with pytest.raises(ValueError, match="eval_set must have X's 18 features, got 18 of other names or in another order"):
        gru().fit(x, y, eval_set=(x[x.columns[::-1]], y))


def test_an_ic_that_is_undefined(panels):
    table = panels.frame()
    for undefined in (table.assign(label=1.0), table.xs("S03", level="instrument", drop_level=False)):
        with pytest.raises(ValueError, match=r".train. is undefined, though it has finite labels.*at least two labelled stocks"):
            gru(metric="ic").fit(panels.rows(undefined))


class Watching(Callback):
    epochs = 0

    def on_epoch_end(self, state):
        self.epochs += 1


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (print, "must be a list of Callback objects, got a builtin_function_or_method; put it in a list"),
        (Watching(), "must be a list of Callback objects, got a Watching; put it in a list"),
        ([print], "must be objects of a subclass of .*, which has on_epoch_start, .* on_train_end; got a builtin_function_or_method"),
        ([Watching], "must be objects .* got the class Watching"),
    ],
)
def test_callbacks(panels, callbacks, message):
    with pytest.raises(TypeError, match=f"GRUModel: callbacks {message}"):
        gru().fit(panels.rows(), callbacks=callbacks)
    with pytest.raises(TypeError, match=f"Trainer: callbacks {message}"):
        Trainer(epochs=1, lr=0.1, callbacks=callbacks)
    watching = Watching()
    gru().fit(panels.rows(), callbacks=iter([watching]))
    assert watching.epochs == 2


def test_several_sets_to_choose_by(panels):
    x, y = arrays(panels.frame())
    with pytest.raises(ValueError, match=r"eval_set must be one \(X, y\) to choose the epoch by, got a list of 2; give one of them"):
        gru().fit(x, y, eval_set=[(x, y), (x, y)])


def test_windows_for_a_model_of_rows(panels):
    model = TabNetModel(d_feat=None, GPU=-1, pretrain=False)
    with pytest.raises(ValueError, match=r"TabNetModel takes rows, got an array of windows \[N, T, D\]: give it X \[N, D\]"):
        model.fit(np.ones((8, 3, 2)), np.arange(8))
    with pytest.raises(ValueError, match="TabNetModel takes rows, got a dataset of windows: give it the panel itself"):
        model.fit(panels.series())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_torch_is_named(tmp_path, zipped):
    torch.save({"rnn.weight": torch.ones(2)}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"got one of torch.save; .* use GRUModel\(\.\.\.\)\.load_qlib_checkpoint\(path"):
        GRUModel.load(tmp_path / "x.pt")


def test_fits_of_several_threads_are_those_of_one(panels):
    dataset = panels.rows()
    seeds = [1, 2, 3, 4]

    def scores(seed):
        return gru(seed=seed, num_layers=2, dropout=0.5).fit(dataset).predict(dataset).to_numpy()

    expected = [scores(seed) for seed in seeds]
    with ThreadPoolExecutor(len(seeds)) as pool:
        found = list(pool.map(scores, seeds))
    np.testing.assert_array_equal(found, expected)


def test_a_fit_within_a_fit(panels):
    dataset = panels.rows()

    class Nested(Callback):
        def on_epoch_end(self, state):
            gru(seed=9, n_epochs=1).fit(dataset)

    nested = gru(dropout=0.5, num_layers=2).fit(dataset, callbacks=[Nested()])
    assert nested.predict(dataset).equals(gru(dropout=0.5, num_layers=2).fit(dataset).predict(dataset))
    assert pickle.loads(pickle.dumps(nested)).predict(dataset).equals(nested.predict(dataset))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forked processes here")
def test_a_forked_process_waits_for_no_thread():
    with own_random_streams(0, torch.device("cpu")):
        held = [_device._LOCK]
        child = os.fork()
        if child == 0:
            os._exit(0 if _device._LOCK is not held[0] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
