"""Measure whether an uncut model against itself is 1.00 within the stated spread, or refused, beside a busy process.

    .venv/bin/python benchmarks/speed.py --runs 20 --busy 1

Prints a line a run and kind of work, and one JSON line last. A run fails where the clock claims a gain that is not
there. `--block 12,4` also times that cut.
"""

import argparse
import json
import multiprocessing
import platform

import numpy as np
import torch
import transformers

from shortviz.analysis.evidence import speed
from shortviz.measure.evidence.speed import TURNS, measure_paces
from shortviz.model.load import load
from shortviz.model.prune import prune
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block, PrunePlan


def burn() -> None:
    while True:
        np.random.default_rng(0).standard_normal((200, 200)) @ np.ones((200, 200))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--busy", type=int, default=1, help="processes that compute beside it")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--block", help="START,N")
    given = parser.parse_args()
    uncut = load(ModelRef(id=given.model))
    other = uncut
    if given.block:
        start, n = map(int, given.block.split(","))
        other = prune(uncut, PrunePlan.of_blocks(uncut.info.num_layers, Block(start=start, n=n)))
    tokens = np.random.default_rng(0).integers(10, 200, 4096)
    beside = [multiprocessing.Process(target=burn, daemon=True) for _ in range(given.busy)]
    for process in beside:
        process.start()
    failed, refused, ratios = 0, 0, []
    for run in range(given.runs):
        found = {pace.name: speed(pace) for pace in measure_paces(uncut, other, tokens, turns=given.turns)}
        for name, one in found.items():
            print(f"{run:3} {name:24} x {one.ratio:.3f} +- {one.spread:.3f}{' refused' * one.busy}", flush=True)
        ratios.append({name: round(one.ratio, 4) for name, one in found.items()})
        refused += all(one.busy for one in found.values())
        failed += any(not one.busy for one in found.values())
    for process in beside:
        process.terminate()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "machine": platform.platform()}
    print(json.dumps({"claimed": failed, "refused": refused, "runs": given.runs, "ratios": ratios} | versions))


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
