"""The stack of layers with a bracket over those removed: what the model writes without them, from stored data."""

import difflib
import re
from collections.abc import Callable
from typing import Any

import streamlit as st

from shortviz.analysis.planning import best_start
from shortviz.lessons.data import CutTexts
from shortviz.records.formatting import percent, times
from shortviz.records.measured import BlockLosses
from shortviz.records.model import ModelInfo
from shortviz.records.plan import Block
from shortviz.ui.parts.strip import component

FIRST_N = 4
Parts = list[tuple[str, bool]]
"""Pieces of a text, and whether each differs from the text that it is compared with."""


def stack(data: dict[str, Any], on_open: Callable[[Block], None]) -> None:
    """Draw the stack; `on_open` gets the block whose button was pressed."""

    def opened() -> None:
        start, n = st.session_state["stack"]["opened"]
        on_open(Block(start=int(start), n=int(n)))

    component("stack")(data=data, key="stack", on_opened_change=opened)


def stack_data(model: ModelInfo, losses: BlockLosses, texts: CutTexts) -> dict[str, Any]:
    """Return all that the stack says, in words: by n and start, as `texts.cut`."""
    best = best_start(losses.increase, FIRST_N, model)
    return {
        "layers": model.num_layers,
        "start": 0 if best is None else best,
        "n": FIRST_N,
        "prompts": list(texts.prompts),
        "uncut": [text.strip() for text in texts.uncut],
        "texts": [[_compared(texts.uncut, found) for found in row] for row in texts.cut],
        "prices": [
            [_price(losses, model, Block(start=start, n=n)) for start in range(len(row))]
            for n, row in enumerate(texts.cut, 1)
        ],
    }


def _price(losses: BlockLosses, model: ModelInfo, block: Block) -> tuple[str, str]:
    factor, _, nats = times(*losses.increase.at(block)).partition(" (")
    share = model.sizes(block.layers)[0] / model.parameters
    return f"perplexity {factor}", f"({nats} · {percent(share)} smaller"


def _compared(uncut: tuple[str, ...], found: tuple[str, ...]) -> list[Parts]:
    return [differences(one.strip(), other.strip()) for one, other in zip(uncut, found, strict=True)]


def differences(before: str, after: str) -> Parts:
    """Return the words of `after` in order, with their spaces, and whether each differs from `before`, commas aside."""
    one, other = (re.findall(r"\S+\s*", text) for text in (before, after))
    parts: Parts = []
    matcher = difflib.SequenceMatcher(
        None, [_bare(word) for word in one], [_bare(word) for word in other], autojunk=False
    )
    for operation, _, _, first, last in matcher.get_opcodes():
        if last > first:
            parts.append(("".join(other[first:last]), operation != "equal"))
    return parts


def _bare(word: str) -> str:
    return re.sub(r"\W+", "", word) or word.strip()
