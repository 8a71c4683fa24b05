"""What to say where Qlib is missing or does not work."""

from __future__ import annotations


def require_qlib() -> None:
    """Raises ImportError with the remedy if Qlib cannot be imported."""
    try:
        import qlib  # noqa: F401
    except ImportError as error:
        raise ImportError(f'alphakernels.qlib needs Qlib, which cannot be imported ({error}); pip install "alphakernels[qlib]"') from error
