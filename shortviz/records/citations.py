"""BibTeX of the methods behind what is shown: one entry a paper, only those that were used. No torch."""

from collections.abc import Iterable
from importlib import resources

from shortviz.records.run import Run

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
