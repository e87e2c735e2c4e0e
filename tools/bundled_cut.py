"""The cut that the bundled ledger, and the last lesson's questions, are about: cut, repaired, repaired and healed."""

import sys
from dataclasses import replace

from shortviz.heal.data import split_heldout
from shortviz.heal.heal import heal
from shortviz.model.handle import ModelHandle
from shortviz.model.prune import prune
from shortviz.progress import Progress, Watch
from shortviz.records.heal import PRESETS
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.text import TextSpec
from shortviz.repair.repair import repair
from shortviz.text.tokens import tokenize

BLOCK = Block(start=12, n=4)
"""The block of the handbook's examples."""
TRAINING_ROWS = 400


def tell(progress: Progress) -> None:
    """Say on stderr how far a long step is."""
    words = f"{progress.stage} {progress.done:.0f}/{progress.total:.0f} {progress.unit}"
    print(f"\r{words:40}", end="", file=sys.stderr)


def treated(
    handle: ModelHandle, spec: TextSpec, *, preset: str = "quick", rank: int | None = None
) -> list[tuple[str, ModelHandle]]:
    """Return (step, model) of the cut, of the cut repaired, and of that one healed, all on one text."""
    cut = prune(handle, PrunePlan.of_blocks(handle.info.num_layers, BLOCK))
    models = [("cut", cut)]
    tokens = tokenize(spec, handle.tokenizer)
    repaired = repair(cut, handle, tokens, watch=Watch(tell))
    if repaired.applied:
        models.append(("repaired", repaired.handle))
    settings = PRESETS[preset] if rank is None else replace(PRESETS[preset], rank=rank)
    more = tokenize(replace(spec, limit=TRAINING_ROWS), handle.tokenizer)
    train, heldout = split_heldout(more, window=min(256, settings.length))
    healed = heal(models[-1][1], train, settings, base=handle, heldout=heldout, watch=Watch(tell))
    return [*models, ("healed", healed.handle)]
