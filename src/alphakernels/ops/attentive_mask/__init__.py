from .op import attentive_mask

__all__ = ["attentive_mask"]
