"""Measure what the lessons show, on the demo model: `python tools/make_lesson_data.py` (twenty minutes on two cores).

`--only numbers`, `--only answers` or `--only texts` does one part anew and keeps the others. Writes
shortviz/lessons/data.json.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from bundled_cut import BLOCK, treated
from lesson_questions import QUESTIONS

from shortviz.analysis.planning import best_start
from shortviz.files import versions
from shortviz.measure.generation import continue_text
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import residual_boundaries
from shortviz.model.load import load
from shortviz.model.prune import prune
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block, PrunePlan
from shortviz.runs.run import example_run
from shortviz.text.tokens import DEFAULT_CALIBRATION, tokenize

SENTENCE = "The capital of Japan is"
BINS = ((0, 0), (1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, 63), (64, 127), (128, 254), (255, 255))
"""Positions whose angles are averaged together; the last is the last token of a row."""
SIZES = (1, 2, 3, 4, 6, 8)
"""How many layers are cut out before the questions are asked: the block of that size with the lowest measured loss."""
NEW_TOKENS = 12
PROMPTS = ("The capital of France is", "Once upon a time, a little fox", "My favourite season is spring, because")
LARGEST_TEXT_CUT = 8
"""What the first screen shows: the prompts continued without every block of up to so many layers."""
TEXT_TOKENS = 16


def main() -> None:
    """Write shortviz/lessons/data.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS)
    only = parser.parse_args().only
    target = Path(str(resources.files("shortviz"))) / "lessons" / "data.json"
    found: dict[str, Any] = json.loads(target.read_text(encoding="utf-8")) if only else {}
    handle = load(ModelRef(id="demo"))
    for name, part in PARTS.items():
        if only in (None, name):
            found |= part(handle)
    found |= {"model": handle.info.id, "versions": versions()}
    found["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    target.write_text(json.dumps(found, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB", file=sys.stderr)


def boundaries(handle: ModelHandle, ids: list[int]) -> torch.Tensor:
    """Return the residual stream at every boundary, in float64, shape (L+1, tokens, hidden)."""
    kept: dict[int, torch.Tensor] = {}

    def keep(index: int, hidden: torch.Tensor) -> None:
        kept[index] = hidden[0].detach().to("cpu", torch.float64, copy=True)

    with handle.lock, torch.inference_mode(), residual_boundaries(handle, keep) as decoder:
        decoder(input_ids=torch.tensor([ids], device=handle.model.device))
    return torch.stack([kept[i] for i in range(len(kept))])


def angles(states: torch.Tensor) -> torch.Tensor:
    """Return the angle between every two boundaries for every token, in units of pi, shape (tokens, L+1, L+1)."""
    unit = states / states.norm(dim=-1, keepdim=True)
    cosine = torch.einsum("ith,jth->tij", unit, unit)
    return torch.acos(cosine.clamp(-1, 1)) / math.pi


def numbers(handle: ModelHandle) -> dict[str, Any]:
    """Return the sentence, the update norms and the angles by position."""
    tokens = tokenize(DEFAULT_CALIBRATION, handle.tokenizer)
    first, rest, by_bin = [], [], []
    for number, row in enumerate(tokens.rows):
        states = boundaries(handle, row.tolist())
        added = (states[1:] - states[:-1]).norm(dim=-1)
        first.append(added[:, 0])
        rest.append(added[:, 1:].mean(dim=1))
        found = angles(states)
        by_bin.append(torch.stack([found[a : b + 1].mean(dim=0) for a, b in BINS]))
        print(f"\rrow {number + 1} of {len(tokens.rows)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    count = math.sqrt(len(first))
    table = torch.stack(by_bin)
    mean, stderr = table.mean(dim=0), table.std(dim=0) / count
    return {
        "sentence": sentence(handle),
        "text": {name: getattr(tokens.info, name) for name in type(tokens.info).__dataclass_fields__},
        "updates": {
            "first": rounded(torch.stack(first).mean(dim=0)),
            "rest": rounded(torch.stack(rest).mean(dim=0)),
            "rest_stderr": rounded(torch.stack(rest).std(dim=0) / count),
        },
        "positions": [
            {
                "first": a,
                "last": b,
                "grid": {"samples": len(first)} | {"mean": triangle(mean[k]), "stderr": triangle(stderr[k])},
            }
            for k, (a, b) in enumerate(BINS)
        ],
    }


def sentence(handle: ModelHandle) -> dict[str, Any]:
    """Return the norms of the short sentence, and the dot products of its last token's states."""
    ids = handle.tokenizer(SENTENCE)["input_ids"]
    states = boundaries(handle, ids)
    last = states[:, -1]
    gram = last @ last.T
    return {
        "text": SENTENCE,
        "tokens": [handle.tokenizer.decode([i]) for i in ids],
        "norms": [rounded(row) for row in states.norm(dim=-1).T],
        "updates": [rounded(row) for row in (states[1:] - states[:-1]).norm(dim=-1).T],
        "gram": [rounded(gram[i, i:], 9) for i in range(len(gram))],
    }


def answers(handle: ModelHandle) -> dict[str, Any]:
    """Return what the uncut model and the cut ones write after every prompt."""
    losses = example_run().losses
    assert losses is not None
    layers = handle.info.num_layers
    models: list[tuple[str, tuple[int, ...], ModelHandle]] = [("uncut", (), handle)]
    for n in SIZES:
        start = best_start(losses.increase, n, handle.info)
        assert start is not None
        block = Block(start=start, n=n)
        models.append(("cut", block.layers, prune(handle, PrunePlan.of_blocks(layers, block))))
    models += [(step, BLOCK.layers, model) for step, model in treated(handle)]
    found = []
    for step, removed, model in models:
        written = [continue_text(model, prompt, max_new_tokens=NEW_TOKENS) for _, prompt, _ in QUESTIONS]
        found.append({"step": step, "removed": list(removed), "written": written})
        right = sum(
            text.strip().lower().startswith(expected.lower())
            for text, (_, _, expected) in zip(written, QUESTIONS, strict=True)
        )
        print(f"{step} {list(removed)}: {right} of {len(QUESTIONS)} right", file=sys.stderr)
    return {
        "questions": [{"kind": k, "prompt": p, "expected": e} for k, p, e in QUESTIONS],
        "answers": found,
    }


def texts(handle: ModelHandle) -> dict[str, Any]:
    """Return what the model writes without every block of up to LARGEST_TEXT_CUT layers."""
    layers = handle.info.num_layers

    def written(model: ModelHandle) -> list[str]:
        return [continue_text(model, prompt, max_new_tokens=TEXT_TOKENS) for prompt in PROMPTS]

    cut = []
    for n in range(1, LARGEST_TEXT_CUT + 1):
        blocks = [Block(start=start, n=n) for start in range(layers - n + 1)]
        cut.append([written(prune(handle, PrunePlan.of_blocks(layers, block))) for block in blocks])
        print(f"\rtexts of the cuts of {n} layers", end="", file=sys.stderr)
    print(file=sys.stderr)
    return {"texts": {"prompts": PROMPTS, "uncut": written(handle), "cut": cut}}


PARTS: Mapping[str, Callable[[ModelHandle], dict[str, Any]]] = {"numbers": numbers, "answers": answers, "texts": texts}


def rounded(values: torch.Tensor, digits: int = 5) -> list[float]:
    """Return the values with so many significant digits."""
    return [float(f"{value:.{digits}g}") for value in values.tolist()]


def triangle(matrix: torch.Tensor) -> list[list[float]]:
    """Return [n-1][start] of a matrix over pairs of boundaries."""
    layers = len(matrix) - 1
    return [rounded(torch.diagonal(matrix, offset=n)) for n in range(1, layers + 1)]


if __name__ == "__main__":
    main()
