"""The bridge to Qlib: its models by their own names, on the kernels of this package.

In a Qlib config only `module_path` changes, to `alphakernels.qlib`; or nothing does, after `patch()` (`python -m alphakernels qrun
workflow.yaml` patches and runs). A class serves the static and the time-series variant of its model, by the dataset it is given:
DatasetH or TSDatasetH.

Needs Qlib: pip install "alphakernels[qlib]".
"""

from __future__ import annotations

from ._install import require_qlib

require_qlib()

from ._models import *  # noqa: E402, F403
from ._models import __all__ as _models  # noqa: E402
from ._patch import patch, patched, unpatch  # noqa: E402

__all__ = [*_models, "patch", "patched", "unpatch"]


def __getattr__(name: str):
    # Qlib looks a config's class up here.
    from alphakernels._near import hint

    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    raise AttributeError(f"{__name__} has no class {name!r}{hint(name, _models)}")
