"""Training text that the uncut model writes itself: prompts that it goes on from, sampled, and the mix with plain text.

The prompts are continued as plain text, without a chat template, and stand in front of what follows them.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shortviz.errors import TextError
from shortviz.heal.data import pack
from shortviz.heal.training import own_random_numbers
from shortviz.measure.generation import sample
from shortviz.model.delta import read_tensors, write_tensors
from shortviz.model.handle import ModelHandle
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.formatting import counted
from shortviz.records.heal import OwnText
from shortviz.records.text import ALL_TOKENS, TextInfo, TextSpec, Tokens, TokenSet
from shortviz.text.chats import Chat
from shortviz.text.sources import TextRows, read_rows
from shortviz.text.tables import TABLES, kind_of
from shortviz.text.tokens import HALF, fingerprint, tokenize

PROMPTS = (
    "The first time I saw", "Once upon a time there was", "When she opened the door,", "It was raining, and he",
    "My grandfather used to say", "Nobody in the village knew", "The government said on Monday", "According to a new",
    "The company announced that", "Scientists have found that", "The city council voted", "After the match, the",
    "The river rises in", "The species is found in", "It was built in the year", "The term is used in",
    "In physics, the law of", "The novel tells the story", "How do I make a", "What is the difference between",
    "To cook rice, you first", "Here are five tips for", "There are several reasons why", "The best way to learn is",
    '"Where have you been?" she', '"I don\'t think so," said', "Dear Sir or Madam,", "Thank you for your letter",
    "def main():\n", "import os\nimport sys\n\n", "class Node:\n    def", "#include <stdio.h>\n", "function add(a) {",
    "SELECT name FROM", "Let x be a number such", "The sum of two and three", "Proof. Suppose that", "Example 1. Find",
)  # fmt: skip
"""Beginnings of prose, news, articles, instructions, dialogue, code and maths; none is from a built-in text."""
BATCH = 16
"""Texts that are written at once; a constant, for with another one other texts would come of a seed."""


def read_prompts(own: OwnText) -> TextRows:
    """Return the prompts: built in, or each line of a text file or each row of one with columns; blank ones left out.

    Raises TextError where there are none, or they are chats.
    """
    spec = TextSpec(kind="file", value=own.prompts or "", max_length=ALL_TOKENS)
    if own.prompts is None:
        return TextRows(spec=spec, rows=PROMPTS, source=counted(len(PROMPTS), "built-in prompt"))
    found = read_rows(spec)
    if any(isinstance(row, Chat) for row in found.rows):
        raise TextError(
            f"The {found.source} holds chats, and prompts are continued as plain text; give a column of it."
        )
    rows = found.rows if kind_of(Path(own.prompts)) in TABLES else str(found.rows[0]).splitlines()
    kept = tuple(row for row in rows if str(row).strip())
    return replace(found, rows=kept, source=f"{counted(len(kept), 'prompt')} of the {found.source}")


def write_text(
    base: ModelHandle, prompts: TextRows, own: OwnText, like: TextSpec, *, checkpoint: Path | None = None,
    watch: Watch = NO_WATCH,
) -> TextRows:  # fmt: skip
    """Return texts of so many tokens as `own` asks for, in the order of writing; fewer where nothing new comes.

    They are read by the policies of `like`. Each batch has random numbers of its own, so that what goes on from
    `checkpoint` is what would have come. Raises TextError for prompts that fit no context, Stopped after a stop.
    """
    read_as = replace(like, kind="paste", value="", limit=None, max_length=ALL_TOKENS, long_rows="auto")
    opened = tokenize(replace(prompts, spec=read_as), base.tokenizer)
    longest, context = max(map(len, opened.rows)), base.info.context_length
    if context is not None and longest >= context:
        raise TextError(
            f"The {prompts.source} are up to {longest} tokens long and the model's context is {context}; shorten them "
            f"to at most {context - 1}."
        )
    state: dict[str, Any] = {"texts": [], "batches": 0, "tokens": 0, "dropped": 0, "idle": 0}
    if checkpoint is not None and (saved := read_tensors(checkpoint, tuple(state))) is not None:
        state = saved[1]
    greedy, known = not own.self_temperature, set(state["texts"])
    batches, turn = _batches(opened.rows, own.self_seed, 0, greedy), 0
    each = len(batches)
    while state["tokens"] < own.self_tokens and state["idle"] < each:
        _tell(watch, state, own)
        number = state["batches"]
        if number >= each and greedy:  # every prompt has its one text
            break
        if number // each != turn:
            turn = number // each
            batches = _batches(opened.rows, own.self_seed, turn, greedy)
        batch = batches[number % each]
        room = own.self_length if context is None else min(own.self_length, context - batch.shape[1])
        with own_random_numbers(own.self_seed, number, base):
            written = sample(
                base, batch, max_new_tokens=room, temperature=own.self_temperature, top_p=own.self_top_p, watch=watch
            )
        watch.check("Stopped while the model wrote its training text; what it wrote is kept.")
        state["idle"] += 1
        for prompt, row in zip(batch.tolist(), written, strict=True):
            ids = [*prompt[len(opened.opening) :], *row]
            text = base.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).rstrip(HALF)
            if text in known:
                state["dropped"] += 1
                continue
            known.add(text)
            state["texts"].append(text)
            state["tokens"] += len(ids)
            state["idle"] = 0
        state["batches"] += 1
        if checkpoint is not None:
            write_tensors(checkpoint, {}, state)
    _tell(watch, state, own)
    short = state["tokens"] < own.self_tokens
    left = (f"nothing new came after {state['tokens']:,} of {own.self_tokens:,} tokens",) * short
    return TextRows(
        spec=read_as, rows=tuple(state["texts"]), source=f"text that {base.info.shown_name} wrote itself",
        told=(_settings(own, prompts), _told(state), *left),
    )  # fmt: skip


def _batches(rows: tuple[Tokens, ...], seed: int, turn: int, greedy: bool) -> list[torch.Tensor]:
    """Return every prompt equally often, shuffled, in batches of prompts of one length.

    Padding in front would change families with a recurrent state. Sampled, a prompt comes so often that all batches are
    full: one text at once takes as long as a whole batch. Greedily it has one text, and comes once.
    """
    draw = np.random.default_rng([seed, turn])
    found: list[torch.Tensor] = []
    for length in sorted({len(row) for row in rows}):
        same = np.array([row for row in rows if len(row) == length] * (1 if greedy else BATCH))
        found += torch.tensor(draw.permutation(same)).split(BATCH)
    return [found[i] for i in draw.permutation(len(found))]


def _settings(own: OwnText, prompts: TextRows) -> str:
    how = f"sampled at temperature {own.self_temperature:g} and top p {own.self_top_p:g}, seed {own.self_seed}"
    how = how if own.self_temperature else "greedy"
    return f"{how}, up to {own.self_length} tokens after each of {prompts.source}, which stand in front"


def _tell(watch: Watch, state: dict[str, Any], own: OwnText) -> None:
    done = min(state["tokens"], own.self_tokens)
    watch.tell("write training text", done=done, total=own.self_tokens, unit="tokens", detail=_told(state))


def _told(state: dict[str, Any]) -> str:
    dropped = f", {counted(state['dropped'], 'duplicate')} dropped" if state["dropped"] else ""
    return counted(len(state["texts"]), "text") + dropped


def mixed(own: TokenSet, plain: TokenSet | None, share: float, length: int) -> tuple[TokenSet, tuple[bool, ...]]:
    """Return training windows of both texts as rows, as many as both have for it, and which are the model's own.

    Of n rows round(share n) are its own, spread evenly, so that what is held out at the end has both.
    """
    mine = pack(own, length)
    others = pack(plain, length) if plain is not None else mine[:0]
    most = [len(mine) / share, *([len(others) / (1 - share)] if plain is not None else [])]
    total = int(min(most) + 1e-9)
    wanted = round(share * total)
    which = tuple((i + 1) * wanted // total > i * wanted // total for i in range(total))
    texts = {True: iter(mine), False: iter(others)}
    rows = tuple(next(texts[is_own]) for is_own in which)
    source, told = own.info.source, own.info.told
    if plain is not None:
        source = f"{source} ({wanted} of {counted(total, 'window')}) and {plain.info.source}"
        told = "; ".join(filter(None, (told, plain.info.told)))
    info = TextInfo(
        source=source, rows=total, tokens=total * length, fingerprint=fingerprint(rows), bos=own.info.bos, told=told
    )
    return TokenSet(rows=rows, info=info, opening=own.opening, continued=frozenset(range(1, total))), which
