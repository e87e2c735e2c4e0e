"""Choosing where the states between layers go, and how many tokens of each row are kept, before anything is run."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import psutil
import torch

from shortviz.errors import ResourceError, ShortvizError
from shortviz.placement import free_memory
from shortviz.settings import settings
from shortviz.state_store import BatchShape, StatePlan, sampled_positions
from shortviz.streamed_model import StreamedModel
from shortviz.token_sample import TokenSample
from shortviz.words import size

TOKENS_PER_ROW = 32
"""Tokens of a row that are kept at every boundary where not all fit."""
_CPU = torch.device("cpu")


@contextmanager
def planned_states(
    model: StreamedModel,
    shapes: tuple[BatchShape, ...],
    sample: TokenSample | None,
    *,
    tokens_per_row: int | None,
    memory_bytes: int | None,
    file: Path | None,
    processes: int = 1,
) -> Iterator[StatePlan]:
    """Yield the plan: all tokens where they fit, else a sample of each row, stated in the plan; a temporary file goes.

    Up to `memory_bytes` (by default half of what is free beside the weights) stay in memory, unless `file` says where
    to keep them for a run that can be resumed. A file takes at most half of the free disk before tokens are sampled.
    Each of several `processes` on this machine counts on its share of what is free.
    Raises ResourceError where even the sample does not fit.
    """
    if tokens_per_row is not None and tokens_per_row < 1:
        raise ShortvizError(f"{tokens_per_row} tokens of each row were asked for; keep at least 1.")
    free, among = free_memory(_CPU) // processes, f" for each of {processes} processes" if processes > 1 else ""
    room = free - (model.working_bytes if model.placement.device.type == "cpu" else 0)
    if room < 0:
        raise ResourceError(
            f"Streaming {model.info.id} needs {size(model.working_bytes)} of memory for the weights of two layers, or "
            f"the embeddings, in {model.info.dtype}, and {size(free)} is free{among}; choose --dtype bfloat16."
        )
    memory = room // 2 if memory_bytes is None else memory_bytes
    whole = StatePlan(
        hidden=model.info.hidden_size,
        dtypes=model.state_dtypes,
        shapes=shapes,
    )
    per_row = tokens_per_row or TOKENS_PER_ROW
    part = replace(whole, positions=_positions(shapes, sample, per_row), per_row=per_row)
    choices = [part] if tokens_per_row is not None else [whole, part] if part.num_bytes < whole.num_bytes else [whole]
    in_memory = next((plan for plan in choices[:1] if plan.num_bytes <= memory), None)
    if file is None and in_memory is not None:
        yield in_memory
    elif file is not None:
        yield _in_file(choices, file, processes)
    else:
        with tempfile.TemporaryDirectory(prefix="shortviz-states-", dir=disk_folder()) as folder:
            yield _in_file(choices, Path(folder) / "states", processes)


def disk_folder() -> Path:
    """Return a folder for temporary files that is on a disk: on many systems /tmp is memory."""
    folder = Path(tempfile.gettempdir()).resolve()
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    mount = next((place for place in (folder, *folder.parents) if place in mounts), None)
    if mount is None or mounts[mount] not in ("tmpfs", "ramfs"):
        return folder
    cache = settings().cache_dir.absolute()
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def _in_file(choices: Sequence[StatePlan], file: Path, processes: int) -> StatePlan:
    there = file.stat().st_size if file.is_file() else 0
    parent = next(p for p in file.parents if p.is_dir())
    free = shutil.disk_usage(parent).free // processes + there
    for plan in choices:
        if plan.num_bytes == there:  # a killed run's: what it chose is what goes on
            return replace(plan, file=file)
    for plan in choices:
        if plan.num_bytes <= (free // 2 if plan is not choices[-1] else free):
            return replace(plan, file=file)
    raise ResourceError(
        f"The states between layers need {size(choices[-1].num_bytes)}, and the disk of {parent} has {size(free)} "
        "free; free some space, or give fewer or shorter rows."
    )


def _positions(
    shapes: Sequence[BatchShape], sample: TokenSample | None, per_row: int
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    rows = count()

    def of_row(length: int) -> tuple[int, ...]:
        fitted = sample.positions(next(rows), length) if sample else ()
        return tuple(sorted({0, length - 1, *sampled_positions(length, per_row), *fitted}))

    return tuple(tuple(map(of_row, shape.lengths)) for shape in shapes)
