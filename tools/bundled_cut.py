"""The cut that the bundled ledger, and the last lesson's questions, are about: cut, repaired, repaired and healed."""

import sys

from shortviz.heal.data import split_heldout
from shortviz.heal.heal import heal
from shortviz.model.handle import ModelHandle
from shortviz.model.prune import prune
from shortviz.progress import Progress, Watch
from shortviz.records.heal import PRESETS
from shortviz.records.plan import Block, PrunePlan
from shortviz.repair.repair import repair
from shortviz.service.requests import FIT_TEXT, TRAINING_TEXT
from shortviz.text.tokens import fit_rows, tokenize

BLOCK = Block(start=12, n=4)
"""The block of the handbook's examples."""


def tell(progress: Progress) -> None:
    """Say on stderr how far a long step is."""
    words = f"{progress.stage} {progress.done:.0f}/{progress.total:.0f} {progress.unit}"
    print(f"\r{words:40}", end="", file=sys.stderr)


def treated(handle: ModelHandle, *, preset: str = "quick") -> list[tuple[str, ModelHandle]]:
    """Return (step, model) of the cut, of the cut repaired, and of that one healed, on the default text."""
    cut = prune(handle, PrunePlan.of_blocks(handle.info.num_layers, BLOCK))
    models = [("cut", cut)]
    repaired = repair(cut, handle, fit_rows(FIT_TEXT, handle.tokenizer), watch=Watch(tell))
    if repaired.applied:
        models.append(("repaired", repaired.handle))
    settings = PRESETS[preset]
    train, heldout = split_heldout(tokenize(TRAINING_TEXT, handle.tokenizer), window=min(256, settings.length))
    healed = heal(models[-1][1], train, settings, base=handle, heldout=heldout, watch=Watch(tell))
    return [*models, ("healed", healed.handle)]
