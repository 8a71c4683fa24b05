"""The model and dataset sections of a Qlib workflow, as `alphakernels train` takes them. Qlib is not needed.

What they name must exist here: the models of `MODELS`, the handlers Alpha360 and Alpha158 with the processors of `PROCESSORS` (and
FilterCol) and a forward return as the label, DatasetH and TSDatasetH. Everything else that they name is listed by name, all at once.
The other sections (where Qlib's data lies, what it records) have no meaning without Qlib.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alphakernels import estimators
from alphakernels._near import check_arguments, hint
from alphakernels.estimators import Estimator

# Qlib's classes (and of the same name in alphakernels.qlib), and our estimators.
MODELS = {
    "TabnetModel": "TabNetModel",
    "GRU": "GRUModel",
    "LSTM": "LSTMModel",
    "ALSTM": "ALSTMModel",
    "LocalformerModel": "LocalformerModel",
    "TransformerModel": "TransformerModel",
    "GATs": "GATsModel",
    "HIST": "HISTModel",
    "SFM": "SFMModel",
    "GeneralPTNN": "GeneralPTNN",
    "DNNModelPytorch": "DNNModelPytorch",
}
DATASETS = ("DatasetH", "TSDatasetH")
# Alpha360's fields, in its order.
ALPHA360 = ("close", "open", "high", "low", "vwap", "volume")
# What a handler means for `panel_from_table`.
HANDLERS: dict[str, dict[str, Any]] = {"Alpha360": {"fields": list(ALPHA360), "lags": 60}, "Alpha158": {"alpha158": True}}
# What a processor means for `panel_from_table`. Rows with gaps in their features are left out there, rows without label skipped.
PROCESSORS: dict[tuple[str, str | None], dict[str, str]] = {
    ("RobustZScoreNorm", "feature"): {"feature_norm": "robust_zscore"},
    ("CSRankNorm", "label"): {"label_norm": "rank"},
    ("CSZScoreNorm", "label"): {"label_norm": "zscore"},
    ("Fillna", None): {},
    ("DropnaLabel", None): {},
    ("DropnaProcessor", None): {},
    ("ProcessInf", None): {},
}
_RETURN = re.compile(r"Ref\(\$close,-(\d+)\)/(?:Ref\(\$close,-(\d+)\)|\$close)-1")


@dataclass(frozen=True)
class Plan:
    """What a workflow asks for: an estimator with its arguments, the options of `panel_from_table`, days a window or None."""

    estimator: type[Estimator]
    arguments: dict[str, Any]
    table: dict[str, Any]
    step_len: int | None


def is_qlib(content: Any) -> bool:
    """Whether a YAML file's content is a Qlib workflow."""
    return isinstance(content, Mapping) and isinstance(content.get("task"), Mapping)


def plan(content: Mapping[str, Any], source: str) -> Plan:
    """Reads the sections task.model and task.dataset.

    Args:
        source: the file, for messages.

    Raises:
        ValueError: a missing section, or names of what does not exist here, all of them.
        TypeError: a wrong argument of the model; the nearest right one is named.
    """
    task, unknown = content["task"], []
    model, dataset = (_section(task, name, source) for name in ("model", "dataset"))
    estimator = getattr(estimators, MODELS.get(model["class"], ""), None)
    if estimator is None:
        there = [name for name, ours in MODELS.items() if hasattr(estimators, ours)]
        unknown.append(f"model {model['class']}{hint(model['class'], there)}")
    if dataset["class"] not in DATASETS:
        unknown.append(f"dataset {dataset['class']}{hint(dataset['class'], DATASETS)}")
    kwargs = dataset.get("kwargs") or {}
    table = _handler(kwargs.get("handler"), unknown)
    if unknown:
        raise ValueError(f"{source}: it names what does not exist here: {'; '.join(unknown)}")
    if "segments" not in kwargs:
        raise ValueError(f"{source}: task.dataset.kwargs must have segments, got {', '.join(kwargs) or 'nothing'}")
    arguments = dict(model.get("kwargs") or {})
    known = estimator._parameter_names()
    if "n_jobs" not in known:
        arguments.pop("n_jobs", None)  # batches need no worker processes
    try:
        check_arguments(f"{source}: {model['class']}", estimator, arguments)
    except TypeError as error:
        raise ValueError(str(error)) from None
    segments = {name: list(days) for name, days in kwargs["segments"].items()}
    step_len = kwargs.get("step_len", 30) if dataset["class"] == "TSDatasetH" else None  # 30 is Qlib's default
    return Plan(estimator, arguments, {**table, "segments": segments}, step_len)


def _section(task: Mapping[str, Any], name: str, source: str) -> Mapping[str, Any]:
    section = task.get(name)
    if not isinstance(section, Mapping) or "class" not in section:
        raise ValueError(f"{source}: task.{name} must be a mapping with class and kwargs, got {section!r}")
    return section


def _handler(handler: Any, unknown: list[str]) -> dict[str, Any]:
    """The options of `panel_from_table`; what has none here is added to `unknown`."""
    if not isinstance(handler, Mapping):
        unknown.append(f"handler {handler!r} (a handler must be given by class and kwargs)")
        return {}
    name = handler.get("class")
    if name not in HANDLERS:
        unknown.append(f"handler {name}; known: {', '.join(HANDLERS)}")
    kwargs = handler.get("kwargs") or {}
    options: dict[str, Any] = {**HANDLERS.get(name, {}), "feature_norm": None, "label_norm": None}
    processors = [*(kwargs.get("infer_processors") or ()), *(kwargs.get("learn_processors") or ())]
    if "infer_processors" not in kwargs and name == "Alpha360":  # Alpha158 has none by default
        options["feature_norm"] = "robust_zscore"
    if "learn_processors" not in kwargs:
        options["label_norm"] = "zscore"
    for processor in processors:
        name = processor["class"] if isinstance(processor, Mapping) else processor
        given = (processor.get("kwargs") or {}) if isinstance(processor, Mapping) else {}
        group = given.get("fields_group", "feature")
        if name == "FilterCol" and group == "feature" and options.get("alpha158"):
            options["features"] = list(given.get("col_list") or ())
            continue
        for key in ((name, group), (name, None)):
            if key in PROCESSORS:
                options |= PROCESSORS[key]
                break
        else:
            unknown.append(f"processor {name} of {group}{hint(name, dict.fromkeys(known for known, _ in PROCESSORS))}")
    for expression in _labels(kwargs.get("label")):
        match = _RETURN.fullmatch(expression.replace(" ", ""))
        if match is None:
            unknown.append(f"label {expression}; known: forward returns such as Ref($close, -2) / Ref($close, -1) - 1")
            continue
        last, first = int(match[1]), int(match[2] or 0)
        if last <= first:
            unknown.append(f"label {expression} (not a forward return)")
        options |= {"delay": first, "horizon": last - first}
    return options


def _labels(label: Any) -> list[str]:
    """The label's expressions: Qlib takes a text, a list, or a list of expressions and one of names."""
    if label is None:
        return ["Ref($close, -2) / Ref($close, -1) - 1"]
    if isinstance(label, str):
        return [label]
    expressions = label[0] if label and isinstance(label[0], (list, tuple)) else label
    return [str(expression) for expression in expressions][:1]
