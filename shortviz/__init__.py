"""See which layers of a language model are redundant, prove it, and cut them out.

Importing the package is cheap: a name that needs torch imports it when it is first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Block": "records.plan",
    "BlockDistances": "records.measured",
    "BlockLosses": "records.measured",
    "BlocksRequest": "service.requests",
    "CurveRequest": "service.requests",
    "EstimateRequest": "service.requests",
    "EvaluateRequest": "service.requests",
    "Evaluation": "records.measured",
    "EvidenceRequest": "service.requests",
    "ExportRequest": "service.requests",
    "Gate": "records.measured",
    "HealRequest": "service.requests",
    "HealSettings": "records.heal",
    "MapRequest": "service.requests",
    "MeasureRequest": "service.requests",
    "ModelHandle": "model.handle",
    "ModelRef": "records.model",
    "OwnText": "records.heal",
    "PrunePlan": "records.plan",
    "PushRequest": "service.requests",
    "Removal": "records.plan",
    "RepairRequest": "service.requests",
    "Run": "records.run",
    "SearchRequest": "service.requests",
    "ShortTransformer": "compat",
    "ShortvizError": "errors",
    "ShrinkRequest": "service.requests",
    "TaskSpec": "records.text",
    "TextSpec": "records.text",
    "TextsRequest": "service.requests",
    "Watch": "progress",
    "WindowSpec": "records.text",
    "best_blocks": "analysis.planning",
    "estimate": "model.load",
    "evaluate": "measure.losses",
    "execute": "service.execute",
    "export_checkpoint": "export.export",
    "load": "model.load",
    "load_adapter": "heal.adapter",
    "load_run": "runs.run",
    "make_windows": "text.tokens",
    "measure_distances": "measure.distances",
    "measure_losses": "measure.loss_map",
    "prune": "model.prune",
    "save_run": "runs.run",
    "tokenize": "text.tokens",
}

__all__ = ["__version__", "heal", *_HOME]


def __getattr__(name: str) -> Any:
    if name == "heal":  # a package that can be called
        return import_module("shortviz.heal")
    if name not in _HOME:
        raise AttributeError(f"module 'shortviz' has no attribute {name!r}")
    value = getattr(import_module(f"shortviz.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
