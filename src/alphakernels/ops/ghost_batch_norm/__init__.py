from .op import ghost_batch_norm

__all__ = ["ghost_batch_norm"]
