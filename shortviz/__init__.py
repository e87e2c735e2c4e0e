"""See which layers of a language model are redundant, prove it, and cut them out.

Importing the package is cheap: a name that needs torch imports it when it is first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Block": "records",
    "BlockDistances": "records",
    "BlockLosses": "records",
    "Evaluation": "records",
    "HealSettings": "heal_settings",
    "ModelHandle": "handle",
    "ModelRef": "records",
    "PrunePlan": "records",
    "Run": "records",
    "ShortTransformer": "short_transformer",
    "ShortvizError": "errors",
    "TextSpec": "records",
    "Watch": "progress",
    "WindowSpec": "records",
    "best_blocks": "planning",
    "estimate": "loading",
    "evaluate": "losses",
    "export_checkpoint": "export",
    "heal": "healing",
    "load": "loading",
    "load_adapter": "heal_adapter",
    "load_run": "runs",
    "make_windows": "texts",
    "measure_distances": "distances",
    "measure_losses": "loss_map",
    "prune": "pruning",
    "save_run": "runs",
    "tokenize": "texts",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'shortviz' has no attribute {name!r}")
    value = getattr(import_module(f"shortviz.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
