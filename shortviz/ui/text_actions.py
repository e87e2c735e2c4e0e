"""Distances on several texts as one job, each into its own run; torch is imported in the background thread."""

from collections.abc import Sequence

from shortviz.progress import Watch
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
                words = f"text {number} of {len(specs)}, {spec.value[:40]}"
                actions.measure_run(bench, ref, spec, key, watch.labelled(detail=words, snapshot=None))
            keys.append(key)
        return tuple(keys)

    context = JobContext(kind="texts", ref=ref, texts=tuple(specs))
    return bench.submit(context, f"Distances of {ref.id} on {len(specs)} texts", work)
