"""Drop-in nn.Modules: parameters plus one op call."""

from .attention_pool import AttentionPool
from .encoder import LocalformerEncoder, LocalformerEncoderLayer, TransformerEncoderLayer
from .ghost_batch_norm import GhostBatchNorm
from .linear import Linear, LinearTanh
from .recurrent import GRU, LSTM
from .sfm import SFM
from .sparsemax import Sparsemax
from .tabnet import GLU, AttentiveTransformer, DecisionStep, FeatureTransformer

__all__ = [
    "GLU",
    "GRU",
    "LSTM",
    "SFM",
    "AttentionPool",
    "AttentiveTransformer",
    "DecisionStep",
    "FeatureTransformer",
    "GhostBatchNorm",
    "Linear",
    "LinearTanh",
    "LocalformerEncoder",
    "LocalformerEncoderLayer",
    "Sparsemax",
    "TransformerEncoderLayer",
]
