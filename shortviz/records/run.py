"""A run: everything measured for one model, text and settings; and what to cite for what was used. No torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
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


# BibTeX of the methods behind what is shown: one entry a paper, only those that were used.

_OF_CRITERION = {
    "angular_last": "gromov2024unreasonable",
    "angular_mean": "gromov2024unreasonable",
    "block_influence": "men2024shortgpt",
    "relative_magnitude": "samragh2023weight",
    "linear_replacement": "razzhigaev2024secretly",
}
_OF_TREATMENT = {
    "fold": "shopkhoev2025replaceme",
    "scale": "chen2025prunecomp",
    "comp": "chen2025prunecomp",
    "lora": "hu2021lora",
}
"""By a word in the method's name."""


def bibtex(criteria: Iterable[str] = (), treatments: Iterable[str] = (), *, sink: bool = False) -> str:
    """Return the entries of these criteria and treatments, each once; the paper of the whole method comes first.

    A criterion of a person's own has no paper; `treatments` are methods of repair and healing, e.g. `linear_fold`,
    `lora`; `sink` says whether an attention sink is spoken of.
    """
    found = ["gromov2024unreasonable", *(_OF_CRITERION[name] for name in criteria if name in _OF_CRITERION)]
    found += [key for method in treatments for word, key in _OF_TREATMENT.items() if word in method]
    found += ["xiao2023efficient"] if sink else []
    file = resources.files("shortviz") / "templates" / "papers.bib"
    entries = {entry.partition("{")[2].partition(",")[0]: entry for entry in file.read_text().strip().split("\n\n")}
    return "\n\n".join(entries[key] for key in dict.fromkeys(found)) + "\n"


def bibtex_of(run: Run) -> str:
    """Return the entries of everything that a run holds."""
    distances = run.distances
    methods = [method for ledger in run.ledgers for step in ledger.steps for method in step.methods]
    return bibtex(
        distances.criteria if distances is not None else (),
        methods,
        sink=distances is not None and bool(distances.norms.sink_layers),
    )
