"""Which classes have a kernel here. They are known by name, so that nothing is imported that the model's owner did not import.

The inputs a rule gives are for verifying a swap: small, but with more than one virtual batch where that is small too.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ._swapped import Swapped

_ROWS, _MOST_ROWS = 37, 600

Random = Callable[..., torch.Tensor]  # random(*sizes): normal, on the module's device in its dtype


@dataclass(frozen=True)
class Rule:
    """How a class is swapped.

    Attributes:
        mixin: "file:class" in this package.
        example: arguments of a forward call.
    """

    mixin: str
    example: Callable[[Any, Random], tuple[Any, ...]]

    def load(self) -> type[Swapped]:
        file, name = self.mixin.split(":")
        return getattr(importlib.import_module(f".{file}", __package__), name)


def _rows(virtual_batch_size: int) -> int:
    """Two virtual batches, the second one short of a row, where that is not many."""
    rows = 2 * virtual_batch_size - 1
    return rows if 4 <= rows <= _MOST_ROWS else _ROWS


def _glu(layer: Any, random: Random, vbs: int) -> tuple[Any, ...]:
    return (random(_rows(vbs), layer.fc.in_features),)


def _prior(random: Random, rows: int, features: int) -> torch.Tensor:
    return random(rows, features).abs()


def _qlib_step(step: Any, random: Random) -> tuple[Any, ...]:
    attention = step.atten_tran
    rows, features = _rows(attention.bn.vbs), attention.fc.out_features
    return random(rows, features), random(rows, attention.fc.in_features), _prior(random, rows, features)


def _qlib_attention(module: Any, random: Random) -> tuple[Any, ...]:
    rows = _rows(module.bn.vbs)
    return random(rows, module.fc.in_features), _prior(random, rows, module.fc.out_features)


def _qlib_features(module: Any, random: Random) -> tuple[Any, ...]:
    first = [*(module.shared or ()), *module.independ][0]
    return _glu(first, random, first.bn.vbs)


def _qlib_tabnet(module: Any, random: Random) -> tuple[Any, ...]:
    rows, features = _rows(_qlib_vbs(module)), module.bn.num_features
    return random(rows, features), _prior(random, rows, features)


def _qlib_vbs(module: nn.Module) -> int:
    return next((m.vbs for m in module.modules() if hasattr(m, "vbs")), _ROWS)


def _scores(module: Any, random: Random) -> tuple[Any, ...]:
    return (random(*(7,) * max(2, module.dim + 1, -module.dim)),)


def _sequence(module: Any, random: Random) -> tuple[Any, ...]:
    return (random(*((5, 9) if module.batch_first else (9, 5)), module.input_size),)


def _encoder_layer(layer: Any, random: Random) -> tuple[Any, ...]:
    return (random(*((3, 9) if layer.self_attn.batch_first else (9, 3)), layer.self_attn.embed_dim),)


def _localformer(encoder: Any, random: Random) -> tuple[Any, ...]:
    return *_encoder_layer(encoder.layers[0], random), None


_STOCKS, _DAYS, _CONCEPTS = 7, 5, 3


def _network_rows(module: Any, random: Random) -> tuple[Any, ...]:
    return (random(_STOCKS, _network_features(module) * _DAYS),)


def _network_windows(module: Any, random: Random) -> tuple[Any, ...]:
    return (random(_STOCKS, _DAYS, _network_features(module)),)


def _network_features(module: Any) -> int:
    return next(getattr(module, name) for name in ("d_feat", "input_size", "input_dim") if hasattr(module, name))


def _hist(module: Any, random: Random) -> tuple[Any, ...]:
    return *_network_rows(module, random), (random(_STOCKS, _CONCEPTS) > 0).double()


_QLIB = "qlib.contrib.model.pytorch_tabnet"
_PYTORCH = "qlib.contrib.model.pytorch_"
_TABNET = "pytorch_tabnet.tab_network"

RULES: dict[str, Rule] = {
    f"{_QLIB}.GBN": Rule("_qlib_tabnet:GBN", lambda m, random: (random(_rows(m.vbs), m.bn.num_features),)),
    f"{_QLIB}.GLU": Rule("_qlib_tabnet:GLU", lambda m, random: _glu(m, random, m.bn.vbs)),
    f"{_QLIB}.FeatureTransformer": Rule("_qlib_tabnet:FeatureTransformer", _qlib_features),
    f"{_QLIB}.AttentionTransformer": Rule("_qlib_tabnet:AttentionTransformer", _qlib_attention),
    f"{_QLIB}.DecisionStep": Rule("_qlib_tabnet:DecisionStep", _qlib_step),
    f"{_QLIB}.TabNet": Rule("_qlib_tabnet:TabNet", _qlib_tabnet),
    f"{_TABNET}.GBN": Rule("_pytorch_tabnet:GBN", lambda m, random: (random(_rows(m.virtual_batch_size), m.input_dim),)),
    f"{_TABNET}.GLU_Layer": Rule("_pytorch_tabnet:GLULayer", lambda m, random: _glu(m, random, m.bn.virtual_batch_size)),
    f"{_TABNET}.GLU_Block": Rule(
        "_pytorch_tabnet:GLUBlock", lambda m, random: _glu(m.glu_layers[0], random, m.glu_layers[0].bn.virtual_batch_size)
    ),
    f"{_TABNET}.AttentiveTransformer": Rule(
        "_pytorch_tabnet:AttentiveTransformer",
        lambda m, random: (
            _prior(random, _rows(m.bn.virtual_batch_size), m.fc.out_features),
            random(_rows(m.bn.virtual_batch_size), m.fc.in_features),
        ),
    ),
    f"{_TABNET}.TabNetEncoder": Rule("_pytorch_tabnet:TabNetEncoder", lambda m, random: (random(_rows(m.virtual_batch_size), m.input_dim),)),
    "pytorch_tabnet.sparsemax.Sparsemax": Rule("_sparsemax:Sparsemax", _scores),
    "entmax.activations.Sparsemax": Rule("_sparsemax:Sparsemax", _scores),
    "torch.nn.modules.rnn.GRU": Rule("_torch_layers:GRU", _sequence),
    "torch.nn.modules.rnn.LSTM": Rule("_torch_layers:LSTM", _sequence),
    "torch.nn.modules.transformer.TransformerEncoderLayer": Rule("_torch_layers:TransformerEncoderLayer", _encoder_layer),
    f"{_PYTORCH}localformer.LocalformerEncoder": Rule("_qlib_networks:LocalformerEncoder", _localformer),
    f"{_PYTORCH}localformer_ts.LocalformerEncoder": Rule("_qlib_networks:LocalformerEncoder", _localformer),
    f"{_PYTORCH}gru.GRUModel": Rule("_qlib_networks:LastState", _network_rows),
    f"{_PYTORCH}gru_ts.GRUModel": Rule("_qlib_networks:LastStateOfWindows", _network_windows),
    f"{_PYTORCH}lstm.LSTMModel": Rule("_qlib_networks:LastState", _network_rows),
    f"{_PYTORCH}lstm_ts.LSTMModel": Rule("_qlib_networks:LastStateOfWindows", _network_windows),
    f"{_PYTORCH}alstm.ALSTMModel": Rule("_qlib_networks:ALSTMModel", _network_rows),
    f"{_PYTORCH}alstm_ts.ALSTMModel": Rule("_qlib_networks:ALSTMModelOfWindows", _network_windows),
    f"{_PYTORCH}gats.GATModel": Rule("_qlib_networks:GATModel", _network_rows),
    f"{_PYTORCH}gats_ts.GATModel": Rule("_qlib_networks:GATModelOfWindows", _network_windows),
    f"{_PYTORCH}hist.HISTModel": Rule("_qlib_networks:HISTModel", _hist),
    f"{_PYTORCH}sfm.SFM_Model": Rule("_qlib_networks:SFMModel", _network_rows),
}


def full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def find(module: nn.Module) -> tuple[str, Rule] | None:
    """The rule for a module's class or for one it inherits from, with that class's name; None for the modules of this package."""
    if type(module).__module__.startswith("alphakernels."):
        return None
    for cls in type(module).__mro__:
        name = full_name(cls)
        if name in RULES:
            return name, RULES[name]
    return None
