"""Distances on several texts as one job, each into its own run; torch is imported in the background thread."""

from collections.abc import Sequence
from dataclasses import replace

from shortviz.progress import Progress, Watch
from shortviz.records import ModelRef, TextSpec
from shortviz.ui import actions
from shortviz.ui.resources import Bench, JobContext
from shortviz.ui.shelves import run_key


def start_texts(bench: Bench, ref: ModelRef, specs: Sequence[TextSpec]) -> str:
    """Measure the distances on each text that has not been measured; the result is the keys of the runs."""

    def work(watch: Watch) -> tuple[str, ...]:
        keys: list[str] = []
        for number, spec in enumerate(specs, start=1):
            if watch.stopped:
                break
            key = run_key(ref, spec)
            known = bench.runs.get(key)
            if known is None or known.distances is None or known.distances.samples < known.text.rows:
                actions.measure_run(bench, ref, spec, key, _numbered(watch, spec, f"text {number} of {len(specs)}"))
            keys.append(key)
        return tuple(keys)

    context = JobContext(kind="texts", ref=ref, texts=tuple(specs))
    return bench.submit(context, f"Distances of {ref.id} on {len(specs)} texts", work)


def _numbered(watch: Watch, spec: TextSpec, words: str) -> Watch:
    def on_progress(progress: Progress) -> None:
        watch.on_progress(replace(progress, detail=f"{words}, {spec.value[:40]}", snapshot=None))

    return replace(watch, on_progress=on_progress)
