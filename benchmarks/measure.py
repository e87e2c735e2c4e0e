"""What measure_distances costs beside the bare forward pass of the same batches: seconds and memory, in one run.

    python benchmarks/measure.py [--model demo] [--rows 64] [--max-length 256] [--batch-size 8] [--repeats 3]

The bare pass runs the same batches through the decoder without LM head. Both alternate batch by batch (the bare one in
the progress callback), so that a busy machine slows both; medians over the repeats are reported. Memory is the peak
resident set above the loaded model, from a thread that samples it every 5 ms. Prints a table, then one JSON line.
"""

import argparse
import json
import platform
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import psutil
import torch

from shortviz import TextSpec, criteria
from shortviz.files import versions
from shortviz.measure.batches import batches_by_length
from shortviz.measure.distances import measure_distances
from shortviz.model.layers import layer_stack
from shortviz.model.load import load
from shortviz.progress import Progress, Watch
from shortviz.records.model import ModelRef
from shortviz.records.text import TokenSet
from shortviz.text.tokens import DEFAULT_CALIBRATION, tokenize


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Yield a list whose only entry is, at the end, the peak resident set in bytes above that at the start."""
    process, done, peak = psutil.Process(), threading.Event(), [0]
    start = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss - start)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--text", help="a text file; the built-in Python reference if left out")
    parser.add_argument("--linear-replacement", action="store_true", help="measure that criterion too")
    options = parser.parse_args()

    handle = load(ModelRef(id=options.model))
    spec = replace(DEFAULT_CALIBRATION, limit=options.rows, max_length=options.max_length)
    if options.text:
        spec = TextSpec(kind="file", value=options.text, limit=options.rows, max_length=options.max_length)
    tokens = tokenize(spec, handle.tokenizer)
    batches = batches_by_length(tokens.rows, options.batch_size)
    chosen = [c for c in criteria.names() if c != "linear_replacement" or options.linear_replacement]
    decoder = layer_stack(handle.model).decoder

    def bare(rows: list) -> float:
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        for line, row in zip(ids, rows, strict=True):
            line[: len(row)] = torch.tensor(row)
        began = time.perf_counter()
        with torch.inference_mode():
            decoder(input_ids=ids.to(handle.model.device), use_cache=False)
        return time.perf_counter() - began

    def one_pass() -> dict[str, list[float]]:
        """Measure all rows once; after each batch, while the pass waits, run the bare pass of the same batch."""
        seconds: dict[str, list[float]] = {"bare": [], "measured": []}
        clock = [time.perf_counter()]

        def after_batch(_progress: Progress) -> None:
            seconds["measured"].append(time.perf_counter() - clock[0])
            seconds["bare"].append(bare(batches[len(seconds["bare"])]))
            clock[0] = time.perf_counter()

        measure_distances(handle, tokens, criteria=chosen, batch_size=options.batch_size, watch=Watch(after_batch))
        return seconds

    bare(batches[0])  # warm: first calls pay for thread pools and kernels
    with peak_memory() as bare_peak:
        bare(batches[0])
    first = TokenSet(rows=tuple(batches[0]), info=tokens.info)
    with peak_memory() as measured_peak:
        measure_distances(handle, first, criteria=chosen, batch_size=options.batch_size)
    times: dict[str, list[float]] = {"bare": [], "measured": []}
    ratios = []
    for _ in range(options.repeats):
        seconds = one_pass()
        ratios += [m / b for m, b in zip(seconds["measured"], seconds["bare"], strict=True)]
        for name, values in seconds.items():
            times[name].append(sum(values))

    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "benchmark": "measure",
        "model": handle.info.id,
        "rows": tokens.info.rows,
        "tokens": tokens.info.tokens,
        "batch_size": options.batch_size,
        "criteria": chosen,
        "bare_seconds": medians["bare"],
        "measure_seconds": medians["measured"],
        "ratio": medians["measured"] / medians["bare"],
        "ratio_by_batch_median": statistics.median(ratios),
        "bare_peak_bytes": bare_peak[0],
        "measure_peak_bytes": measured_peak[0],
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores",
        "versions": versions(),
    }
    print(f"{handle.info.id}: {tokens.info.rows} rows, {tokens.info.tokens} tokens, batch {options.batch_size}")
    labels = {"bare": "bare forward pass, no LM head", "measured": "measure_distances"}
    for name, peak in (("bare", bare_peak[0]), ("measured", measured_peak[0])):
        print(f"{labels[name]:34}{medians[name]:9.2f} s   peak +{peak / 1e6:.0f} MB")
    print(f"{'ratio of medians':34}{result['ratio']:9.3f}   per batch {result['ratio_by_batch_median']:.3f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
