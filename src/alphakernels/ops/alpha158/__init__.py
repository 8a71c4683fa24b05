from .op import ALPHA158, FIELDS, alpha158

__all__ = ["ALPHA158", "FIELDS", "alpha158"]
