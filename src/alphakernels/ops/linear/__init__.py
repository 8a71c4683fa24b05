from .op import linear

__all__ = ["linear"]
