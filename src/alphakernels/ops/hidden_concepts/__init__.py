from .op import hidden_concepts

__all__ = ["hidden_concepts"]
