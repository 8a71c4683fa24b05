from .op import sparsemax

__all__ = ["sparsemax"]
