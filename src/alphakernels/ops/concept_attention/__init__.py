from .op import concept_attention

__all__ = ["concept_attention"]
