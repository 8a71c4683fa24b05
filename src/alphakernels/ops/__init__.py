"""Operators: tensors in, tensors out. Each runs on the fastest kernel there is for its tensors, or on plain PyTorch."""

from . import _library
from .alpha158 import alpha158
from .attention_pool import attention_pool
from .attentive_mask import attentive_mask
from .complete_graph_attention import attention_rows, complete_graph_attention
from .concept_attention import concept_attention
from .ghost_batch_norm import ghost_batch_norm
from .glu_block import glu_block
from .glu_layer import glu_layer
from .hidden_concepts import hidden_concepts
from .linear import linear
from .linear_tanh import linear_tanh
from .local_encoder_layer import local_encoder_layer
from .predefined_concepts import predefined_concepts
from .recurrent import recurrent
from .sfm import fourier_waves, sfm
from .sparsemax import sparsemax

_library.compiled()
_library.tag_compile_caches()

__all__ = [
    "alpha158",
    "attention_pool",
    "attention_rows",
    "attentive_mask",
    "complete_graph_attention",
    "concept_attention",
    "fourier_waves",
    "ghost_batch_norm",
    "glu_block",
    "glu_layer",
    "hidden_concepts",
    "linear",
    "linear_tanh",
    "local_encoder_layer",
    "predefined_concepts",
    "recurrent",
    "sfm",
    "sparsemax",
]
