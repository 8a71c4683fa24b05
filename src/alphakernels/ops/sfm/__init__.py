from .op import fourier_waves, sfm

__all__ = ["fourier_waves", "sfm"]
