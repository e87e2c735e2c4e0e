"""The measured map as a job; torch is imported in the background thread."""

from dataclasses import replace

from shortviz.progress import Watch
from shortviz.records import ModelRef, Run, TextSpec
from shortviz.runs import new_run
from shortviz.ui import inspect_actions
from shortviz.ui.resources import Bench, JobContext


def start_losses(bench: Bench, ref: ModelRef, spec: TextSpec, key: str, known: Run | None) -> str:
    """Measure the loss of every block into run `key`; partial BlockLosses stream out, the result is the key.

    `known` is the run that is shown: its distances are kept beside the losses.
    """

    def work(watch: Watch) -> str:
        handle = bench.models.load(ref, watch)
        from shortviz.loss_map import measure_losses

        windows = inspect_actions.windows_of(bench, ref, spec, handle)
        checkpoint = bench.runs.path(key) / f"losses-{windows.info.fingerprint[:12]}.npz"
        losses = measure_losses(handle, windows, priority=bench.wanted_rows, checkpoint=checkpoint, watch=watch)
        bench.runs.update(key, lambda old: replace(old or known or new_run(handle.info, windows.info), losses=losses))
        if losses.complete:
            checkpoint.unlink(missing_ok=True)
        return key

    context = JobContext(kind="losses", ref=ref, run_key=key, evaluation=spec)
    return bench.submit(context, f"Losses of {ref.id}", work)
