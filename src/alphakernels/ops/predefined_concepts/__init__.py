from .op import predefined_concepts

__all__ = ["predefined_concepts"]
