from .op import glu_layer

__all__ = ["glu_layer"]
