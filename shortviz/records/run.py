"""A run: everything measured for one model, text and settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from shortviz.records.json import Many
from shortviz.records.ledger import Ledger
from shortviz.records.measured import BlockDistances, BlockLosses, Evaluation, GreedyRemoval
from shortviz.records.model import ModelInfo
from shortviz.records.text import TaskScore, TextInfo


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Run:
    """Everything measured for one (model, text, settings)."""

    schema: Literal[2] = 2
    """Of run.json; `runs.parse_run` reads the older one too."""
    model: ModelInfo
    text: TextInfo
    distances: BlockDistances | None = None
    losses: BlockLosses | None = None
    """The measured map; its text is the evaluation set."""
    evaluations: Many[Evaluation] = ()
    ledgers: Many[Ledger] = ()
    """What repair and healing gave back, one for each cut and evaluation text."""
    greedy: GreedyRemoval | None = None
    """The loss after each step of greedy removal; its text is the evaluation set."""
    tasks: Many[TaskScore] = ()
    """Accuracies, one for each cut (none removed: the uncut model) and set of questions; without the answers."""
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    """UTC, ISO 8601."""
    name: str = ""
    """Given by a person; "" where none was."""
    note: str = ""
    tags: Many[str] = ()
    cell_notes: Mapping[str, str] = field(default_factory=dict)
    """What a person wrote about a cut, by its layers as `layers_text` has them, e.g. `12-15`."""

    def evaluation_of(self, removed: tuple[int, ...]) -> Evaluation | None:
        """Return the evaluation of exactly these removed layers, the one with the most tokens, or None."""
        found = [e for e in self.evaluations if e.removed == removed]
        return max(found, key=lambda e: e.score.tokens, default=None)

    def task_of(self, removed: tuple[int, ...], fingerprint: str) -> TaskScore | None:
        """Return the accuracy of exactly this cut on these questions, or None."""
        return next((t for t in self.tasks if (t.removed, t.fingerprint) == (removed, fingerprint)), None)
