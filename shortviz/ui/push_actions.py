"""Pushing an exported folder as a job. The token is in the work alone, and goes with it."""

from pathlib import Path
from typing import TYPE_CHECKING

from shortviz.progress import Watch
from shortviz.records import ModelRef
from shortviz.ui.resources import Bench, JobContext

if TYPE_CHECKING:
    from shortviz.hub_push import Destination, PushReport


def start_push(bench: Bench, ref: ModelRef, folder: Path, to: "Destination") -> str:
    """Push the folder to the hub; the result is a PushReport."""

    def work(watch: Watch) -> "PushReport":
        from shortviz.hub_push import push_folder

        return push_folder(folder, to, watch=watch)

    context = JobContext(kind="push", ref=ref, folder=str(folder), target=to.repo_id)
    return bench.submit(context, f"Push to {to.repo_id}", work)
