"""What `shortviz estimate` predicts beside what then happens, for each kind of work, on one model in one run.

    python benchmarks/predictions.py [--model demo] [--rows 16] [--row-tokens 128] [--window 64] [--heal-steps 3]

The prediction is made anew before each piece of work, since the machine may be busier by then. Prints a table, then one
JSON line. The target is a factor of 1.5.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> None:
    """Run each kind of work once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--row-tokens", type=int, default=128)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--heal-steps", type=int, default=3)
    args = parser.parse_args()
    from shortviz import PrunePlan, TextSpec, WindowSpec, load, make_windows, measure_distances, measure_losses, prune
    from shortviz.heal_settings import preset
    from shortviz.healing import heal
    from shortviz.prediction import predict
    from shortviz.prediction_records import Work
    from shortviz.records import Block, ModelRef
    from shortviz.repair import repair
    from shortviz.streamed_model import open_streamed
    from shortviz.streaming import measure_streamed
    from shortviz.texts import tokenize

    ref = ModelRef(id=args.model)
    work = Work(rows=args.rows, row_tokens=args.row_tokens, windows=1, window=args.window, heal_steps=args.heal_steps)
    handle = load(ref)
    spec = TextSpec(kind="builtin", value="python-reference", limit=args.rows, max_length=args.row_tokens)
    tokens = tokenize(spec, handle.tokenizer)
    # Rows may be shorter than asked for: predict for the text there is.
    work = replace(work, row_tokens=round(tokens.info.tokens / len(tokens.rows)), rows=len(tokens.rows))
    windows = make_windows(
        TextSpec(kind="builtin", value="passages"), WindowSpec(window=args.window, windows=1), handle.tokenizer
    )
    count = handle.info.num_layers
    cut = prune(handle, PrunePlan.of_blocks(count, Block(start=count // 2 - count // 8, n=count // 4)))
    training = preset("quick", handle.info, steps=args.heal_steps, warmup_steps=0, eval_every=args.heal_steps)
    healing = tokenize(replace(spec, limit=None, max_length=256), handle.tokenizer)

    def streamed() -> None:
        with open_streamed(ref) as model:
            measure_streamed(model, tokens)

    pieces: dict[str, Callable[[], object]] = {
        "measure": lambda: measure_distances(handle, tokens),
        "streamed": streamed,
        "map": lambda: measure_losses(handle, windows),
        "repair": lambda: repair(cut, handle, tokens),
        "heal": lambda: heal(cut, healing, training, base=handle, heldout=windows),
    }
    found = {}
    print(f"{'':10}{'predicted s':>14}{'taken s':>12}{'ratio':>8}")
    for name, piece in pieces.items():
        predicted = getattr(predict(ref, work), f"{name}_seconds")
        began = time.perf_counter()
        piece()
        taken = time.perf_counter() - began
        found[name] = {"predicted": predicted, "taken": taken, "ratio": predicted / taken}
        print(f"{name:10}{predicted:14.2f}{taken:12.2f}{predicted / taken:8.2f}", flush=True)
    print(json.dumps({"benchmark": "predictions", "model": args.model, **found}))


if __name__ == "__main__":
    main()
