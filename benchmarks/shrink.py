"""Shrink: greedy cuts, each repaired, against the best single block of as many layers without any repair.

Layers and block are both chosen on CHOOSE, repairs are fitted on FIT, both models are scored on SCORE: three files, so
neither is judged on what it was chosen by. Prints a table, then one JSON line. Seconds are of the processor.

    python benchmarks/shrink.py --fit c4.jsonl --choose wiki.valid.raw --score wiki.test.raw --tokens 4096
"""

import argparse
import json
import math
import platform
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import transformers

from shortviz.errors import PlanError
from shortviz.measure.losses import BaseScores, evaluate
from shortviz.model.handle import ModelHandle
from shortviz.model.load import load
from shortviz.model.prune import prune
from shortviz.records.formatting import with_error
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.sums import mean_and_stderr
from shortviz.records.text import TextSpec, WindowSet, WindowSpec
from shortviz.repair.shrink import shrink
from shortviz.text.tokens import fit_rows, make_windows


def best_block(base: ModelHandle, n: int, windows: WindowSet) -> Block:
    """Return the block of n layers whose removal costs least on the windows, every start tried."""
    found: dict[Block, float] = {}
    for start in range(base.info.num_layers - n + 1):
        block = Block(start=start, n=n)
        try:
            cut = prune(base, PrunePlan.of_blocks(base.info.num_layers, block))
        except PlanError:
            continue  # the stock config cannot do without it
        found[block] = evaluate(cut, windows).score.nll
    return min(found, key=lambda block: found[block])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--fit", type=Path, required=True, help="text to fit repairs on")
    parser.add_argument("--choose", type=Path, required=True, help="text to choose layers on")
    parser.add_argument("--score", type=Path, required=True, help="text to score on")
    parser.add_argument("--to-layers", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=4096, help="to fit a repair on, in rows of 256")
    parser.add_argument("--choose-windows", type=int, default=2, help="of 128 tokens")
    parser.add_argument("--windows", type=int, default=8, help="of 256 tokens, to score on")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()

    torch.set_num_threads(asked.threads)
    base = load(ModelRef(id=asked.model))
    tokens = fit_rows(TextSpec(kind="file", value=str(asked.fit)), base.tokenizer, tokens=asked.tokens)
    choosing, scoring = (
        make_windows(TextSpec(kind="file", value=str(file)), spec, base.tokenizer)
        for file, spec in (
            (asked.choose, WindowSpec(window=128, windows=asked.choose_windows)),
            (asked.score, WindowSpec(window=256, windows=asked.windows)),
        )
    )
    n = base.info.num_layers - asked.to_layers

    began = time.process_time()
    block = best_block(base, n, choosing)
    looked = time.process_time() - began
    began = time.process_time()
    shrunk = shrink(base, choosing, tokens, asked.to_layers)
    seconds = time.process_time() - began

    scores = BaseScores(base)
    plan = PrunePlan.of_blocks(base.info.num_layers, block)
    single = evaluate(prune(base, plan), scoring, base=base, base_scores=scores)
    greedy = evaluate(shrunk.handle, scoring, base=base, base_scores=scores)
    assert single.base is not None
    ahead, error = mean_and_stderr(np.subtract(single.score.window_nll, greedy.score.window_nll))
    print(f"fit {asked.fit.name}, chosen on {asked.choose.name}, scored on {asked.score.name}")
    print(f"uncut NLL {single.base.nll:.4f}; {torch.get_num_threads()} threads")
    last, first = block.start + n - 1, block.start
    for name, found, spent in (
        (f"best block of {n}, layers {first}-{last}, unrepaired", single, looked),
        (f"shrink to {asked.to_layers}: without {list(greedy.removed)}", greedy, seconds),
    ):
        print(f"{name:<58} NLL {with_error(found.nll_increase, found.nll_increase_stderr, sign=True)}  {spent:7.1f} s")
    print(f"shrink is lower by {with_error(ahead, error)} nats (paired windows)")
    print(
        json.dumps(
            {
                "benchmark": "shrink",
                "options": {
                    name: value.name if isinstance(value, Path) else value for name, value in vars(asked).items()
                },
                "block": asdict(block),
                "removed": list(greedy.removed),
                "complete": shrunk.complete,
                "block_increase": single.nll_increase,
                "shrink_increase": greedy.nll_increase,
                "lower_by": ahead,
                "stderr": None if math.isnan(error) else error,
                "cpu_seconds": {"block": looked, "shrink": seconds},
                "machine": platform.processor() or platform.machine(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
