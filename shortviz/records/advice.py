"""What a person can spend, and what to cut for it: plain records, no torch."""

import re
from dataclasses import dataclass

from shortviz.errors import PlanError
from shortviz.records.formatting import counted, with_error
from shortviz.records.json import Many, Number
from shortviz.records.text import TextInfo

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Exactly one of three limits."""

    layers: int | None = None
    """Remove at least so many layers."""
    bytes: int | None = None
    """Weights of at most so many bytes."""
    max_increase: float | None = None
    """Remove as much as possible while the NLL rises by at most so many nats a token."""

    def __post_init__(self) -> None:
        given = [value for value in (self.layers, self.bytes, self.max_increase) if value is not None]
        if len(given) != 1:
            raise PlanError(
                f"{len(given)} budgets were given; give exactly one: layers to remove, bytes that the weights may "
                "take, or the largest NLL increase."
            )
        if not given[0] > 0:
            raise PlanError(f"The budget is {given[0]:g}; it must be above 0.")

    @property
    def words(self) -> str:
        """The budget in words, after `a plan that`."""
        if self.layers is not None:
            return f"removes at least {counted(self.layers, 'layer')}"
        if self.bytes is not None:
            return f"takes at most {self.bytes:,} bytes"
        return f"raises the NLL by at most {self.max_increase:g} nats a token"


def parse_bytes(text: str) -> int:
    """Return the bytes that `400MB`, `1.5 GB` or `400000000` mean (powers of 1000); raises PlanError for others."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?b|)\s*", text.lower())
    if match is None or match[2] not in _UNITS:
        raise PlanError(f"{text!r} is not a size; write it as 400MB, 1.5GB or 400000000.")
    return int(float(match[1]) * _UNITS[match[2]])


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One plan, repaired or not, with what was measured of it."""

    removed: Many[int]
    methods: Many[str] = ()
    """Repairs and healings after the cut, in order."""
    increase: Number = float("nan")
    """NLL over the uncut model, in nats a token; NaN where only distances are known."""
    stderr: Number = float("nan")
    """Paired; NaN with one window."""
    tokens: int = 0
    """Scored."""
    windows: int = 0
    source: str = ""
    """`measured map`, `evaluation`, `ledger`, or the criterion whose distance chose it."""
    text: TextInfo | None = None
    window_nll: Many[float] = ()
    """For paired comparisons; empty where it was not kept."""

    @property
    def cost(self) -> str:
        """The increase with its error, in nats a token."""
        return with_error(self.increase, self.stderr, sign=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """A plan for a budget, from what a run holds, and how sure it is."""

    budget: Budget
    measured: bool
    """False: nothing measured fits, and only a distance speaks for the plan."""
    plan: Candidate
    ties: Many[Candidate]
    """Other plans within two errors of it, best first: this text cannot tell them apart."""
    compared: int
    """Measured plans that fit the budget."""
    parameters: int
    """That stay."""
    bytes: int
    """That the weights then take."""
    expected: tuple[float, float] | None = None
    """Where the plan is not repaired yet: the share won back by repairs of this run, lowest and highest."""
    expected_method: str = ""
    """The repair with the highest median share in this run; what to try on this plan."""
    repaired: Candidate | None = None
    """Where the plan is not repaired: the best that was measured of a repair or healing of the same cut."""
    notes: Many[str] = ()
    """Sentences: what limits the advice, and what to do next."""
