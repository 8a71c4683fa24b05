from .op import recurrent

__all__ = ["recurrent"]
