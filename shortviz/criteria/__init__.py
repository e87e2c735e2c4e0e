"""The rules that score a block. Each file of this folder that has a `CRITERION` is one; there is no list to edit.

Names, labels and explanations are read without torch, so that a saved run can be shown without it.
"""

import pkgutil
from functools import lru_cache
from importlib import import_module

from shortviz.criteria.base import Criterion, Pairs
from shortviz.errors import ShortvizError

__all__ = ["Criterion", "Pairs", "info", "label", "names"]


@lru_cache(maxsize=1)
def _found() -> dict[str, Criterion]:
    modules = (import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    criteria = [m.CRITERION for m in modules if hasattr(m, "CRITERION")]
    return {c.name: c for c in sorted(criteria, key=lambda c: (c.order, c.name))}


def names() -> tuple[str, ...]:
    """Return the names of all criteria, in the order they are shown."""
    return tuple(_found())


def info(name: str) -> Criterion:
    """Return the criterion of that name; raises ShortvizError naming the known ones."""
    try:
        return _found()[name]
    except KeyError:
        raise ShortvizError(f"There is no criterion {name!r}; choose from {', '.join(names())}.") from None


def label(name: str) -> str:
    """Return the words for a criterion on a screen; a criterion of someone's own is called by its name."""
    return _found()[name].label if name in _found() else name.replace("_", " ")
