"""What `repair`, `shrink` and `heal` share: the ledger of a cut as it grows, kept in a run, and the export."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shortviz.progress import Watch

if TYPE_CHECKING:
    from shortviz.handle import ModelHandle
    from shortviz.ledger import Ledger
    from shortviz.records import Evaluation, ExportReport, TaskRows, TaskScore, TextInfo, WindowSet

RunOption = Annotated[
    Path | None, typer.Option("--out", metavar="RUN", help="Run directory to keep the ledger in, for show and advise.")
]
ExportOption = Annotated[
    Path | None, typer.Option("--export", metavar="FOLDER", help="Write the model, proved; must be new or empty.")
]


class LedgerWork:
    """The ledger of one cut: every model is scored on the same windows, and on the same questions where there are."""

    def __init__(self, base: "ModelHandle", windows: "WindowSet", questions: "TaskRows | None", watch: Watch) -> None:
        from shortviz.losses import BaseScores

        self.base, self.windows, self.questions, self.watch = base, windows, questions, watch
        self.base_scores = BaseScores(base)
        self.ledger: Ledger
        self.newest: Evaluation
        """Of the model that was scored last."""

    def open(self, cut: "ModelHandle") -> None:
        """Score the uncut and the cut model."""
        from shortviz.ledger_steps import start_ledger

        self.newest = self._evaluate(cut, self.watch)
        self.ledger = start_ledger(self.newest, uncut_task=self._score(self.base), cut_task=self._score(cut))

    def add(self, handle: "ModelHandle", *, whatever_stop: bool = False) -> None:
        """Score a treated model; with `whatever_stop` its windows even after a stop, for it is what the stop left."""
        from shortviz.ledger import treated_name
        from shortviz.ledger_steps import add_step

        self.newest = self._evaluate(handle, Watch(self.watch.on_progress) if whatever_stop else self.watch)
        self.ledger = add_step(
            self.ledger,
            treated_name(handle.treatments),
            self.newest,
            handle.treatments,
            task=self._score(handle),
        )

    def _evaluate(self, handle: "ModelHandle", watch: Watch) -> "Evaluation":
        from shortviz.losses import evaluate

        return evaluate(handle, self.windows, base=self.base, base_scores=self.base_scores, watch=watch)

    def _score(self, handle: "ModelHandle") -> "TaskScore | None":
        """Return the accuracy where every question was answered; None after a stop, which loses nothing else."""
        if self.questions is None or self.watch.stopped:
            return None
        from shortviz.tasks import whole_score

        return whole_score(handle, self.questions, watch=self.watch)

    def export(self, handle: "ModelHandle", folder: Path) -> "ExportReport":
        """Write a model and prove it."""
        from shortviz.export import export_checkpoint

        return export_checkpoint(handle, folder, base_info=self.base.info, evaluation=self.newest, watch=self.watch)

    def save(self, out: Path, text: "TextInfo") -> None:
        """Add the ledger to the run in a folder; a new run is one of the text that was fitted to."""
        from shortviz import runs

        known = (out / runs.FILE).is_file()
        run = runs.load_run(out) if known else runs.new_run(self.base.info, text)
        runs.save_run(runs.with_ledger(run, self.ledger), out)


def kept_line(out: Path | None) -> list[str]:
    """Return the line that says where the ledger is kept."""
    return [] if out is None else [f"The ledger is kept in {out}; see shortviz show, and shortviz advise."]


def report_lines(report: "ExportReport | None") -> list[str]:
    """Return what is said of an export."""
    from shortviz.cli_output import export_text

    return [] if report is None else [export_text(report)]
