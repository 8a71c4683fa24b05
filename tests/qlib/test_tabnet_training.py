"""Our TabNetModel against Qlib's TabnetModel on the same frame: loss curves, predictions, checkpoints, and Qlib's quirks.

TabNet's training multiplies what differs in the last bit by 10 to 1000 a step (some twenty batch norms in a row; supports of
sparsemax that flip), in Qlib itself as here. So the curves are compared in float64 to 1e-4, where nothing else can make them
differ, at a step size that leaves Qlib itself reproducible to that; and otherwise (float32, larger steps after pretraining) to
1e-4 or a few times what a change of Qlib's initial weights in their last bit makes of its own curve.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch

from alphakernels import models
from alphakernels.data import PanelDataset
from alphakernels.estimators import TabNetModel
from alphakernels.training import Callback, load_tensors

qlib = pytest.importorskip("qlib.contrib.model.pytorch_tabnet")

FEATURES = 20
SEGMENTS = {
    "train": ("2020-01-01", "2020-05-14"),
    "valid": ("2020-05-15", "2020-07-14"),
    "test": ("2020-07-15", "2020-07-31"),
}
OPTIONS = {
    "d_feat": FEATURES, "out_dim": 16, "batch_size": 1024, "vbs": 256, "n_epochs": 3, "pretrain_n_epochs": 2, "seed": 2,
    "GPU": -1,
}  # fmt: skip
CURVE = 1e-4
# How much further from Qlib we may be than Qlib with its initial weights changed in the last bit.
NUDGES, FACTOR = 3, 5.0


def panel(missing=0.0):
    """Some 3,000 training rows of a product of two features among twenty, in Qlib's two-level columns."""
    rng = np.random.default_rng(0)
    days = pd.bdate_range("2020-01-01", "2020-07-31")
    index = pd.MultiIndex.from_product([days, [f"S{i:02d}" for i in range(32)]], names=["datetime", "instrument"])
    x = rng.normal(size=(len(index), FEATURES)).astype(np.float32)
    y = (x[:, 0] - x[:, 1] * x[:, 2] + 0.3 * rng.normal(size=len(index))).astype(np.float32)
    x[rng.random(x.shape) < missing] = np.nan
    columns = [("feature", f"f{i}") for i in range(FEATURES)] + [("label", "label")]
    return pd.DataFrame(np.c_[x, y], index=index, columns=pd.MultiIndex.from_tuples(columns))


class QlibDataset:
    """What Qlib's model asks of a DatasetH."""

    def __init__(self, frame):
        self.frame = frame

    def prepare(self, segments, col_set, data_key):
        if not isinstance(segments, str):
            return [self.prepare(segment, col_set, data_key) for segment in segments]
        start, end = SEGMENTS[{"pretrain": "train", "pretrain_validation": "valid"}.get(segments, segments)]
        return self.frame.loc[start:end, col_set].copy()


class Recorded(qlib.TabnetModel):
    """Qlib's model; it also keeps the losses of its training steps and of its pretraining.

    Args:
        frozen: the biases in front of a norm get no gradient, instead of rounding noise.
        nudge: seed of a change of the encoder's initial weights by one unit in the last place; 0 leaves them.
    """

    def __init__(self, frozen=False, nudge=0, **options):
        super().__init__(**options)
        self.steps, self.pretraining = [], []
        self.biases = {
            id(block.fc.bias): block.fc.bias
            for network in (self.tabnet_model, self.tabnet_decoder)
            for block in network.modules()
            if isinstance(block, (qlib.GLU, qlib.AttentionTransformer))
        }
        if frozen:
            for bias in self.biases.values():
                bias.register_hook(torch.zeros_like)
        if nudge:
            generator = torch.Generator().manual_seed(nudge)
            with torch.no_grad():
                for p in self.tabnet_model.parameters():
                    sign = 2 * torch.randint(2, p.shape, generator=generator) - 1
                    p.mul_(1 + sign * torch.finfo(p.dtype).eps)

    def loss_fn(self, pred, label):
        loss = super().loss_fn(pred, label)
        if self.tabnet_model.training:
            self.steps.append(loss.item())
        return loss

    def pretrain_test_epoch(self, x_train):
        self.pretraining.append(super().pretrain_test_epoch(x_train))
        return self.pretraining[-1]


class Watch(Callback):
    """The same of ours."""

    def __init__(self):
        self.steps, self.pretraining = [], []

    def on_batch_end(self, state):
        if state.name == "finetune":
            self.steps.append(float(state.loss))

    def on_epoch_end(self, state):
        if state.name == "pretrain":
            self.pretraining += [state.record["train"], state.record["valid"]]


@dataclass
class Fitted:
    """A fitted model and its losses: by step of fine-tuning, by epoch evaluated on train then valid, and of pretraining."""

    model: object
    steps: np.ndarray
    train: np.ndarray
    valid: np.ndarray
    pretraining: np.ndarray

    @property
    def curve(self):
        return np.concatenate([self.train, self.valid])


def fit_qlib(frame, folder, options, **kwargs):
    folder.mkdir(exist_ok=True)
    model, scores = Recorded(**options, **kwargs, pretrain_file=str(folder / "encoder.pt")), {}
    model.fit(QlibDataset(frame), scores, save_path=str(folder / "model.pt"))
    return Fitted(model, *map(np.array, (model.steps, -np.array(scores["train"]), -np.array(scores["valid"]), model.pretraining)))


def fit_ours(frame, options, **kwargs):
    watch, scores = Watch(), {}
    model = TabNetModel(**{"drop_tail": True, "progress": False, **options, **kwargs})
    model.fit(PanelDataset(frame, segments=SEGMENTS), scores, callbacks=[watch])
    return Fitted(model, *map(np.array, (watch.steps, -np.array(scores["train"]), -np.array(scores["valid"]), watch.pretraining)))


def distance(one, other):
    assert one.shape == other.shape
    return np.abs(one / other - 1).max()


@pytest.mark.parametrize(("optimizer", "lr"), [("adam", 0.01), ("adam", 0.001), ("gd", 0.01)])
def test_loss_curves(tmp_path, in_float64, optimizer, lr):
    frame, options = panel(), {**OPTIONS, "optimizer": optimizer, "lr": lr, "pretrain": False}
    with in_float64():
        theirs, ours = fit_qlib(frame, tmp_path, options), fit_ours(frame, options)
        # Without the rounding noise in the gradients of the biases, which Adam would scale up.
        frozen = fit_qlib(frame, tmp_path, options, frozen=True)
        ours_scores = ours.model.predict(PanelDataset(frame, segments=SEGMENTS))
        their_scores = theirs.model.predict(QlibDataset(frame))
    assert len(theirs.curve) == 6
    assert len(theirs.steps) == 9
    for expected in (theirs, frozen):
        assert distance(ours.steps, expected.steps) < CURVE
        assert distance(ours.curve, expected.curve) < CURVE
    # The first epoch, before rounding has grown.
    assert distance(ours.steps[:3], theirs.steps[:3]) < 1e-8
    assert ours_scores.index.equals(their_scores.index)
    np.testing.assert_allclose(ours_scores, their_scores, rtol=0, atol=1e-3 * their_scores.std())


@pytest.mark.parametrize("optimizer", ["adam", "gd"])
def test_loss_curves_with_pretraining(tmp_path, in_float64, optimizer):
    frame, options = panel(), {**OPTIONS, "optimizer": optimizer, "lr": 0.001}
    with in_float64():
        theirs, ours = fit_qlib(frame, tmp_path, options), fit_ours(frame, options)
    assert len(theirs.pretraining) == 4
    assert distance(ours.pretraining, theirs.pretraining) < 1e-5
    assert distance(ours.steps[:3], theirs.steps[:3]) < 1e-6
    assert distance(ours.curve, theirs.curve) < CURVE


@pytest.mark.parametrize(
    ("optimizer", "pretrain", "exact"),
    [
        ("adam", False, False),
        ("adam", True, False),
        ("gd", False, False),
        ("gd", True, False),
        ("adam", True, True),  # Qlib's own optimizer and step size: with pretraining, float64 is not enough for 1e-4
    ],
)
def test_curves_are_as_near_as_qlib_is_to_itself(tmp_path, in_float64, optimizer, pretrain, exact):
    frame, options = panel(), {**OPTIONS, "optimizer": optimizer, "pretrain": pretrain}
    with in_float64(exact):
        theirs, ours = fit_qlib(frame, tmp_path, options), fit_ours(frame, options)
        nudged = [fit_qlib(frame, tmp_path, options, nudge=seed) for seed in range(1, NUDGES + 1)]
    for what in ("steps", "curve") + (("pretraining",) if pretrain else ()):
        expected = getattr(theirs, what)
        itself = max(distance(getattr(one, what), expected) for one in nudged)
        assert distance(getattr(ours, what), expected) < max(CURVE, FACTOR * itself), what
    if not pretrain:
        assert distance(ours.steps[:1], theirs.steps[:1]) < 1e-6
    # The head is drawn after the last mask of pretraining and never trained: both random streams ran alike.
    for name in ("fc.weight", "fc.bias"):
        assert torch.equal(ours.model.module_.state_dict()[name], theirs.model.tabnet_model.state_dict()[name])


def test_adam_moves_qlibs_cancelled_biases_along_rounding_noise(tmp_path):
    frame, options = panel(), {**OPTIONS, "pretrain": False}
    start = Recorded(**options, pretrain_file=str(tmp_path / "encoder.pt"))
    theirs, ours = fit_qlib(frame, tmp_path, options).model.tabnet_model, fit_ours(frame, options).model.module_
    frozen = fit_qlib(frame, tmp_path, options, frozen=True).model.tabnet_model
    names = [name for name, p in start.tabnet_model.named_parameters() if id(p) in start.biases]
    assert len(names) == 2 + 5 * 2 + 4  # the shared layers, the transformers' own, the attention's

    def moved(network, name):
        return (network.model.state_dict()[name] - start.tabnet_model.state_dict()[name]).abs().max().item()

    assert max(moved(theirs, name) for name in names) > options.get("lr", 0.01) / 2
    assert all(moved(network, name) == 0 for network in (frozen, ours) for name in names)


def test_these_biases_matter_to_evaluation_only(in_float64):
    # Why the noise shows in Qlib's evaluated curve and not in its training: running means lag behind the biases.
    with in_float64():
        network = qlib.TabNet(FEATURES, 4, vbs=32)
        x, priors = torch.randn(64, FEATURES), torch.ones(64, FEATURES)

        def outputs():
            with torch.no_grad():
                state = {key: t.clone() for key, t in network.state_dict().items()}
                training = network.train()(x, priors)[0]
                network.load_state_dict(state)
                return training, network.eval()(x, priors)[0]

        before = outputs()
        with torch.no_grad():
            for block in network.modules():
                if isinstance(block, (qlib.GLU, qlib.AttentionTransformer)):
                    block.fc.bias += 0.05 * torch.randn_like(block.fc.bias)
        after = outputs()
    torch.testing.assert_close(after[0], before[0], rtol=1e-8, atol=1e-8)
    assert (after[1] - before[1]).abs().max() > 1e-3


@pytest.mark.parametrize("pretrain", [False, True])
def test_missing_features_are_filled_as_qlib_does(tmp_path, in_float64, pretrain):
    options = {**OPTIONS, "optimizer": "gd", "lr": 0.001, "n_epochs": 1, "pretrain_n_epochs": 1, "pretrain": pretrain}
    frame = panel(missing=0.03)
    with in_float64():
        theirs, ours = fit_qlib(frame, tmp_path, options), fit_ours(frame, options, missing="fill")
        scores = ours.model.predict(PanelDataset(frame, segments=SEGMENTS))
        expected = theirs.model.predict(QlibDataset(frame))
    # A column's mean is rounded to float32 in another order, and pretraining enlarges what differs.
    assert distance(ours.curve, theirs.curve) < CURVE
    if pretrain:
        assert distance(ours.pretraining, theirs.pretraining) < 1e-3
    else:
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-3 * expected.std())


def test_our_networks_in_qlibs_model(tmp_path, in_float64, monkeypatch):
    frame, options = panel(), {**OPTIONS, "pretrain": False, "optimizer": "gd"}
    with in_float64():
        expected = fit_qlib(frame, tmp_path, options)
        monkeypatch.setattr(qlib, "TabNet", models.TabNet)
        monkeypatch.setattr(qlib, "TabNet_Decoder", models.TabNetDecoder)
        monkeypatch.setattr(qlib, "FinetuneModel", models.TabNetFinetune)
        got = fit_qlib(frame, tmp_path, options)
        assert type(got.model.tabnet_model.model) is models.TabNet
        assert distance(got.curve, expected.curve) < CURVE


@pytest.fixture
def short():
    return {**OPTIONS, "n_epochs": 1, "pretrain_n_epochs": 1, "n_d": 8, "n_a": 4, "n_shared": 1, "n_ind": 1, "n_steps": 2}


def test_qlibs_checkpoints_load_in_ours(tmp_path, short):
    frame = panel()
    theirs = fit_qlib(frame, tmp_path, short).model
    for d_feat in (FEATURES, None):
        ours = TabNetModel(**{**short, "d_feat": d_feat}).load_qlib_checkpoint(tmp_path / "model.pt")
        scores, expected = ours.predict(PanelDataset(frame, segments=SEGMENTS)), theirs.predict(QlibDataset(frame))
        assert scores.index.equals(expected.index)
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
    encoder = models.TabNet(FEATURES, short["out_dim"], relax=1.3, vbs=256)
    encoder.load_state_dict(torch.load(tmp_path / "encoder.pt", weights_only=True))


def test_our_checkpoints_load_in_qlibs(tmp_path, short):
    frame = panel()
    ours = TabNetModel(**short, progress=False, pretrain_file=tmp_path / "encoder.safetensors")
    expected = ours.fit(PanelDataset(frame, segments=SEGMENTS)).predict(PanelDataset(frame, segments=SEGMENTS))
    ours.save(tmp_path / "ours.safetensors")
    torch.save(ours.module_.state_dict(), tmp_path / "ours.pt")
    for state in (torch.load(tmp_path / "ours.pt"), load_tensors(tmp_path / "ours.safetensors")[0]):
        theirs = qlib.TabnetModel(**{**short, "seed": 77}, pretrain_file=str(tmp_path / "encoder.pt"))
        theirs.tabnet_model.load_state_dict(load_tensors(tmp_path / "encoder.safetensors")[0])
        theirs.tabnet_model = qlib.FinetuneModel(short["out_dim"], 1, theirs.tabnet_model)
        theirs.tabnet_model.load_state_dict(state)
        theirs.fitted = True
        scores = theirs.predict(QlibDataset(frame))
        assert scores.index.equals(expected.index)
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


def test_sizes_that_do_not_reach_the_encoder(tmp_path, short):
    theirs, ours = fit_qlib(panel(), tmp_path, short).model, fit_ours(panel(), short).model
    expected = {key: t.shape for key, t in theirs.tabnet_model.state_dict().items()}
    assert {key: t.shape for key, t in ours.module_.state_dict().items()} == expected
    assert expected["model.fc.weight"] == (16, 64)  # and not n_d = 8


def test_the_head_is_never_trained(tmp_path, short):
    frame, options = panel(), {**short, "pretrain": False}
    one, three = (fit_ours(frame, {**options, "n_epochs": n}, drop_tail=False).model.module_.fc for n in (1, 3))
    theirs = fit_qlib(frame, tmp_path, options).model.tabnet_model.fc
    assert torch.equal(one.weight, three.weight)
    assert torch.equal(one.weight, theirs.weight)


@pytest.mark.parametrize("pretrain", [False, True])
def test_fitting_twice_fails_in_qlib_and_works_here(tmp_path, short, pretrain):
    frame, options = panel(), {**short, "pretrain": pretrain}
    theirs = fit_qlib(frame, tmp_path, options).model
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        theirs.fit(QlibDataset(frame), {}, save_path=str(tmp_path / "again.pt"))
    ours, data = fit_ours(frame, options).model, PanelDataset(frame, segments=SEGMENTS)
    first = ours.predict(data)
    pd.testing.assert_series_equal(ours.fit(data).predict(data), first, check_exact=True)
