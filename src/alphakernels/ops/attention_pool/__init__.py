from .op import attention_pool

__all__ = ["attention_pool"]
