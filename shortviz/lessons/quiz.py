"""Questions about the map that are answered by choosing a block; the right ones follow from the run. No streamlit."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shortviz.analysis.planning import best_starts, tied_starts
from shortviz.records.formatting import layer_words, with_error
from shortviz.records.measured import BlockDistances, Grid
from shortviz.records.model import ModelInfo
from shortviz.records.plan import Block

CRITERION = "angular_last"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MapQuestion:
    """A question whose answer is a block."""

    ask: str
    hint: str
    """What to look at."""
    right: Callable[[Block], bool]
    because: str
    """Said after a right answer."""
    example: Block
    """One right answer."""


def map_questions(distances: BlockDistances, model: ModelInfo) -> tuple[MapQuestion, ...]:
    """Return the questions, easiest first."""
    grid = distances.criteria[CRITERION]
    some = Block(start=min(12, grid.num_layers - 4), n=4)
    n = min(8, grid.num_layers - 1)
    best = Block(start=best_starts(grid, model)[n], n=n)
    ties = {best.start, *tied_starts(grid, n)}
    most = Block(start=int(np.nanargmax(grid.row(1))), n=1)
    times = float(grid.row(1)[most.start] / np.nanmedian(grid.row(1)))
    return (
        MapQuestion(
            ask=f"Choose the block that removes {layer_words(some.start, 4)}.",
            hint="To the right is the first layer removed; downwards is how many.",
            right=lambda chosen: chosen == some,
            because="A column is the first layer that goes, a row is how many go, so every cell is one possible cut.",
            example=some,
        ),
        MapQuestion(
            ask=f"Of all blocks of {n} layers, choose the one that turns the last token's state least.",
            hint="Each row is ranked by itself: its best carries a ring.",
            right=lambda chosen: chosen.n == n and chosen.start in ties,
            because=f"By this measure it is the best cut of {n} layers; the measured loss will have its own opinion.",
            example=best,
        ),
        *_sink(distances),
        MapQuestion(
            ask="Choose the single layer that turns the last token's state most.",
            hint="Look for the darkest cell of the row n = 1.",
            right=lambda chosen: chosen == most,
            because=f"Layer {most.start} turns it {times:.1f} times as far as the middle one of all layers.",
            example=most,
        ),
    )


def _sink(distances: BlockDistances) -> tuple[MapQuestion, ...]:
    sinks = distances.norms.sink_layers
    if not sinks:
        return ()
    sink = sinks[0]
    n = min(5, distances.num_layers - 1)
    return (
        MapQuestion(
            ask=f"Choose any block of {n} layers that takes away layer {sink}, which writes the attention sink.",
            hint="That layer is the labelled band; those blocks begin at or before it and end at or behind it.",
            right=lambda chosen: chosen.n == n and sink in chosen.layers,
            because="They all remove it, and the angle at the last token does not see what that costs.",
            example=Block(start=min(sink, distances.num_layers - n), n=n),
        ),
    )


def verdict(question: MapQuestion, block: Block, grid: Grid) -> tuple[bool, str]:
    """Return whether the block answers the question, and what to say about it."""
    what = f"{block} has an angle of {with_error(*grid.at(block))} of π"
    if question.right(block):
        return True, f"Right: {what}. {question.because}"
    if block.n != question.example.n:
        near = f"n is {block.n} there; look in the row of n {question.example.n}."
    else:
        near = f"The row is right; the block has another start. {question.hint}"
    return False, f"Not yet: {what}. {near}"


def angle_lines(text: str, block: Block) -> str:
    """Return the program that prints the angle over a block at the last token of a text; tests run it."""
    return f"""import math
import torch
from shortviz import ModelRef, load
from shortviz.model.layers import residual_boundaries

handle = load(ModelRef(id="demo"))
ids = torch.tensor([handle.tokenizer({text!r})["input_ids"]])
states = {{}}
with torch.inference_mode(), residual_boundaries(handle, lambda i, x: states.update({{i: x[0, -1].double()}})) as model:
    model(input_ids=ids)
one, other = states[{block.start}], states[{block.start + block.n}]
cosine = (one @ other / (one.norm() * other.norm())).item()
print(math.acos(cosine) / math.pi)
"""
