"""What healing wins back of the demo model's cut of layers 12-15, by objective and method, and per minute.

Usage: python benchmarks/heal.py FIT SCORE [--steps 50] [--only distill,seam] [--repair] [--precision bfloat16]

FIT is a .jsonl file to train on (its end is held out), SCORE a text file to score on. Prints a table, then a JSON
line. Seconds are processor time of this process, since a shared machine's clock says nothing.
"""

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path

from shortviz.heal.data import pack, part_of, split_heldout
from shortviz.heal.heal import heal
from shortviz.measure.losses import BaseScores, evaluate
from shortviz.model.handle import ModelHandle
from shortviz.model.load import load
from shortviz.model.prune import prune
from shortviz.records.formatting import percent
from shortviz.records.heal import HealSettings, preset
from shortviz.records.ledger import recovered_share
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.text import ALL_TOKENS, TextSpec, TokenSet, WindowSpec
from shortviz.text.tokens import make_windows, tokenize

RECIPES = {
    "next_token": {"objective": "next_token"},
    "distill": {"objective": "distill", "mix": 1.0},
    "distill-half": {"objective": "distill", "mix": 0.5},
    "mixed": {"objective": "mixed"},
    "seam": {"objective": "seam"},
    "distill-all": {"objective": "distill", "mix": 1.0, "targets": "all"},
    "partial-next_token": {"method": "partial", "objective": "next_token", "learning_rate": 3e-4},
    "partial-distill": {"method": "partial", "objective": "distill", "mix": 1.0, "learning_rate": 3e-4},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fit", type=Path)
    parser.add_argument("score", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--windows", type=int, default=16, help="of 512 tokens, to score on")
    parser.add_argument("--only", default=",".join(RECIPES), help="recipes, separated by commas")
    parser.add_argument("--repair", action="store_true", help="refit the seam first")
    parser.add_argument("--precision", default="model")
    parser.add_argument("--learning-rate", type=float, help="instead of each recipe's own")
    parser.add_argument("--start", type=int, default=12)
    parser.add_argument("--n", type=int, default=4)
    asked = parser.parse_args()

    base = load(ModelRef(id="demo"))
    cut = prune(base, PrunePlan.of_blocks(base.info.num_layers, Block(start=asked.start, n=asked.n)))
    tokens = tokenize(TextSpec(kind="file", value=str(asked.fit), max_length=ALL_TOKENS), base.tokenizer)
    tokens, heldout = split_heldout(tokens, windows=4)
    text = TextSpec(kind="file", value=str(asked.score))
    windows = make_windows(text, WindowSpec(window=512, windows=asked.windows), base.tokenizer)
    scores = BaseScores(base)
    before = evaluate(cut, windows, base=base, base_scores=scores)
    assert before.base is not None
    print(
        f"NLL uncut {before.base.nll:.4f}, cut {before.score.nll:.4f}; {windows.info.source}, {asked.windows} windows"
    )
    begin, repaired = _repaired(cut, base, tokens) if asked.repair else (cut, 0.0)
    rows = []
    for name in (part.strip() for part in asked.only.split(",")):
        settings = _settings(name, asked.steps, asked.precision)
        if asked.learning_rate is not None:
            settings = replace(settings, learning_rate=asked.learning_rate)
        began = time.process_time()
        healed = heal(begin, tokens, settings, base=base, heldout=heldout)
        seconds = time.process_time() - began + repaired
        after = evaluate(healed.handle, windows, base=base, base_scores=scores)
        won, error = recovered_share(before, after)
        gained = before.score.nll - after.score.nll
        row = {
            "recipe": name,
            "won_back": round(won, 4),
            "stderr": None if math.isnan(error) else round(error, 4),
            "nll": round(after.score.nll, 4),
            "cpu_minutes": round(seconds / 60, 2),
            "nats_per_cpu_minute": round(gained / seconds * 60, 4),
            "learning_rate": settings.learning_rate,
            "parameters": healed.treatment.settings["trained_parameters"],
        }
        rows.append(row)
        print(
            f"{name:<26} won back {percent(won, error):>14}   NLL {after.score.nll:.4f}   "
            f"{seconds / 60:5.1f} min of processor   {gained / seconds * 60:.3f} nats a minute   "
            f"{row['parameters']:>10,} parameters",
            flush=True,
        )
    print(
        json.dumps(
            {
                "benchmark": "heal",
                "fit": asked.fit.name,
                "score": asked.score.name,
                "steps": asked.steps,
                "precision": asked.precision,
                "repaired": asked.repair,
                "uncut": before.base.nll,
                "cut": before.score.nll,
                "rows": rows,
            }
        )
    )


def _settings(name: str, steps: int, precision: str) -> HealSettings:
    found = preset("good", steps=steps, eval_every=max(1, steps // 2), precision=precision, **RECIPES[name])
    return replace(found, warmup_steps=max(1, steps // 20))


def _repaired(cut: ModelHandle, base: ModelHandle, tokens: TokenSet) -> tuple[ModelHandle, float]:
    from shortviz.repair.repair import repair

    began = time.process_time()
    rows = part_of(tokens, tuple(pack(tokens, 256)[:64]))
    done = repair(cut, base, rows)
    seconds = time.process_time() - began
    print(f"Repaired first, {seconds:.0f} s of processor. {done.treatment.note}", flush=True)
    return done.handle, seconds


if __name__ == "__main__":
    main()
