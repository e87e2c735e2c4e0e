"""Two processes of one thread beside one process of two threads: seconds of the same measurement, and the same sums.

    python benchmarks/processes.py [--model demo] [--rows 32] [--row-tokens 256] [--size 2] [--repeats 3]

Both ways take turns, each in fresh processes; the clock runs from the moment when all have loaded the model to the
record of rank 0, adding up included. linear_replacement, whose fits are made by rank 0 alone, is left out but with
`--criteria all`. Prints a table, then one JSON line. The target is 1.1 or less.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> None:
    """Run both ways in turns, or be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--row-tokens", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--size", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--criteria", choices=("sums", "all"), default="sums")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    one, several = [], []
    for turn in range(args.repeats):
        one.append(run(args, processes=1, threads=args.size))
        several.append(run(args, processes=args.size, threads=1))
        print(
            f"turn {turn + 1}: {one[-1]['seconds']:.2f} s, {several[-1]['seconds']:.2f} s", file=sys.stderr, flush=True
        )
    report(args, one, several)


def run(args: argparse.Namespace, *, processes: int, threads: int) -> dict[str, Any]:
    """Return what rank 0 of a group of processes printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, "--worker", "--model", args.model, "--criteria", args.criteria]
    for name in ("rows", "row_tokens", "batch_size"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    children = []
    for rank in range(processes):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        place |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        place |= {"OMP_NUM_THREADS": str(threads)}
        children.append(subprocess.Popen(command, env=os.environ | place, stdout=subprocess.PIPE, text=True))
    outs = [child.communicate()[0] for child in children]
    assert all(child.returncode == 0 for child in children), "a process failed"
    found: dict[str, Any] = json.loads(outs[0].splitlines()[-1])
    return found


def work(args: argparse.Namespace) -> None:
    """Measure, alone or as one of several; rank 0 prints seconds and sums."""
    from shortviz import criteria as known
    from shortviz.criteria import info
    from shortviz.measure.distances import measure_distances
    from shortviz.measure.processes import joined
    from shortviz.model.load import load
    from shortviz.records.model import ModelRef
    from shortviz.records.text import TextSpec
    from shortviz.text.tokens import tokenize

    names = [name for name in known.names() if args.criteria == "all" or not info(name).from_sample]
    handle = load(ModelRef(id=args.model))
    spec = TextSpec(kind="builtin", value="python-reference", limit=args.rows, max_length=args.row_tokens)
    tokens = tokenize(spec, handle.tokenizer)
    with joined() as ranks:
        if ranks is not None:
            ranks.wait()
        began = time.perf_counter()
        found = measure_distances(handle, tokens, criteria=names, batch_size=args.batch_size, ranks=ranks)
        seconds = time.perf_counter() - began
    if ranks is None or ranks.writes:
        means = {name: grid.mean.ravel().tolist() for name, grid in found.criteria.items()}
        print(json.dumps({"seconds": seconds, "tokens": tokens.info.tokens, "means": means}))


def report(args: argparse.Namespace, one: list[dict[str, Any]], several: list[dict[str, Any]]) -> None:
    """Print the table and the JSON line."""
    alone, shared = (statistics.median(turn["seconds"] for turn in turns) for turns in (one, several))
    difference = max(
        abs(a - b) / max(abs(a), 1e-300)
        for name, values in one[0]["means"].items()
        for a, b in zip(values, several[0]["means"][name], strict=True)
        if a == a  # NaN where a block does not exist
    )
    print(
        f"{one[0]['tokens']} tokens in {args.rows} rows, batches of {args.batch_size}; median of {args.repeats} turns"
    )
    print(f"1 process,   {args.size} threads {alone:10.2f} s")
    print(f"{args.size} processes, 1 thread  {shared:10.2f} s   ratio {shared / alone:.2f} (target 1.10 or less)")
    print(f"largest relative difference of a mean: {difference:.2g}")
    seconds = {"one": [turn["seconds"] for turn in one], "several": [turn["seconds"] for turn in several]}
    print(
        json.dumps(
            {"benchmark": "processes", "size": args.size, **seconds, "ratio": shared / alone}
            | {"difference": difference}
        )
    )


if __name__ == "__main__":
    main()
