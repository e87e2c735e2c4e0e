"""Blocks of layers and plans of what to remove: plain records, checked once, no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from shortviz.errors import PlanError
from shortviz.records.formatting import layer_words, runs


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """The n consecutive layers start .. start+n-1."""

    start: int
    n: int

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of the block, ascending."""
        return tuple(range(self.start, self.start + self.n))

    def check(self, num_layers: int) -> "Block":
        """Return self, or raise PlanError where the block is not inside a model of `num_layers` layers."""
        if self.n < 1:
            raise PlanError(f"n is {self.n}; a block has at least 1 layer.")
        if self.start < 0 or self.start + self.n > num_layers:
            raise PlanError(
                f"Block start {self.start}, n {self.n} does not fit: the model has layers 0-{num_layers - 1}, "
                f"so start can be 0-{max(num_layers - self.n, 0)} for n {self.n}."
            )
        return self

    def __str__(self) -> str:
        return f"{layer_words(self.start, self.n)} (start {self.start}, n {self.n})"


@dataclass(frozen=True, kw_only=True, slots=True)
class PrunePlan:
    """The set of layers to remove from a model of `num_layers` layers; it may be empty, never everything."""

    num_layers: int
    removed: tuple[int, ...]
    """Ascending, without repeats."""

    def __post_init__(self) -> None:
        if list(self.removed) != sorted(set(self.removed)):
            object.__setattr__(self, "removed", tuple(sorted(set(self.removed))))
        outside = [i for i in self.removed if not 0 <= i < self.num_layers]
        if outside:
            raise PlanError(f"There is no layer {outside[0]}: the model has layers 0-{self.num_layers - 1}.")
        if len(self.removed) >= self.num_layers:
            raise PlanError(f"The plan removes all {self.num_layers} layers; keep at least one.")

    @classmethod
    def of_blocks(cls, num_layers: int, *blocks: Block) -> "PrunePlan":
        """Return the plan that removes the union of the blocks; raises PlanError where one does not fit."""
        layers = {i for block in blocks for i in block.check(num_layers).layers}
        return cls(num_layers=num_layers, removed=tuple(sorted(layers)))

    @property
    def kept(self) -> tuple[int, ...]:
        """Layers that stay, ascending: position in this tuple is the new number."""
        gone = set(self.removed)
        return tuple(i for i in range(self.num_layers) if i not in gone)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The removed layers as maximal runs of consecutive layers."""
        return tuple(Block(start=start, n=n) for start, n in runs(self.removed))


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal:
    """What a person asked to remove, before the model is known."""

    block: Block | None = None
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.block is None and not self.layers:
            raise PlanError("Nothing says what to remove; name a block or layers, or leave the removal out.")

    def of(self, num_layers: int) -> PrunePlan:
        """Return the plan for a model of `num_layers` layers; raises PlanError where it does not fit."""
        if self.block is not None:
            return PrunePlan.of_blocks(num_layers, self.block)
        return PrunePlan(num_layers=num_layers, removed=self.layers)

    @classmethod
    def of_layers(cls, layers: Sequence[int]) -> "Removal":
        """Return what removes these layers: a block where they are one."""
        block = Block(start=min(layers), n=len(layers))
        return cls(block=block) if block.layers == tuple(layers) else cls(layers=tuple(layers))

    @property
    def removed(self) -> tuple[int, ...]:
        """The layers, not checked against any model."""
        return self.layers if self.block is None else self.block.layers
