"""The work of `shortviz heal`, step by step, and its place among several processes."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortviz.cli_ledger_work import LedgerWork
from shortviz.cli_work_folder import check_room, check_run
from shortviz.progress import Watch

if TYPE_CHECKING:
    from shortviz.cli_options import LoadOptions
    from shortviz.handle import ModelHandle
    from shortviz.heal_settings import HealSettings
    from shortviz.healing import Healed
    from shortviz.ledger import Ledger
    from shortviz.records import ExportReport, PrunePlan, TaskRows, TextSpec, WindowSpec

CHECKPOINT = "heal-checkpoint.safetensors"
"""In the run directory, while a training is unfinished."""


class HealWork:
    """One healing on the command line."""

    def __init__(
        self, base: "ModelHandle", training: "TextSpec", settings: "HealSettings", out: Path | None, watch: Watch
    ) -> None:
        from shortviz.heal_data import split_heldout
        from shortviz.heal_quantise import check_quantiser
        from shortviz.texts import tokenize

        check_run(out, base.info.id)
        if settings.quantize == "4bit":  # told before the cut is scored and repaired
            check_quantiser(base.model.device)
        self.base, self.training, self.settings, self.out, self.watch = base, training, settings, out, watch
        tokens = tokenize(training, base.tokenizer)
        self.tokens, self.heldout = split_heldout(tokens, window=settings.length)
        self.kept: LedgerWork | None = None
        """The ledger, in the first process alone."""

    def score_on(self, spec: "TextSpec", windows: "WindowSpec", questions: "TaskRows | None") -> None:
        """Keep a ledger, scored on this text and these questions."""
        from shortviz.texts import make_windows

        cut = make_windows(spec, windows, self.base.tokenizer)
        self.kept = LedgerWork(self.base, cut, questions, self.watch)

    def cut_out(self, plan: "PrunePlan", repair: str | None, row_length: int, export: Path | None) -> None:
        """Remove the layers, repair where asked to, and begin the ledger; an export must find room on its disk."""
        from shortviz import pruning

        self.start = cut = pruning.prune(self.base, plan)
        check_room(export, cut)
        if self.kept is not None:
            self.kept.open(cut)
        if repair is None:
            return
        from shortviz.fit_text import fit_rows
        from shortviz.repair import repair as repair_cut

        rows = fit_rows(self.training, self.base.tokenizer, length=row_length, before=self.tokens)
        done = repair_cut(cut, self.base, rows, method=repair, watch=self.watch)
        if not done.applied:
            print(f"The repair was not applied. {done.treatment.note}", file=sys.stderr)
            return
        self.start = done.handle
        if self.kept is not None:
            self.kept.add(self.start)

    def train(self) -> "Healed":
        """Return what training made of the start; its checkpoint is in the run directory."""
        from shortviz.healing import heal

        return heal(
            self.start,
            self.tokens,
            self.settings,
            base=self.base,
            heldout=self.heldout,
            checkpoint=self.out / CHECKPOINT if self.out is not None else None,
            watch=self.watch,
        )

    def score(self, healed: "Healed") -> "Ledger":
        """Return the ledger, with a healed step where something was learned: what a stop left is scored too."""
        assert self.kept is not None, "this is the first process"
        if healed.applied:
            self.kept.add(healed.handle, whatever_stop=True)
        return self.kept.ledger

    def write(self, healed: "Healed", export: Path | None, adapter: Path | None) -> "ExportReport | None":
        """Write what is wanted, and return the export's report."""
        assert self.kept is not None, "this is the first process"
        if adapter is not None and healed.adapter is not None:
            from shortviz.heal_adapter import export_adapter

            export_adapter(healed.adapter, adapter, base=self.base)
        return None if export is None else self.kept.export(healed.handle, export)

    def save(self) -> None:
        """Keep the ledger in the run directory."""
        if self.out is not None and self.kept is not None:
            self.kept.save(self.out, self.tokens.info)


class together:  # noqa: N801  # a context manager used like a function
    """Join the other processes of `accelerate launch`; gives (load options for this process's device, is it the first).

    Alone, nothing happens.
    """

    def __init__(self, load: "LoadOptions") -> None:
        self._load = load
        self._state: Any = None

    def __enter__(self) -> tuple["LoadOptions", bool]:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return self._load, True
        import torch
        from accelerate import PartialState

        self._state = PartialState(cpu=self._load.device == "cpu" or not torch.cuda.is_available())
        on = self._state.device
        device = "cpu" if on.type == "cpu" else str(on)
        return replace(self._load, device=device), bool(self._state.is_main_process)

    def __exit__(self, *_: object) -> None:
        if self._state is not None:
            self._state.destroy_process_group()
