"""Whether --search finds the best start of the exhaustive map, and at what share of the naive cost.

Every block n <= --max-n is measured on every window (by replay), which gives the best starts to find; kept in --table,
so that the benchmark can be run again. Then the search runs for real. Its cost and the naive loop's (prune, full
forward, loss) are counted exactly: layers run, and heads, a head as so many layers as its weights are larger; and in
seconds, the naive loop's from a seeded sample of blocks run between the search's windows, extrapolated by the count.
Prints a table, then one JSON line.

    python benchmarks/search.py                       # 16 windows x 128 tokens: about 40 minutes on one thread
    python benchmarks/search.py --table TABLE.npy     # with the exhaustive measurement made before: about 10 minutes
    python benchmarks/search.py --table TABLE.npy --no-search     # seconds: elimination rules compared on the table
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from loss_map import Clock, naive_nll

from shortviz.files import versions
from shortviz.measure.loss_map import open_engine
from shortviz.measure.search import SearchResult, SuccessiveElimination, search_best_starts
from shortviz.model.handle import ModelHandle
from shortviz.model.load import load
from shortviz.progress import NO_WATCH, Progress, Watch
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block
from shortviz.records.table import Table, right
from shortviz.records.text import TextSpec, WindowSet, WindowSpec
from shortviz.text.tokens import make_windows


def exhaustive(handle: ModelHandle, windows: WindowSet, max_n: int, table: Path | None) -> np.ndarray:
    """Return the increase in NLL of every block on every window, shape (windows, max_n, L); NaN outside."""
    layers = handle.info.num_layers
    found = np.full((len(windows.tokens), max_n, layers), np.nan)
    if table is not None and table.exists():
        known = np.load(table)
        found[: len(known)] = known[: len(found)]
    engine = open_engine(handle, windows.tokens[0])
    blocks = [Block(start=s, n=n) for n in range(1, max_n + 1) for s in range(layers - n + 1)]
    for index, tokens in enumerate(windows.tokens):
        if np.isfinite(found[index, 0, 0]):
            continue
        opened = engine.open(tokens)
        measured = opened.losses(blocks, NO_WATCH)
        for block, nll in zip(measured[0], measured[1][0], strict=True):
            found[index, block.n - 1, block.start] = nll - opened.base.nll
        if table is not None:
            np.save(table, found)
        print(f"  exhaustive: window {index + 1} of {len(found)}", flush=True)
    return found


def head_layers(handle: ModelHandle) -> float:
    """Return how many layers the head counts for: its weights over those of a layer."""
    head = handle.model.get_output_embeddings()
    return sum(p.numel() for p in head.parameters()) / float(np.mean(handle.info.layer_parameters))


def naive_work(layers: int, max_n: int, windows: int, head: float) -> float:
    """Return the layer runs of pruning and running every block on every window."""
    return windows * sum((layers - n + 1) * (layers - n + head) for n in range(1, max_n + 1))


def eliminate(
    table: np.ndarray, handle: ModelHandle, windows: WindowSet, z: float
) -> tuple[SearchResult, float, float]:
    """Return what the elimination finds on measured losses, and its exact work: (result, layers, layers with heads)."""
    layers, head = handle.info.num_layers, head_layers(handle)
    elimination, runs, heads = SuccessiveElimination(handle.info, table.shape[1], z=z), 0.0, 0.0
    for window in table:
        wanted = elimination.wanted()
        if not wanted:
            break
        runs += 2 * layers + sum(
            layers - b.start - b.n for b in wanted
        )  # the uncut model is run twice: loss, boundaries
        heads += 2 + len(wanted)
        elimination.add(wanted, np.array([window[b.n - 1, b.start] for b in wanted]))
    return elimination.result(windows.info, len(table)), runs, runs + head * heads


def agreement(table: np.ndarray, found: SearchResult) -> dict[str, int]:
    """Return in how many rows the search's start is the best of the whole map, or tied with it.

    Tied: within two standard errors of the paired difference over all windows, which the search did not see all.
    """
    same = tied = 0
    for row in found.rows:
        values = table[:, row.n - 1]
        best = int(np.nanargmin(values.mean(0)))
        gap = values[:, row.start] - values[:, best]
        same += row.start == best
        tied += bool(gap.mean() <= 2 * gap.std(ddof=1) / np.sqrt(len(gap)))
    return {"rows": len(found.rows), "same_start": same, "same_or_tied": tied}


def timed_search(handle: ModelHandle, windows: WindowSet, max_n: int, per_window: int) -> dict[str, float]:
    """Return seconds of the real search and of the naive loop, a few blocks of it after each window."""
    layers, head = handle.info.num_layers, head_layers(handle)
    draw = np.random.default_rng(0)
    blocks = [Block(start=s, n=n) for n in range(1, max_n + 1) for s in range(layers - n + 1)]
    tokens = torch.tensor(windows.tokens)
    ours, naive, sampled = Clock(), Clock(), [0.0]

    def take_turns(progress: Progress) -> None:
        ours.stop()
        naive.start()
        for index in draw.choice(len(blocks), per_window, replace=False):
            naive_nll(handle, blocks[index], tokens[int(progress.done) - 1])
            sampled[0] += layers - blocks[index].n + head
        naive.stop()
        print(f"  search: window {progress.done:.0f}, {progress.detail}", flush=True)
        ours.start()

    ours.start()
    search_best_starts(handle, windows, max_n=max_n, watch=Watch(take_turns))
    ours.stop()
    scale = naive_work(layers, max_n, len(tokens), head) / sampled[0]
    return {
        "search_seconds": ours.wall,
        "search_cpu_seconds": ours.cpu,
        "naive_seconds_extrapolated": naive.wall * scale,
        "naive_cpu_seconds_extrapolated": naive.cpu * scale,
        "naive_share_really_run": 1 / scale,
        "ratio_seconds": naive.wall * scale / ours.wall,
        "ratio_cpu": naive.cpu * scale / ours.cpu,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--shape", default="16x128", help="windows x tokens")
    parser.add_argument("--max-n", type=int, default=15)
    parser.add_argument("--table", type=Path, help="where the exhaustive measurement is kept (.npy)")
    parser.add_argument("--naive", type=int, default=4, help="blocks of the naive loop after each window")
    parser.add_argument("--no-search", action="store_true")
    options = parser.parse_args()
    count, length = (int(part) for part in options.shape.split("x"))
    handle = load(ModelRef(id=options.model, dtype="float32", device="cpu"))
    text = TextSpec(kind="builtin", value="passages")
    windows = make_windows(text, WindowSpec(window=length, windows=count), handle.tokenizer)
    count = len(windows.tokens)
    began = time.perf_counter()
    table = exhaustive(handle, windows, options.max_n, options.table)
    head = head_layers(handle)
    naive = [naive_work(handle.info.num_layers, options.max_n, count, h) for h in (0.0, head)]
    rules, lines = [], []
    for z in (4.0, 3.0, 2.5, 2.0):
        found, runs, work = eliminate(table, handle, windows, z)
        one = {"z": z} | agreement(table, found)
        one |= {"ratio_layers": naive[0] / runs, "ratio_with_heads": naive[1] / work}
        one |= {"cells": found.cells_measured, "cells_exhaustive": found.cells_exhaustive}
        rules.append(one)
        starts = [f"{one[name]} of {one['rows']}" for name in ("same_start", "same_or_tied")]
        ratios = [f"1/{one[name]:.2f}" for name in ("ratio_layers", "ratio_with_heads")]
        lines.append([f"{z:.1f}", *starts, *ratios, f"{one['cells']} of {one['cells_exhaustive']}"])
    print(Table(right("z", "same start", "same or tied", "layer runs", "with heads", "cells"), lines).text())
    timed = {} if options.no_search else timed_search(handle, windows, options.max_n, options.naive)
    for name, value in timed.items():
        print(f"{name:34}{value:12.3f}")
    result = {
        "benchmark": "search",
        "model": handle.info.id,
        "windows": count,
        "window": length,
        "max_n": options.max_n,
        "head_layers": head,
        "rules": rules,
        **timed,
        "all_seconds": time.perf_counter() - began,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": versions(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
