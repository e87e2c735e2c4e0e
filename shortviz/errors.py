"""Problems a person can fix. Each message is one sentence: what happened, the offending value, what to do next.

ShortvizError
├── ModelError      a model that cannot be loaded or is not of a kind we can cut
├── TextError       calibration or evaluation text that cannot be used
├── PlanError       layers that do not exist, or that the stock config cannot do without
├── NumericsError   NaN or Inf in weights or activations
├── ResourceError   not enough memory or disk, or the network is down
├── ExportError     a folder that cannot be written, or a checkpoint that failed its proof
├── RunError        a run directory that cannot be read or does not fit the request
├── FieldError      a value that a field of a request cannot have; each side spells the field its own way
├── GateError       a cut that was not shown to keep the limits it was to be judged by
├── PolicyError     something that this hosted installation does not do for strangers
└── Stopped         the person asked to stop before there was any result to keep

The command line prints the message and exits with 2 (with 3 for a GateError); the app shows it on the page. Anything
else is our fault.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ShortvizError(Exception):
    """A problem whose message may be shown to a person as it is."""


class ModelError(ShortvizError):
    """A model that cannot be loaded, or is not a causal language model we can cut."""


class TextError(ShortvizError):
    """Calibration or evaluation text that cannot be used."""


class PlanError(ShortvizError):
    """Layers that do not exist, or that the stock config cannot do without (the field is named)."""


class NumericsError(ShortvizError):
    """NaN or Inf in weights or activations; the layer is named."""


class ResourceError(ShortvizError):
    """Not enough memory or disk, or no network."""


class ExportError(ShortvizError):
    """A folder that cannot be written, or a checkpoint that failed its proof."""


class RunError(ShortvizError):
    """A run directory that cannot be read or does not fit the request."""


class FieldError(ShortvizError):
    """A value that a field of a request cannot have."""

    def __init__(self, field: str, why: str, before: str = "") -> None:
        """Say of a field why not: `FieldError("batch_size", "is 0; it must be at least 1")`."""
        super().__init__(f"{before}{field} {why}.")
        self.field, self.why, self.before = field, why, before


class GateError(ShortvizError):
    """A model that was not shown to keep the limits of a gate; `verdict` is the `GateVerdict`."""

    def __init__(self, message: str, verdict: object) -> None:
        """Say it in a sentence, with what was found."""
        super().__init__(message)
        self.verdict = verdict


class PolicyError(ShortvizError):
    """Something that this hosted installation does not do for strangers."""


class Stopped(ShortvizError):
    """The work was stopped before there was any result to keep."""


def first_line(error: Exception) -> str:
    """Return the first line of what an error of somebody else's says, or its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out; torch says so by class on a GPU, only in words on a CPU."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    words = ("can't allocate memory", "not enough memory", "out of memory")
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))


@contextmanager
def memory_told(words: Callable[[], str]) -> Iterator[None]:
    """Turn running out of memory inside into a ResourceError that says these words."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(words()) from error
