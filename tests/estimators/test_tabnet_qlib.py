"""The "qlib" variant against Qlib's two training loops, written out here as its source has them.

TabNet in float32 amplifies a change of 1e-7 in its input to percents of the loss within an epoch (through some twenty
batch norms, and Adam's steps along gradients that are rounding errors), in Qlib itself as here. So the loops are
compared over small smooth networks of the same interfaces, where every mask, shuffle, step and clipping shows; and over
the real ones up to where rounding takes over.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from alphakernels import models
from alphakernels.data import PanelDataset
from alphakernels.estimators import TabNetModel, tabnet
from alphakernels.training import Callback

SEGMENTS = {"train": ("2020-01-01", "2020-01-31"), "valid": ("2020-02-03", "2020-02-14")}
OPTIONS = {
    "d_feat": None,
    "out_dim": 6,
    "n_shared": 1,
    "n_ind": 2,
    "n_steps": 3,
    "batch_size": 64,
    "vbs": 32,
    "n_epochs": 6,
    "pretrain_n_epochs": 5,
    "seed": 11,
    "GPU": -1,
    "progress": False,
}


class Encoder(nn.Module):
    def __init__(self, inp_dim, out_dim, vbs, relax, variant="qlib"):
        super().__init__()
        self.bn = nn.BatchNorm1d(inp_dim)
        self.fc = nn.Linear(inp_dim, out_dim)

    def forward(self, x, priors):
        hidden = torch.tanh(self.fc(self.bn(x) * priors))
        return hidden, hidden.square().mean()


class Decoder(nn.Module):
    def __init__(self, inp_dim, out_dim, n_shared, n_ind, vbs, n_steps):
        super().__init__()
        self.fc = nn.Linear(inp_dim, out_dim)

    def forward(self, vector):
        return self.fc(vector)


class Finetune(nn.Module):
    def __init__(self, input_dim, output_dim, trained_model):
        super().__init__()
        self.model = trained_model
        self.fc = nn.Linear(input_dim, output_dim)

    def forward(self, x, priors):
        return self.fc(self.model(x, priors)[0]).squeeze(1)


def panel(label_scale=1.0):
    rng = np.random.default_rng(0)
    index = pd.MultiIndex.from_product(
        [pd.bdate_range("2020-01-01", "2020-02-14"), [f"S{i:02d}" for i in range(13)]], names=["datetime", "instrument"]
    )
    x = rng.normal(size=(len(index), 5)).astype(np.float32)
    table = pd.DataFrame(x, index=index, columns=[f"f{i}" for i in range(5)])
    table["label"] = (label_scale * (x[:, 0] - x[:, 1] * x[:, 2])).astype(np.float32)
    return PanelDataset(table, label="label", segments=SEGMENTS)


def qlib_fit(data, options, networks):
    """Qlib's loops.

    Returns:
        For pretraining and fine-tuning, by epoch: mean loss while training, then evaluated on train and valid. And the
        weights it ends with.
    """
    (x, y), (x_valid, y_valid) = (
        [torch.from_numpy(np.array(array)) for array in (data.segment(name).x, data.segment(name).y)]
        for name in ("train", "valid")
    )
    make_encoder, make_decoder, make_finetune = networks
    shuffle = np.random.RandomState(options["seed"]).shuffle
    torch.manual_seed(options["seed"])
    d, batch, lr = x.shape[1], options["batch_size"], options.get("lr", 0.01)
    encoder = make_encoder(inp_dim=d, out_dim=options["out_dim"], vbs=options["vbs"], relax=1.3)
    decoder = make_decoder(
        options["out_dim"], d, options["n_shared"], options["n_ind"], options["vbs"], options["n_steps"]
    )
    adam = options.get("optimizer", "adam") == "adam"
    make_optimizer = torch.optim.Adam if adam else torch.optim.SGD
    pretrain_optimizer = make_optimizer([*encoder.parameters(), *decoder.parameters()], lr=lr)
    train_optimizer = make_optimizer(encoder.parameters(), lr=lr)

    def batches(indices):
        for at in range(len(indices))[::batch]:
            if len(indices) - at < batch:
                break
            yield indices[at : at + batch]

    def pretrain_loss(rows, data):
        mask = torch.bernoulli(torch.empty(batch, d).fill_(options.get("ps", 0.3)))
        f = decoder(encoder(data[rows] * (1 - mask), 1 - mask)[0])
        down = torch.sqrt(torch.sum(torch.square(f - torch.mean(f, dim=0)), dim=0))
        return torch.sum(torch.square((data[rows] * mask - f) * mask / down))

    def run(n_epochs, modules, optimizer, loss, sets, *, clip, cumulative, kept):
        history, best, weights, waited = [], math.inf, None, 0
        for _ in range(n_epochs):
            indices = np.arange(len(sets[0][0]))
            shuffle(indices)
            [module.train() for module in modules]
            steps = []
            for rows in batches(indices):
                value = loss(rows, *sets[0])
                optimizer.zero_grad()
                value.backward()
                if clip:
                    torch.nn.utils.clip_grad_value_(modules[0].parameters(), 3.0)
                optimizer.step()
                steps.append(value.item())
            [module.eval() for module in modules]
            with torch.no_grad():
                evaluated = [
                    np.mean([loss(rows, *one).item() for rows in batches(np.arange(len(one[0])))]) for one in sets
                ]
            history.append([np.mean(steps), *evaluated])
            if evaluated[1] < best:
                best, weights = evaluated[1], {name: t.clone() for name, t in kept.state_dict().items()}
                waited = waited if cumulative else 0
            else:
                waited += 1
                if waited >= options.get("early_stop", 20):
                    break
        return history, weights

    pretrain_history, weights = run(
        options["pretrain_n_epochs"],
        [encoder, decoder],
        pretrain_optimizer,
        pretrain_loss,
        [(x,), (x_valid,)],
        clip=False,
        cumulative=True,
        kept=encoder,
    )
    encoder.load_state_dict(weights)
    network = make_finetune(options["out_dim"], 1, encoder)
    history, weights = run(
        options["n_epochs"],
        [network],
        train_optimizer,
        lambda rows, x, y: torch.mean((network(x[rows], torch.ones(batch, d)) - y[rows]) ** 2),
        [(x, y), (x_valid, y_valid)],
        clip=True,
        cumulative=False,
        kept=network,
    )
    return pretrain_history, history, weights


class History(Callback):
    def __init__(self):
        self.records = {}

    def on_train_end(self, state):
        self.records[state.name] = [[r["loss"], r["train"], r["valid"]] for r in state.history]


@pytest.mark.parametrize("drop_tail", [True, False])
@pytest.mark.parametrize(
    ("extra", "label_scale"),
    [
        ({}, 1.0),
        ({"optimizer": "gd", "lr": 0.003}, 300.0),  # gradients beyond the clipping value
        ({"lr": 0.1, "early_stop": 1, "n_epochs": 30, "pretrain_n_epochs": 30}, 1.0),  # stops early
    ],
)
def test_both_loops_are_qlibs(monkeypatch, extra, label_scale, drop_tail):
    networks = (Encoder, Decoder, Finetune)
    for name, network in zip(("TabNet", "TabNetDecoder", "TabNetFinetune"), networks, strict=True):
        monkeypatch.setattr(tabnet, name, network)
    data, options, history, evals = panel(label_scale), {**OPTIONS, **extra}, History(), {}
    assert all(len(data.segment(name).x) % 64 for name in SEGMENTS)
    pretrain_expected, expected, weights = qlib_fit(data, options, networks)
    if "early_stop" in extra:
        assert len(pretrain_expected) < 30
        assert len(expected) < 30
    model = TabNetModel(**options, drop_tail=drop_tail).fit(data, evals, callbacks=[history])
    # Evaluating the tail changes what is evaluated; what is trained, and on which masks, stays (if no epoch is chosen
    # differently: the two cases without early stopping improve throughout).
    columns = slice(None) if drop_tail else slice(0, 1)
    if drop_tail or "early_stop" not in extra:
        np.testing.assert_allclose(
            np.array(history.records["pretrain"])[:, columns], np.array(pretrain_expected)[:, columns], rtol=1e-4
        )
    if drop_tail:
        np.testing.assert_allclose(history.records["finetune"], expected, rtol=1e-4)
        np.testing.assert_allclose(-np.c_[evals["train"], evals["valid"]], np.array(expected)[:, 1:], rtol=1e-4)
        for name, tensor in model.module_.state_dict().items():
            torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-4)


def test_the_real_networks_start_as_qlib_does():
    data, history = panel(), History()
    options = {**OPTIONS, "n_epochs": 1, "pretrain_n_epochs": 1, "optimizer": "gd", "lr": 1e-5}
    pretrain_expected, expected, _ = qlib_fit(
        data, options, (models.TabNet, models.TabNetDecoder, models.TabNetFinetune)
    )
    TabNetModel(**options, drop_tail=True).fit(data, callbacks=[history])
    np.testing.assert_allclose(history.records["pretrain"], pretrain_expected, rtol=1e-2)
    np.testing.assert_allclose(history.records["finetune"], expected, rtol=1e-2)
