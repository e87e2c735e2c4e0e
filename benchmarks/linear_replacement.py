"""What linear_replacement adds to the distance pass, and how ridge strengths do on rows that were not fitted on.

One pass over the text with every criterion. What the criterion costs is timed inside of it: taking the sample of tokens
batch by batch, and the fits at the end; the rest of the same pass is what it is added to. Then the sample of that pass
is fitted with several ridge strengths: the error on the held-out rows (lower is a better map), and how like the ranking
of blocks is to that of the default. Prints tables, then one JSON line.

    python benchmarks/linear_replacement.py [--rows 64] [--max-length 256] [--text FILE]
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from shortviz import TextSpec, criteria
from shortviz.analysis.agreement import spearman
from shortviz.criteria.linear_replacement import RIDGE, replacement_errors
from shortviz.files import versions
from shortviz.measure import distances
from shortviz.measure.gram import TokenSample
from shortviz.model.load import load
from shortviz.records.model import ModelRef
from shortviz.text.tokens import DEFAULT_CALIBRATION, tokenize

RIDGES = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)


class Timed:
    """A function that adds up the seconds spent in it."""

    def __init__(self, work: Callable) -> None:
        self.work, self.seconds = work, 0.0

    def __call__(self, *args: object) -> object:
        """Do the work and add its time."""
        began = time.perf_counter()
        try:
            return self.work(*args)
        finally:
            self.seconds += time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--text", help="a text file; the built-in Python reference if left out")
    options = parser.parse_args()
    handle = load(ModelRef(id=options.model))
    spec = replace(DEFAULT_CALIBRATION, limit=options.rows, max_length=options.max_length)
    if options.text:
        spec = TextSpec(kind="file", value=options.text, limit=options.rows, max_length=options.max_length)
    tokens = tokenize(spec, handle.tokenizer)

    fit, take = Timed(replacement_errors), Timed(TokenSample.add)
    kept: list[TokenSample] = []

    def add(sample: TokenSample, *args: object) -> None:
        kept[:] = [sample]
        take(sample, *args)

    TokenSample.add = add  # type: ignore[method-assign]  # to time it inside the real pass
    own = replace(criteria.info("linear_replacement"), from_sample=fit)
    chosen = [*(name for name in criteria.names() if name != own.name), own]
    began = time.perf_counter()
    distances.measure_distances(handle, tokens, criteria=chosen, batch_size=options.batch_size)
    whole = time.perf_counter() - began
    added = fit.seconds + take.seconds
    share = added / (whole - added)
    print(f"{handle.info.id}: {tokens.info.rows} rows, {tokens.info.tokens} tokens, batch {options.batch_size}")
    print(f"pass without linear_replacement {whole - added:9.2f} s")
    print(f"sample {take.seconds:.2f} s, fits {fit.seconds:.2f} s: adds {100 * share:.1f} %")

    states, rows = kept[0].tensors()
    found = {ridge: replacement_errors(states, rows, ridge) for ridge in (*RIDGES, RIDGE)}
    default = np.asarray(found[RIDGE]).mean(0)
    start, end = np.triu_indices(handle.info.num_layers + 1, 1)
    small = end - start <= handle.info.num_layers // 4
    table = []
    print("ridge     error on held-out rows, mean of all blocks   n <= L/4   rank correlation with the default")
    for ridge in RIDGES:
        errors = np.asarray(found[ridge])
        mean = errors.mean(0)
        one = {
            "ridge": ridge,
            "error": float(mean.mean()),
            "error_small_blocks": float(mean[small].mean()),
            "stderr": float(errors.mean(1).std(ddof=1) / np.sqrt(len(errors))),
            "spearman_with_default": spearman(mean, default),
        }
        table.append(one)
        print(
            f"{ridge:<10g}{one['error']:.4f} +- {one['stderr']:.4f}{one['error_small_blocks']:37.4f}"
            f"{one['spearman_with_default']:25.4f}"
        )
    result = {
        "benchmark": "linear_replacement",
        "model": handle.info.id,
        "rows": tokens.info.rows,
        "tokens": tokens.info.tokens,
        "sampled_tokens": len(states),
        "pass_seconds": whole - added,
        "added_seconds": added,
        "added_share": share,
        "ridges": table,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": versions(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
