"""Processes that are killed, and groups of processes, for test_processes.py: one interpreter imports all, then forks.

Run as a script with a folder that holds `model` and `other`; writes what each scenario found into the folder. Forking
before torch has started any thread of its own costs nothing; starting an interpreter for each would cost seconds.
"""

# ruff: noqa: E402

import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from shortviz.errors import ShortvizError
from shortviz.measure import distances as distances_module
from shortviz.measure.distances import measure_distances
from shortviz.measure.loss_map import measure_losses
from shortviz.measure.processes import (
    Ranks,
    joined,
    share,
)
from shortviz.model.load import load
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.json import plain
from shortviz.records.measured import BlockDistances, Evaluation
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.text import TextInfo, TokenSet, WindowSet
from shortviz.streaming.distances import measure_streamed
from shortviz.streaming.losses import evaluate_streamed
from shortviz.streaming.model import open_streamed
from tests.support.families import NUM_LAYERS

HERE = Path(sys.argv[1])
MODEL = ModelRef(id=str(HERE / "model"))
distances_module.CHECKPOINT_SECONDS = 0.0


def tokens() -> TokenSet:
    draw = np.random.default_rng(3)
    rows = tuple(draw.integers(0, 256, length).astype(np.int64) for length in (9, 14, 12, 11, 34, 20, 21, 22, 5, 6, 7))
    info = TextInfo(source="random", rows=len(rows), tokens=sum(map(len, rows)), fingerprint="lab")
    return TokenSet(rows=rows, info=info)


def windows() -> WindowSet:
    found = np.random.default_rng(4).integers(0, 256, (5, 24)).astype(np.int64)
    return WindowSet(tokens=found, info=TextInfo(source="random", rows=5, tokens=120, fingerprint="lab"))


def forked(work: Callable[[], None]) -> int:
    """Run `work` in a fork and return its process id; what it raises goes to stderr and ends it with 1."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        torch.set_num_threads(1)
        work()
        code = 0
    finally:
        os._exit(code)


def ended(*pids: int) -> list[int]:
    """Return how each process ended: its exit code, or minus the signal."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def group(size: int, work: Callable[[Any], None]) -> list[int]:
    """Run `work` in `size` connected processes; return how each ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def one(rank: int) -> Callable[[], None]:
        def run() -> None:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            with joined() as ranks:
                assert (ranks is None) == (size == 1)
                work(ranks)

        return run

    return ended(*(forked(one(rank)) for rank in range(size)))


def arrays(found: BlockDistances) -> dict[str, Any]:
    named = {f"{name}.mean": grid.mean for name, grid in found.criteria.items()}
    named |= {f"{name}.stderr": grid.stderr for name, grid in found.criteria.items()}
    return named | {"rows": np.array(found.rows)}


def numbers(found: Evaluation) -> dict[str, Any]:
    """Return what two evaluations must have in common."""
    pairs = {"nll": found.score.window_nll, "tokens": found.score.tokens, "stderr": found.score.nll_stderr}
    pairs |= {"increase": found.nll_increase, "kl": found.kl, "same": found.same_top1}
    return {name: value for name, value in pairs.items() if value is not None}


def streaming_killed() -> None:
    path = HERE / "s.npz"

    def kill(progress: Any) -> None:
        if progress.done > 3.2:
            os.kill(os.getpid(), signal.SIGKILL)

    def run(on_progress: Callable[[Any], None], out: Path) -> Callable[[], None]:
        def work() -> None:
            with open_streamed(MODEL) as model:
                found = measure_streamed(model, tokens(), batch_size=2, checkpoint=path, watch=Watch(on_progress))
            np.savez(out, **arrays(found))

        return work

    seen: list[float] = []

    def note(progress: Any) -> None:
        if not seen:
            seen.append(progress.done)
            (HERE / "first.json").write_text(json.dumps(progress.done))

    ways = ended(forked(run(kill, HERE / "never.npz")))
    ways += ended(forked(run(note, HERE / "resumed.npz")))
    (HERE / "killed.json").write_text(json.dumps(ways))


def shared(size: int) -> None:
    def work(ranks: Ranks | None) -> None:
        found = measure_distances(load(MODEL), tokens(), batch_size=2, ranks=ranks)
        with open_streamed(MODEL) as model:
            streamed = measure_streamed(model, tokens(), batch_size=2, ranks=ranks)
            cuts = [PrunePlan.of_blocks(NUM_LAYERS, Block(start=s, n=n)) for s, n in ((1, 2), (4, 2))]
            evaluations = evaluate_streamed(model, windows(), cuts, ranks=ranks)
            few = windows()
            few = replace(few, tokens=few.tokens[:3])
            (uncut,) = evaluate_streamed(model, few, [], ranks=ranks)  # of four processes one has no window
        losses = measure_losses(load(MODEL), windows(), coarse_tokens=8, ranks=ranks)
        if ranks is None or ranks.writes:
            named = {f"losses.{n}": getattr(losses, n).mean for n in ("nll", "increase", "kl")}
            named |= {f"streamed.{name}": value for name, value in arrays(streamed).items()}
            for name, one in zip(("a", "b", "uncut"), (*evaluations, uncut), strict=True):
                named |= {f"cut.{name}.{key}": np.array(value) for key, value in numbers(one).items()}
            np.savez(HERE / f"ranks{size}.npz", **arrays(found), **named, complete=np.array(losses.complete))
            settled = [plain(one.settling["angular_last"]) for one in (found, streamed)]
            (HERE / f"settled{size}.json").write_text(json.dumps(settled))

    (HERE / f"ranks{size}.json").write_text(json.dumps(group(size, work)))


def limited() -> None:
    """Memory for data is limited once a streamed model is open: its first layer does not fit any more."""

    def hold() -> None:
        lines = Path("/proc/self/status").read_text().splitlines()
        used = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
        most = used + 100 * 2**20  # the loader's threads want stacks
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))

    def work(name: str) -> None:
        few = TokenSet(rows=tokens().rows[:2], info=tokens().info)
        try:
            with open_streamed(ModelRef(id=str(HERE / "wide"))) as model:
                hold()
                if name == "measured":
                    measure_streamed(model, few)
                else:
                    evaluate_streamed(model, windows(), [PrunePlan(num_layers=2, removed=(1,))])
        except ShortvizError as error:
            (HERE / f"limited-{name}.txt").write_text(f"{type(error).__name__}: {error}")

    for name in ("measured", "scored"):
        ended(forked(partial(work, name)))


def unlike() -> None:
    def work(ranks: Ranks) -> None:
        folder = HERE / ("model" if ranks.writes else "other")
        try:
            share(ranks, ModelRef(id=str(folder)), NO_WATCH)
        except ShortvizError as error:
            (HERE / f"unlike{ranks.rank}.txt").write_text(str(error))

    group(2, work)


def one_dies() -> None:
    path = HERE / "d.npz"

    def dying(ranks: Ranks) -> None:
        def kill(progress: Any) -> None:
            if not ranks.writes and progress.done > 2:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            measure_distances(load(MODEL), tokens(), batch_size=2, checkpoint=path, ranks=ranks, watch=Watch(kill))
        except ShortvizError as error:
            (HERE / "lost.txt").write_text(str(error))
            raise

    def again(ranks: Ranks) -> None:
        seen: list[float] = []
        found = measure_distances(
            load(MODEL),
            tokens(),
            batch_size=2,
            checkpoint=path,
            ranks=ranks,
            watch=Watch(lambda progress: seen.append(progress.done)),
        )
        (HERE / f"again{ranks.rank}.json").write_text(json.dumps(seen))
        if ranks.writes:
            np.savez(HERE / "again.npz", **arrays(found))

    (HERE / "died.json").write_text(json.dumps([group(2, dying), group(2, again)]))


if __name__ == "__main__":
    streaming_killed()
    for size in (1, 2, 4):
        shared(size)
    limited()
    unlike()
    one_dies()
