from .op import linear_tanh

__all__ = ["linear_tanh"]
