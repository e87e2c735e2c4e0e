"""measure_losses against the naive loop (prune, full forward, loss; no reuse) over the same blocks and tokens.

Both take turns, group of rows by group of rows, in one process, so that a busy machine slows both alike. The naive loop
computes the NLL only; measure_losses computes the KL divergence too. Prints a table, then one JSON line.

    python benchmarks/loss_map.py                      # 1 window x 128 tokens, then 4 x 256: an hour on one thread
    python benchmarks/loss_map.py --shapes 1x128       # about 5 minutes on two cores
    python benchmarks/loss_map.py --shapes 4x256 --sample 48    # 48 blocks spread evenly over n and start: minutes

With --sample both sides measure only those blocks, window by window, through the engine of measure_losses: the uncut
model's two passes are then shared by 48 blocks, not by 464, which the ratio bears.
"""

import argparse
import json
import platform
import time
from dataclasses import dataclass, field

import numpy as np
import torch
import transformers

from shortviz.measure.loss_map import measure_losses, open_engine
from shortviz.model.handle import ModelHandle
from shortviz.model.load import load
from shortviz.model.prune import prune
from shortviz.progress import NO_WATCH, Progress, Watch
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.table import Table, left, right
from shortviz.records.text import TextSpec, WindowSet, WindowSpec
from shortviz.text.tokens import make_windows


@dataclass
class Clock:
    """Wall and processor seconds, summed over several stretches."""

    wall: float = 0.0
    cpu: float = 0.0
    _since: tuple[float, float] = field(default=(0.0, 0.0))

    def start(self) -> None:
        """Begin a stretch."""
        self._since = (time.perf_counter(), time.process_time())

    def stop(self) -> None:
        """End it."""
        self.wall += time.perf_counter() - self._since[0]
        self.cpu += time.process_time() - self._since[1]


@torch.inference_mode()
def naive_nll(handle: ModelHandle, block: Block, tokens: torch.Tensor) -> float:
    model = prune(handle, PrunePlan.of_blocks(handle.info.num_layers, block)).model
    logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1]
    # Not F.cross_entropy: in float32 it adds up 49k exponentials in a row, and its mean was 1.8e-5 off from float64.
    return float((logits.logsumexp(-1) - logits.gather(-1, tokens[1:, None])[:, 0]).double().mean())


def compare(handle: ModelHandle, windows: WindowSet) -> dict[str, float | int | str]:
    ours, naive = Clock(), Clock()
    tokens = torch.tensor(windows.tokens)
    count = len(tokens)
    slow = np.full((count, handle.info.num_layers, handle.info.num_layers), np.nan)

    def take_turns(progress: Progress) -> None:
        ours.stop()
        record = progress.snapshot() if progress.snapshot else None
        assert record is not None
        naive.start()
        for window in range(count):
            for row, start in np.argwhere((record.windows > window) & np.isnan(slow[window])):
                slow[window, row, start] = naive_nll(handle, Block(start=int(start), n=int(row) + 1), tokens[window])
        naive.stop()
        done = f"{progress.done:.0f} of {progress.total:.0f} blocks, {progress.detail}"
        print(f"  {done}: {naive.cpu / ours.cpu:.3f} times faster (processor time)", flush=True)
        ours.start()

    handle.model(input_ids=tokens[:1])
    ours.start()
    losses = measure_losses(handle, windows, coarse_tokens=0, watch=Watch(take_turns))
    ours.stop()
    cells = np.isfinite(losses.nll.mean)
    return {
        "windows": count,
        "window": int(tokens.shape[1]),
        "blocks": int(cells.sum()),
        "naive_seconds": round(naive.wall, 2),
        "measure_losses_seconds": round(ours.wall, 2),
        "speedup": round(naive.wall / ours.wall, 3),
        "naive_cpu_seconds": round(naive.cpu, 2),
        "measure_losses_cpu_seconds": round(ours.cpu, 2),
        "speedup_cpu": round(naive.cpu / ours.cpu, 3),
        "max_nll_difference": float(np.abs(losses.nll.mean - slow.mean(0))[cells].max()),
        "replayed": str(losses.replayed),
    }


def sample(num_layers: int, count: int, seed: int) -> list[Block]:
    """Return so many blocks of n < L spread evenly over the map, row by row, from a random first one."""
    blocks = [Block(start=s, n=n) for n in range(1, num_layers) for s in range(num_layers - n + 1)]
    places = (np.arange(count) + np.random.default_rng(seed).random()) * len(blocks) / count
    return [blocks[int(place)] for place in places]


def compare_sample(handle: ModelHandle, windows: WindowSet, blocks: list[Block]) -> dict[str, float | int | str]:
    """Return the comparison over some blocks; window by window, the sides take turns at going first."""
    ours, naive = Clock(), Clock()
    tokens = torch.tensor(windows.tokens)
    engine = open_engine(handle, windows.tokens[0])
    naive_nll(handle, blocks[0], tokens[0])
    largest = 0.0
    for index in range(len(tokens)):
        fast: dict[Block, float] = {}
        slow: dict[Block, float] = {}

        def by_engine(index: int = index, fast: dict[Block, float] = fast) -> None:
            ours.start()
            measured = engine.open(windows.tokens[index]).losses(blocks, NO_WATCH)
            ours.stop()
            fast.update(zip(measured[0], measured[1][0].tolist(), strict=True))

        def by_loop(index: int = index, slow: dict[Block, float] = slow) -> None:
            naive.start()
            slow.update({block: naive_nll(handle, block, tokens[index]) for block in blocks})
            naive.stop()

        for side in (by_engine, by_loop) if index % 2 == 0 else (by_loop, by_engine):
            side()
        largest = max([largest, *(abs(fast[block] - slow[block]) for block in blocks)])
        print(f"  window {index + 1}: {naive.cpu / ours.cpu:.3f} times faster (processor time)", flush=True)
    return {
        "windows": len(tokens),
        "window": int(tokens.shape[1]),
        "blocks": len(blocks),
        "naive_seconds": round(naive.wall, 2),
        "measure_losses_seconds": round(ours.wall, 2),
        "speedup": round(naive.wall / ours.wall, 3),
        "naive_cpu_seconds": round(naive.cpu, 2),
        "measure_losses_cpu_seconds": round(ours.cpu, 2),
        "speedup_cpu": round(naive.cpu / ours.cpu, 3),
        "max_nll_difference": largest,
        "replayed": str(engine.replayed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--shapes", nargs="+", default=["1x128", "4x256"], help="windows x tokens")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--sample", type=int, default=0, help="only so many blocks, spread over the map; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    handle = load(ModelRef(id=options.model, dtype="float32", device="cpu"))
    text = TextSpec(kind="builtin", value="passages/prose")
    results = []
    for shape in options.shapes:
        count, window = (int(part) for part in shape.split("x"))
        windows = make_windows(text, WindowSpec(window=window, windows=count), handle.tokenizer)
        if options.sample:
            blocks = sample(handle.info.num_layers, options.sample, options.seed)
            results.append(compare_sample(handle, windows, blocks))
        else:
            results.append(compare(handle, windows))
    rows = [[name, *(str(result[name]) for result in results)] for name in results[0]]
    print(Table(left("") + right(*options.shapes), rows).text())
    machine = {
        "model": handle.info.id,
        "processor": platform.machine(),
        "threads": options.threads,
        "sample": options.sample,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps({"benchmark": "loss_map", **machine, "results": results}))


if __name__ == "__main__":
    main()
