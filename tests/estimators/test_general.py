"""GeneralPTNN and DNNModelPytorch: any network, their losses, schedulers, checkpoints and several processes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from alphakernels.estimators import DNNModelPytorch, GeneralPTNN
from alphakernels.models import GRUNet, MLPNet
from alphakernels.training import Callback, CheckpointError, load_tensors

NET = {"pt_model_uri": MLPNet, "pt_model_kwargs": {"input_dim": 3, "layers": (8,)}, "GPU": -1, "progress": False, "seed": 2}


def data(rows=400, seed=0):
    x = np.random.default_rng(seed).normal(size=(rows, 3)).astype(np.float32)
    return x, x[:, 0] - 0.5 * x[:, 1]


class Flat(nn.Module):
    """Gives [B] where Qlib's loss wants [B, 1]."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 1)

    def forward(self, x):
        return self.linear(x).squeeze()


def test_qlibs_loss_over_all_pairs():
    model = GeneralPTNN(**NET | {"pt_model_uri": Flat, "pt_model_kwargs": {"features": 3}})
    generator = torch.Generator().manual_seed(0)
    prediction, label, weight = (torch.randn(50, dtype=torch.float64, generator=generator) for _ in range(3))
    label[::7] = torch.nan
    prediction.requires_grad_()
    seen = ~label.isnan()
    expected = (weight[seen] * (prediction[seen] - label[seen].view(-1, 1)) ** 2).mean()  # as Qlib writes it
    found = model._loss(prediction, label, weight, slice(None, None, 1))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for one, other in zip(torch.autograd.grad(found, prediction), torch.autograd.grad(expected, prediction), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    column = prediction.detach().unsqueeze(1)
    expected = (weight[seen] * (column[seen] - label[seen].view(-1, 1)) ** 2).mean()
    torch.testing.assert_close(model._loss(column, label, weight, slice(None, None, 1)), expected, rtol=1e-12, atol=0)


def test_variants(caplog):
    x, y = data()
    options = NET | {"pt_model_uri": Flat, "pt_model_kwargs": {"features": 3}, "n_epochs": 40, "lr": 0.02, "batch_size": 50}
    assert GeneralPTNN(**options).fit(x, y).score(x, y) < 0.1
    assert "every prediction with every label" in caplog.text
    assert GeneralPTNN(**options, variant="paper").fit(x, y).score(x, y) > 0.9


def test_weights_of_rows_count():
    x, y = data()
    y[:200] += 3
    weights = np.r_[np.zeros(200), np.ones(200)].astype(np.float32)
    shared = NET | {"lr": 0.05, "batch_size": 100}
    dnn = DNNModelPytorch(**shared, optimizer="adam", max_steps=200).fit(x, y, reweighter=lambda segment: weights)
    general = GeneralPTNN(**shared, variant="paper", n_epochs=40).fit(x, y, reweighter=lambda segment: weights)
    for model in (dnn, general):
        assert np.abs(model.predict(x[200:]) - y[200:]).mean() < 1


@pytest.mark.parametrize("cls", [GeneralPTNN, DNNModelPytorch])
def test_binary_labels_and_missing_ones(cls):
    x, y = data()
    label = (y > 0).astype(float)
    label[::5] = np.nan
    more = {"n_epochs": 20} if cls is GeneralPTNN else {"max_steps": 200, "optimizer": "adam"}
    model = cls(**NET, loss="binary", lr=0.02, batch_size=80, **more).fit(x, label)
    assert ((model.predict(x) > 0) == (y > 0)).mean() > 0.9


class Rates(Callback):
    def __init__(self):
        self.rates = []

    def on_epoch_end(self, state):
        self.rates.append(state.optimizer.param_groups[0]["lr"])


def test_dnn_evaluates_by_steps_and_stops():
    x, y = data()
    noise = np.random.default_rng(1).normal(size=400)
    rates = Rates()
    model = DNNModelPytorch(**NET, max_steps=95, eval_steps=20, batch_size=64, eval_train_metric=True, lr=0.05)
    model.fit(x[:300], y[:300], eval_set=(x[300:], y[300:]), callbacks=[rates])
    assert len(model.evals_result_["train"]) == len(model.evals_result_["valid"]) == len(rates.rates) == 5
    # The last round has 15 steps, and Qlib divides their sum by 20.
    assert model.evals_result_["train"][-1] < model.evals_result_["train"][-2]
    early = DNNModelPytorch(**NET, max_steps=1000, eval_steps=5, early_stop_rounds=3, batch_size=64, lr=0.3, optimizer="adam")
    early.fit(x[:300], noise[:300], eval_set=(x[300:], noise[300:]))
    assert len(early.evals_result_["valid"]) < 100
    best = min(early.evals_result_["valid"])
    assert len(early.evals_result_["valid"]) == early.evals_result_["valid"].index(best) + 4


def halve(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)


@pytest.mark.parametrize("scheduler", [halve, f"{__name__}.halve", None, "default"])
def test_schedulers(scheduler):
    if isinstance(scheduler, str) and scheduler != "default":
        sys.modules.setdefault(__name__, sys.modules[halve.__module__])
    x, y = data()
    rates = Rates()
    DNNModelPytorch(**NET, max_steps=40, eval_steps=10, scheduler=scheduler, lr=0.1).fit(x, y, callbacks=[rates])
    expected = [0.1, 0.05, 0.025, 0.0125] if scheduler not in (None, "default") else [0.1] * 4
    assert rates.rates == pytest.approx(expected)


def test_a_network_to_start_from():
    x, y = data()
    start = MLPNet(input_dim=3, layers=(8,))
    before = {name: t.clone() for name, t in start.state_dict().items()}
    model = DNNModelPytorch(**NET, init_model=start, max_steps=20, optimizer="adam", lr=1e-12, batch_size=64).fit(x, y)
    assert model.module_ is not start
    assert all(torch.equal(start.state_dict()[name], t) for name, t in before.items())
    torch.testing.assert_close(model.module_.dnn_layers[1][0].weight, start.dnn_layers[1][0].weight, rtol=0, atol=1e-9)


@pytest.mark.parametrize("cls", [GeneralPTNN, DNNModelPytorch])
def test_save_and_load(cls, tmp_path):
    x, y = data()
    more = {"n_epochs": 2} if cls is GeneralPTNN else {"max_steps": 20}
    model = cls(**NET, batch_size=64, **more).fit(x, y, save_path=tmp_path / "m")
    loaded = cls.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.predict(x), model.predict(x))
    assert loaded.pt_model_uri == "alphakernels.models.mlp.MLPNet"
    other = cls(**NET | {"pt_model_kwargs": {"input_dim": 3, "layers": (9,)}})
    torch.save(model.module_.state_dict(), tmp_path / "state")
    assert np.array_equal(cls(**NET).load_qlib_checkpoint(tmp_path / "state", 3).predict(x), model.predict(x))
    with pytest.raises(CheckpointError, match="another model's"):
        other.load_qlib_checkpoint(tmp_path / "state", 3)


def test_qlibs_defaults_and_networks_are_answered_with_ours():
    assert isinstance(GeneralPTNN()._network(6), GRUNet)
    assert isinstance(DNNModelPytorch()._network(360), MLPNet)
    assert isinstance(GeneralPTNN(pt_model_uri="qlib.contrib.model.pytorch_gru.GRUModel")._network(6), GRUNet)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pt_model_uri": "torch.nn.Linaer"}, ValueError, "torch.nn has no 'Linaer'; did you mean 'Linear'"),
        ({"pt_model_uri": "no.such.Network"}, ValueError, "'no.such.Network' cannot be imported"),
        ({"pt_model_uri": "Network"}, ValueError, "import path such as"),
        ({"pt_model_uri": "os.system"}, ValueError, "subclass of torch.nn.Module"),
        ({"pt_model_uri": MLPNet}, TypeError, "pt_model_kwargs: expected the argument input_dim, got none"),
        ({"pt_model_kwargs": {"hiden_size": 3}}, TypeError, "unknown argument 'hiden_size'; did you mean 'hidden_size'"),
        ({"optimizer": "adamw"}, ValueError, "optimizer must be one of 'adam', 'gd', 'sgd', got 'adamw'"),
        ({"loss": "mae"}, ValueError, "loss must be one of 'mse', 'binary', got 'mae'"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        GeneralPTNN(**options)


def test_networks_that_do_not_fit_the_data():
    x, y = data()
    with pytest.raises(ValueError, match=r"MLPNet.*(fails on features of shape|x must be)"):
        GeneralPTNN(**NET | {"pt_model_kwargs": {"input_dim": 4}}, n_epochs=1).fit(x, y)
    with pytest.raises(ValueError, match="must give one number a row"):
        GeneralPTNN(**NET | {"pt_model_kwargs": {"input_dim": 3, "output_dim": 2}}, n_epochs=1).fit(x, y)


RUN = """
import sys
import numpy as np, torch
import torch.distributed as dist
from alphakernels.estimators import DNNModelPytorch, GeneralPTNN
from torch import nn

torch.set_num_threads(1)
folder, rank, ranks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if ranks > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
x = np.random.default_rng(0).normal(size=(301, 3)).astype(np.float32)
y = x[:, 0] - x[:, 1]
y[::9] = np.nan
weights = np.linspace(0.5, 2, 200).astype(np.float32)
common = dict(pt_model_uri=nn.Linear, pt_model_kwargs={"in_features": 3, "out_features": 1}, GPU=-1, seed=2, progress=False, lr=0.05,
              data_parall=True, batch_size=33)
models = {
    "qlib": GeneralPTNN(**common, n_epochs=3),
    "paper": GeneralPTNN(**common, n_epochs=3, variant="paper"),
    "dnn": DNNModelPytorch(**common, max_steps=45, optimizer="adam"),
}
for name, model in models.items():
    model.fit(x[:200], y[:200], eval_set=(x[200:], y[200:]), reweighter=None if name == "dnn" else lambda segment: weights,
              save_path=f"{folder}/{name}{ranks}")
if ranks > 1:
    dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_train_as_one(tmp_path):
    def start(rank, ranks):
        return subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path), str(rank), str(ranks)], stderr=subprocess.PIPE, text=True)

    for process in [start(0, 1), start(0, 2), start(1, 2)]:
        assert process.wait(timeout=240) == 0, process.stderr.read()
    for name in ("qlib", "paper", "dnn"):
        alone, expected = load_tensors(tmp_path / f"{name}1")
        both, found = load_tensors(tmp_path / f"{name}2")
        for key, tensor in alone.items():
            torch.testing.assert_close(both[key], tensor, rtol=1e-4, atol=1e-5)
        assert found["evals_result"]["valid"] == pytest.approx(expected["evals_result"]["valid"], rel=1e-4), name
