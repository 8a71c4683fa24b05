from .op import attention_rows, complete_graph_attention

__all__ = ["attention_rows", "complete_graph_attention"]
