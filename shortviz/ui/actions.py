"""The app's work: each function puts one job on the bench and returns its id.

The work runs in a background thread that may not call streamlit. Everything that needs torch is imported in there.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from shortviz.progress import Watch
from shortviz.records import (
    ModelEstimate,
    ModelInfo,
    ModelRef,
    TextSpec,
)
from shortviz.runs import new_run
from shortviz.ui.inspect_actions import prepare
from shortviz.ui.resources import Bench, JobContext
from shortviz.ui.shelves import import_engine

if TYPE_CHECKING:
    from shortviz.handle import ModelHandle

CPU_BATCH: Final = 2
"""Rows that hold the model at a time: the map redraws, a stop is heard and a clicked block gets its turn after each."""

GPU_BATCH: Final = 8


def start_estimate(bench: Bench, ref: ModelRef) -> str:
    """Work out what loading would cost; the result is a ModelEstimate."""

    def work(watch: Watch) -> ModelEstimate:
        import_engine()
        from shortviz.loading import estimate

        return estimate(ref)

    return bench.submit(JobContext(kind="estimate", ref=ref), f"Size of {ref.id}", work, lane="inspect")


def start_load(bench: Bench, ref: ModelRef, spec: TextSpec) -> str:
    """Load the model, and have it ready for clicks that are scored on `spec`; the result is its ModelInfo."""

    def work(watch: Watch) -> ModelInfo:
        handle = bench.models.load(ref, watch)
        prepare(bench, ref, spec, handle)
        return handle.info

    return bench.submit(JobContext(kind="load", ref=ref), f"Load {ref.id}", work)


def start_measure(bench: Bench, ref: ModelRef, spec: TextSpec, key: str) -> str:
    """Measure the distance map into run `key`; partial BlockDistances stream out, the result is the key."""

    def work(watch: Watch) -> str:
        measure_run(bench, ref, spec, key, watch)
        return key

    context = JobContext(kind="measure", ref=ref, run_key=key, calibration=spec)
    return bench.submit(context, f"Distances of {ref.id}", work)


def measure_run(bench: Bench, ref: ModelRef, spec: TextSpec, key: str, watch: Watch) -> None:
    """Measure the distances on a text into run `key`; for background jobs only (torch is imported here)."""
    handle = bench.models.load(ref, watch)
    from shortviz.checkpoint import discard_checkpoint
    from shortviz.distances import measure_distances
    from shortviz.texts import tokenize

    watch.tell("read text", done=0, total=1, unit="steps")
    tokens = tokenize(spec, handle.tokenizer)
    checkpoint = bench.runs.path(key) / f"measure-{tokens.info.fingerprint[:12]}.npz"
    distances = measure_distances(
        handle,
        tokens,
        batch_size=CPU_BATCH if handle.info.device == "cpu" else GPU_BATCH,
        checkpoint=checkpoint,
        watch=watch,
    )
    bench.runs.update(
        key, lambda old: replace(old or new_run(handle.info, tokens.info), text=tokens.info, distances=distances)
    )
    if distances.samples == len(tokens.rows):
        discard_checkpoint(checkpoint)


def first_row_tokens(ids: list[int], handle: "ModelHandle") -> tuple[str, ...]:
    """Return each token as the text it stands for."""
    return tuple(handle.tokenizer.decode([token]) for token in ids)
