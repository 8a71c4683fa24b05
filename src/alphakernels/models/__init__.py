"""Networks: nn.Modules made of `alphakernels.nn`, with the originals' constructors and state_dict names."""

from .encoder import LocalformerNet, TransformerNet
from .gats import GATsNet
from .hist import HISTNet
from .mlp import MLPNet
from .recurrent import ALSTMNet, GRUNet, LSTMNet
from .sfm import SFMNet
from .tabnet import TabNet, TabNetDecoder, TabNetFinetune

__all__ = [
    "ALSTMNet",
    "GATsNet",
    "GRUNet",
    "HISTNet",
    "LSTMNet",
    "LocalformerNet",
    "MLPNet",
    "SFMNet",
    "TabNet",
    "TabNetDecoder",
    "TabNetFinetune",
    "TransformerNet",
]
