from .op import local_encoder_layer

__all__ = ["local_encoder_layer"]
