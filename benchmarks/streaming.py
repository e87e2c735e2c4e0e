"""Streaming a generated 2-billion-parameter bf16 checkpoint: memory, speed beside disk offload, export beside cp.

    python benchmarks/streaming.py [--layers 32] [--batches 16] [--tokens 16] [--repeats 2] [--folder DIR]

Every part runs in a process of its own, whose anonymous memory (RssAnon) and resident memory (VmRSS, with mapped files
and the libraries' code) are sampled. Streaming and disk offload take turns. The checkpoint is made in a temporary
folder and removed at the end (9 GB of disk with the export and its copy). `--limit` runs the streamed parts in a
control group of 2.5 GiB, where this user may make one. Prints a table, then one JSON line. All parts use the threads of
OMP_NUM_THREADS and the page cache as they find it.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.generated_checkpoint import VOCABULARY, write_checkpoint  # noqa: E402
from benchmarks.watched import resident, run_watched  # noqa: E402
from shortviz.progress import Watch

LIMIT = 5 * 2**29


def main() -> None:
    """Run all parts, or the one that a child process was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--limit", action="store_true")
    parser.add_argument("--folder", type=Path, default=None, help="where the temporary folder is made")
    parser.add_argument("--part", choices=("make", "stream", "offload", "export"), default=None)
    parser.add_argument("--model", type=Path, default=None)
    args = parser.parse_args()
    if args.part is not None:
        print(json.dumps(PARTS[args.part](args)), flush=True)
        return
    with tempfile.TemporaryDirectory(prefix="shortviz-bench-", dir=args.folder) as room:
        args.model = Path(room) / "model"
        found = {"make": run_part("make", args)}
        turns = [(run_part("stream", args), run_part("offload", args)) for _ in range(args.repeats)]
        for name, rounds in zip(("stream", "offload"), zip(*turns, strict=True), strict=True):
            found[name] = min(rounds, key=lambda one: one["seconds"])
            found[name]["all_seconds"] = [one["seconds"] for one in rounds]
            found[name]["peak_bytes"] = max(one["peak_bytes"] for one in rounds)
        report(args, found | {"export": run_part("export", args)})


def run_part(part: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return what a child process found, with its peak RssAnon."""
    command = [sys.executable, __file__, "--part", part, "--model", str(args.model)]
    command += ["--layers", str(args.layers), "--batches", str(args.batches), "--tokens", str(args.tokens)]
    limited = args.limit and part in ("stream", "export")
    out, peaks = run_watched(command, LIMIT if limited else None)
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    found |= {"peak_bytes": peaks["RssAnon"], "peak_resident_bytes": peaks["VmRSS"], "limited": limited}
    print(f"{part}: {found}", file=sys.stderr, flush=True)
    return found


def make(args: argparse.Namespace) -> dict[str, Any]:
    """Write the checkpoint."""
    return {"bytes": write_checkpoint(args.model, args.layers)}


def token_rows(args: argparse.Namespace) -> Any:
    """Return one row a batch."""
    import numpy as np

    from shortviz.records.text import TextInfo, TokenSet

    draw = np.random.default_rng(0)
    rows = tuple(draw.integers(0, VOCABULARY, args.tokens).astype(np.int64) for _ in range(args.batches))
    info = TextInfo(source="random", rows=len(rows), tokens=len(rows) * args.tokens, fingerprint="benchmark")
    return TokenSet(rows=rows, info=info)


def stream(args: argparse.Namespace) -> dict[str, Any]:
    """Measure all distances, streamed."""
    from shortviz.records.model import ModelRef
    from shortviz.streaming.distances import measure_streamed
    from shortviz.streaming.model import open_streamed

    began, read = time.perf_counter(), read_bytes()
    with open_streamed(ModelRef(id=str(args.model))) as model:
        opened = time.perf_counter()
        found = measure_streamed(model, token_rows(args), batch_size=1)
        parameters, dtype = model.info.parameters, model.info.dtype
    seconds = time.perf_counter() - opened
    return {
        "parameters": parameters,
        "dtype": dtype,
        "open_seconds": opened - began,
        "seconds": seconds,
        "read": read_bytes() - read,
        "angular_last": found.criteria["angular_last"].row(1).tolist(),
    }


def offload(args: argparse.Namespace) -> dict[str, Any]:
    """Measure all distances of the same rows with accelerate's disk offload: every batch reads every layer."""
    import torch
    from transformers import AutoModelForCausalLM

    from shortviz.measure.distances import measure_distances
    from shortviz.model.handle import ModelHandle
    from shortviz.model.load import model_info
    from shortviz.records.model import ModelRef
    from tests.support.families import tiny_tokenizer

    began, read = time.perf_counter(), read_bytes()
    places: dict[str, str] = {f"model.layers.{i}": "disk" for i in range(args.layers)}
    places |= {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    with tempfile.TemporaryDirectory(dir=args.model.parent) as folder:
        model = AutoModelForCausalLM.from_pretrained(
            args.model, dtype=torch.float32, device_map=places, offload_folder=folder
        )
        model.eval().requires_grad_(False)
        info = model_info(
            model, id="offload", revision=None, reason="", device="cpu", layer_cache_bytes=(1,) * args.layers
        )
        handle = ModelHandle(model=model, tokenizer=tiny_tokenizer(), info=info, ref=ModelRef(id="offload"))
        opened = time.perf_counter()
        found = measure_distances(handle, token_rows(args), batch_size=1)
    return {
        "open_seconds": opened - began,
        "seconds": time.perf_counter() - opened,
        "read": read_bytes() - read,
        "angular_last": found.criteria["angular_last"].row(1).tolist(),
    }


def export(args: argparse.Namespace) -> dict[str, Any]:
    """Export with layers removed, streamed; then copy the result with cp -r, twice each, alternating."""
    from shortviz.records.model import ModelRef
    from shortviz.records.plan import PrunePlan
    from shortviz.streaming import proof
    from shortviz.streaming.export import export_streamed

    proof.free_memory = lambda _: 0  # as on a machine where the short model does not fit either
    plan = PrunePlan(
        num_layers=args.layers, removed=tuple(range(args.layers // 4, args.layers // 4 + args.layers // 2))
    )
    writes, copies, whole = [], [], []
    copying = {"RssAnon": 0, "VmRSS": 0}  # before anything of the proof is in memory, but for the libraries
    for _ in range(2):
        times: dict[str, float] = {}

        def note(progress: Any, times: dict[str, float] = times) -> None:
            times.setdefault(progress.stage, time.perf_counter())
            if progress.stage == "write" and not writes:
                now = resident()
                copying.update({name: max(peak, now[name]) for name, peak in copying.items()})

        room = Path(tempfile.mkdtemp(dir=args.model.parent))
        began = time.perf_counter()
        report = export_streamed(ModelRef(id=str(args.model)), lambda _: plan, room / "out", watch=Watch(note))
        whole.append(time.perf_counter() - began)
        writes.append(times["stream original"] - times["write"])
        began = time.perf_counter()
        subprocess.run(["cp", "-r", str(room / "out"), str(room / "copy")], check=True)
        copies.append(time.perf_counter() - began)
        shutil.rmtree(room)
    return {
        "bytes": report.bytes,
        "write_seconds": writes,
        "cp_seconds": copies,
        "whole_seconds": whole,
        "max_logit_diff": report.max_logit_diff,
        "copying_bytes": copying["RssAnon"],
        "copying_resident_bytes": copying["VmRSS"],
    }


PARTS = {"make": make, "stream": stream, "offload": offload, "export": export}


def read_bytes() -> int:
    """Return the bytes that this process has asked its files for (rchar); mapped pages are not counted there."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))


def report(args: argparse.Namespace, found: dict[str, dict[str, Any]]) -> None:
    """Print the table and the JSON line."""
    streamed, other, exported = found["stream"], found["offload"], found["export"]
    difference = max(abs(a - b) for a, b in zip(streamed["angular_last"], other["angular_last"], strict=True))
    weights = found["make"]["bytes"]
    kept = exported["bytes"]
    write, copy = min(exported["write_seconds"]), min(exported["cp_seconds"])
    lines = [
        f"{streamed['parameters'] / 1e9:.2f} billion parameters, {weights / 1e9:.2f} GB of bf16 in {args.layers + 1} "
        f"files; {args.batches} batches of 1 row, {args.tokens} tokens; computed in {streamed['dtype']}.",
        f"{'':24}{'seconds':>10}{'peak RssAnon':>16}{'peak resident':>16}{'weights read':>16}",
        row("streamed measurement", streamed, streamed["seconds"], streamed["read"]),
        row("accelerate disk offload", other, other["seconds"], args.batches * weights),
        f"ratio {other['seconds'] / streamed['seconds']:.2f} (best of {args.repeats} each, taking turns); angular_last "
        f"at n = 1 differs by {difference:g}. Read: asked of the files; by arithmetic for offload, which maps them.",
        row("streamed export, writing", exported, write, kept),
        f"while it copied: RssAnon {exported['copying_bytes'] / 2**30:.2f} GiB, resident "
        f"{exported['copying_resident_bytes'] / 2**30:.2f} GiB; the rest is the streamed proof.",
        f"cp -r of the same bytes {copy:.2f} s; the export writes at {copy / write:.0%} of its speed; with hashes and "
        f"the streamed proof {min(exported['whole_seconds']):.1f} s, logits differ by {exported['max_logit_diff']:g}",
    ]
    print("\n".join(lines))
    machine = {"machine": platform.processor() or platform.machine(), "threads": os.environ.get("OMP_NUM_THREADS")}
    short = {part: {k: v for k, v in values.items() if k != "angular_last"} for part, values in found.items()}
    print(json.dumps({"benchmark": "streaming", **machine, "layers": args.layers, **short}))


def row(name: str, part: dict[str, Any], seconds: float, read: float) -> str:
    """Return a line of the table."""
    memory = f"{part['peak_bytes'] / 2**30:12.2f} GiB{part['peak_resident_bytes'] / 2**30:12.2f} GiB"
    return f"{name:24}{seconds:10.2f}{memory}{read / 1e9:13.2f} GB"


if __name__ == "__main__":
    main()
