"""Drop-in nn.Modules: parameters plus one op call."""

from .ghost_batch_norm import GhostBatchNorm
from .sparsemax import Sparsemax
from .tabnet import GLU, AttentiveTransformer, DecisionStep, FeatureTransformer

__all__ = ["GLU", "AttentiveTransformer", "DecisionStep", "FeatureTransformer", "GhostBatchNorm", "Sparsemax"]
