"""What GeneralPTNN and DNNModelPytorch share: a network given by class or import path, and training it on several devices.

Qlib's own networks are answered with ours, by their import path, whether Qlib is installed or not.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from alphakernels import models
from alphakernels._near import check_arguments, hint
from alphakernels.data import Batch
from alphakernels.estimators._base import Estimator, FitContext
from alphakernels.estimators._device import resolve_device
from alphakernels.estimators._qlib_checkpoint import read_state_dict
from alphakernels.training import load_module_state

logger = logging.getLogger("alphakernels.estimators")

_QLIB = "qlib.contrib.model.pytorch_"
# Qlib's networks by import path, and ours that takes their place.
QLIB_NETWORKS: dict[str, str] = {f"{_QLIB}nn.Net": "MLPNet", f"{_QLIB}sfm.SFM_Model": "SFMNet"} | {
    f"{_QLIB}{file}{ts}.{cls}": ours
    for file, cls, ours in (
        ("gru", "GRUModel", "GRUNet"),
        ("lstm", "LSTMModel", "LSTMNet"),
        ("alstm", "ALSTMModel", "ALSTMNet"),
        ("transformer", "Transformer", "TransformerNet"),
        ("localformer", "Transformer", "LocalformerNet"),
        ("gats", "GATModel", "GATsNet"),
    )
    for ts in ("", "_ts")
}


def resolve_network(uri: str | type[nn.Module]) -> type[nn.Module]:
    """The class of a network, from itself or from its import path; importing runs the module it is in, nothing else.

    Raises:
        ValueError: no such module or class (the nearest is named), or not an nn.Module.
    """
    if isinstance(uri, str):
        ours = QLIB_NETWORKS.get(uri)
        found = getattr(models, ours) if ours in models.__all__ else _import(uri)
    else:
        found = uri
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        raise ValueError(f"pt_model_uri must be a subclass of torch.nn.Module or the import path of one, got {uri!r}")
    return found


def _import(uri: str) -> Any:
    module_name, _, name = uri.rpartition(".")
    if not module_name:
        raise ValueError(f"pt_model_uri must be an import path such as 'package.module.Class', got {uri!r}")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"pt_model_uri: {uri!r} cannot be imported: {error}") from error
    if not hasattr(module, name):
        classes = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, nn.Module)]
        raise ValueError(f"pt_model_uri: {module_name} has no {name!r}{hint(name, classes) if classes else ''}")
    return getattr(module, name)


def import_path(value: Any) -> Any:
    """A class or function by its import path, for a checkpoint; everything else as it is."""
    named = isinstance(value, type) or callable(value) and not isinstance(value, nn.Module)
    return f"{value.__module__}.{value.__qualname__}" if named else value


class AnyNetworkEstimator(Estimator):
    """Base of the estimators whose network the caller names.

    `pt_model_uri` may be a class; `pt_model_kwargs` are its keyword arguments; None are Qlib's defaults for Qlib's default
    network, and none for another.
    """

    _takes_windows = True
    _run_parameters = Estimator._run_parameters | {"n_jobs", "data_parall"}
    _default: ClassVar[tuple[str, Mapping[str, Any]]]

    pt_model_uri: str | type[nn.Module]
    pt_model_kwargs: Mapping[str, Any] | None
    data_parall: bool

    def _check(self, **allowed: tuple[Any, ...]) -> None:
        owner = type(self).__name__
        for name, values in allowed.items():
            value = getattr(self, name)
            if (str(value).lower() if name == "optimizer" else value) not in values:
                raise ValueError(f"{owner}: {name} must be one of {', '.join(map(repr, values))}, got {value!r}")
        check_arguments(f"{owner}: pt_model_kwargs", resolve_network(self.pt_model_uri), self._kwargs())

    def _kwargs(self) -> Mapping[str, Any]:
        if self.pt_model_kwargs is not None:
            return self.pt_model_kwargs
        uri, kwargs = self._default
        return kwargs if self.pt_model_uri == uri else {}

    def _network(self, n_features: int) -> nn.Module:
        network = resolve_network(self.pt_model_uri)(**self._kwargs())
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in network.parameters()):  # torch's lazy modules, of rows
            with torch.no_grad():
                network.eval()(torch.zeros(2, n_features))
            network.train()
        return network

    def _scores(self, module: nn.Module, batch: Batch) -> Tensor:
        return self._outputs(module, batch.x).reshape(len(batch.rows))

    def _outputs(self, module: nn.Module, x: Tensor) -> Tensor:
        """The network's outputs, [B], [B, 1] or, of one row, whatever it squeezes them to.

        Raises:
            ValueError: the network fails on features of this shape, or gives something else than one number a row.
        """
        try:
            out = module(x)
        except RuntimeError as error:
            raise ValueError(
                f"{type(self).__name__}: the network {import_path(type(module))} fails on features of shape {list(x.shape)}: {error}"
            ) from error
        if not isinstance(out, Tensor) or out.numel() != len(x):
            got = f"shape {list(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f"{type(self).__name__}: the network {import_path(type(module))} must give one number a row, "
                f"[{len(x)}] or [{len(x)}, 1], got {got}"
            )
        return out

    def _distributed(self, context: FitContext, network: nn.Module) -> tuple[nn.Module, torch.device]:
        """The network on its device, wrapped in DistributedDataParallel where several processes train."""
        device = context.device
        if not self.data_parall:
            return network.to(device), device
        rank, ranks = world()
        if ranks == 1:
            if torch.cuda.device_count() > 1:
                logger.warning(
                    "%s: data_parall=True trains on one device, because one process runs: start one for each of the %d GPUs with "
                    "torchrun --nproc-per-node %d and call torch.distributed.init_process_group first",
                    type(self).__name__,
                    torch.cuda.device_count(),
                    torch.cuda.device_count(),
                )
            return network.to(device), device
        if self.batch_size < 2 * ranks:
            raise ValueError(f"{type(self).__name__}: batch_size must be at least 2 for each of the {ranks} processes, got {self.batch_size}")
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank % torch.cuda.device_count())))
        return DistributedDataParallel(network.to(device)), device

    def load_qlib_checkpoint(self, path: str | os.PathLike[str], n_features: int = 0) -> AnyNetworkEstimator:
        """Takes the weights of Qlib's fitted model, from the state dict its `fit` saved with torch.save.

        Args:
            n_features: features of the datasets to predict on, which such a file does not tell.

        Raises:
            FileNotFoundError: no such file.
            CheckpointError: not a state dict that can be read without running code, or of another network.
        """
        state = read_state_dict(path)
        with torch.random.fork_rng(devices=[]):
            network = self._network(n_features)
        load_module_state(network, state, source=f"checkpoint {os.fspath(path)}", saved_class=f"Qlib's {type(self).__name__}")
        self._keep(network.to(resolve_device(self.GPU)), None, n_features)
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """As `Estimator.save`; of several processes the first one writes."""
        if not self.data_parall or world()[0] == 0:
            super().save(path)


def world() -> tuple[int, int]:
    """(number of this process, number of processes) of torch.distributed; (0, 1) without it."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)


def my_share(data_parall: bool) -> tuple[slice, int]:
    """Which rows of a batch this process takes, and the number of processes."""
    rank, ranks = world() if data_parall else (0, 1)
    return slice(rank, None, ranks), ranks
