"""Networks: nn.Modules made of `alphakernels.nn`, with the originals' constructors and state_dict names."""

from .tabnet import TabNet, TabNetDecoder, TabNetFinetune

__all__ = ["TabNet", "TabNetDecoder", "TabNetFinetune"]
