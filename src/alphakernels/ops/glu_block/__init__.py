from .op import glu_block

__all__ = ["glu_block"]
