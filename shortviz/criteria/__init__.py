"""The rules that score a block: each file of this folder that has a `CRITERION` is one; there is no list to edit.

Names, labels and explanations are read without torch, so that a saved run can be shown without it.
"""

import pkgutil
import runpy
from functools import lru_cache
from importlib import import_module
from pathlib import Path

from shortviz.criteria.base import Criterion, Pairs, Score
from shortviz.errors import ShortvizError

__all__ = ["Criterion", "Pairs", "Score", "info", "label", "names", "resolve"]


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


def resolve(criterion: str | Criterion | Score) -> Criterion:
    """Return a criterion given by its name, by a .py file that has a `CRITERION` or a `score`, or as a callable.

    A callable maps (x^(start), x^(start+n)), shape (..., hidden), to one value per token; it is averaged over all
    tokens but the first. A file is run as the Python program it is: name only files you trust.
    Raises ShortvizError where there is no such criterion or file.
    """
    if isinstance(criterion, Criterion):
        return criterion
    if isinstance(criterion, str):
        return _from_file(Path(criterion)) if criterion.endswith(".py") else info(criterion)
    return _own(getattr(criterion, "__name__", "own"), criterion)


def _own(name: str, score: Score) -> Criterion:
    words = name.replace("_", " ")
    return Criterion(
        name=name,
        label=words,
        units="its own units",
        low=0.0,
        high=float("inf"),
        tokens="all",
        source="a criterion of one's own",
        explanation=words,
        score=score,
        undefined_at_zero=False,
    )


def _from_file(path: Path) -> Criterion:
    try:
        found = runpy.run_path(str(path))
    except (OSError, SyntaxError, ImportError, NameError) as error:
        raise ShortvizError(f"The criterion {path} cannot be read ({error}); name a .py file.") from error
    given = found.get("CRITERION")
    if isinstance(given, Criterion):
        return given
    if not callable(found.get("score")):
        raise ShortvizError(f"The file {path} has neither a CRITERION nor a function score(start, end); give it one.")
    return _own(path.stem, found["score"])


def label(name: str) -> str:
    """Return the words for a criterion on a screen; a criterion of someone's own is called by its name."""
    return _found()[name].label if name in _found() else name.replace("_", " ")
