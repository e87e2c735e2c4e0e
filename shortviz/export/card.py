"""What an exported checkpoint says about itself: README.md for people, shortviz.json for programs. No torch."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from shortviz.analysis.evidence import evidence_table, notes
from shortviz.export.recipes import converter_command, loading_python, recipe_of
from shortviz.files import versions
from shortviz.records.formatting import UNKNOWN, counted, duration, percent, size, times, with_error
from shortviz.records.json import plain
from shortviz.records.ledger import Ledger, LedgerStep, Treatment
from shortviz.records.measured import Evaluation, Score, evaluation_json, windows_words
from shortviz.records.model import DEMO_HUB_ID, STORED, ModelInfo, hub_name
from shortviz.records.plan import PrunePlan
from shortviz.records.run import bibtex
from shortviz.records.table import Table, left, right
from shortviz.records.text import TextInfo

CARDS = Environment(
    loader=PackageLoader("shortviz"),
    autoescape=False,  # Markdown: the hub escapes what it shows
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CardFacts:
    """Everything a checkpoint can say about itself."""

    name: str
    """The folder's name."""
    base: ModelInfo
    pruned: ModelInfo
    plan: PrunePlan
    text: TextInfo | None
    """Calibration text the layers were chosen by."""
    evaluation: Evaluation | None
    proof: dict[str, Any]
    """As in shortviz.json."""
    notes: tuple[str, ...] = ()
    """Sentences about what was changed on the way."""
    treatments: tuple[Treatment, ...] = ()
    """Repairs and healings after the cut, in order."""
    command: str = ""
    """The command that made a treated model, without its export; "" where it is not known."""
    dtypes: str = ""
    """What the weights are written in, in words; "" is the dtype of `pruned`."""
    asked_dtype: str = "auto"
    """The dtype that was asked for: that of `base` where it was not `auto`."""
    out_dtype: str = STORED
    """The dtype that was chosen for all weights."""
    verdict: str = ""
    """Why a treated model is not better on the evaluation text, in a sentence; "" where it is."""
    ledger: Ledger | None = None
    """Of the cut, with what was measured of its models beside their evaluations; None where there is none."""

    @property
    def steps(self) -> tuple[LedgerStep, ...]:
        """The steps of the ledger that lead to this model; none where its own evidence was not measured."""
        methods = tuple(treatment.method for treatment in self.treatments)
        steps = self.ledger.steps if self.ledger is not None else ()
        shown = tuple(step for step in steps if step.methods in ((), methods))
        return shown if shown and shown[-1].methods == methods and shown[-1].evidence.probes else ()


def shortviz_json(facts: CardFacts) -> dict[str, Any]:
    """Return the record that programs read: plan, old-to-new layer map, texts, numbers, versions."""
    new = {layer: position for position, layer in enumerate(facts.plan.kept)}
    return {
        "schema": 1,
        "base": _identity(facts.base),
        "model": _identity(facts.pruned),
        "plan": plain(facts.plan) | {"kept": list(facts.plan.kept), "blocks": plain(facts.plan.blocks)},
        "layer_map": {str(layer): new.get(layer) for layer in range(facts.plan.num_layers)},
        "treatments": plain(facts.treatments),
        "verdict": facts.verdict,
        "text": plain(facts.text),
        "evaluation": None if facts.evaluation is None else evaluation_json(facts.evaluation),
        "proof": facts.proof,
        "notes": list(facts.notes),
        **({"evidence": _evidence_json(facts)} if facts.steps else {}),
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _evidence_json(facts: CardFacts) -> dict[str, Any]:
    assert facts.ledger is not None, "its steps are shown"
    steps = {step.label: step.evidence for step in facts.steps}
    return {"probes": plain(facts.ledger.probes), "paces": plain(facts.ledger.paces), "steps": plain(steps)}


def _identity(info: ModelInfo) -> dict[str, Any]:
    names = ("id", "revision", "architecture", "num_layers", "parameters", "bytes", "dtype")
    return {name: getattr(info, name) for name in names}


def model_card(facts: CardFacts) -> str:
    """Return README.md: the hub's front matter, what was removed, numbers with errors and text, how to load."""
    base, hub = facts.base, hub_name(facts.base)
    shown = f"[{hub}](https://huggingface.co/{hub})" if hub else f"`{base.shown_name}`, a local model"
    data = ModelCardData(
        base_model=hub,
        license="apache-2.0" if hub == DEMO_HUB_ID else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["layer-pruning", "pruned", "shortviz"],
    )
    recipe = recipe_of(
        base.shown_name, facts.plan, facts.treatments, facts.command,
        folder=facts.name, revision=base.revision, dtype=facts.asked_dtype, out_dtype=facts.out_dtype,
    )  # fmt: skip
    return CARDS.get_template("card.md").render(
        facts=facts,
        front_matter=data.to_yaml(),
        base=shown + (f" at revision `{base.revision}`" if base.revision else ""),
        sizes=_sizes(facts),
        measured=None if facts.evaluation is None else _measured(facts.evaluation),
        evidence=evidence_table(facts.ledger, base, facts.steps) if facts.ledger is not None and facts.steps else None,
        evidence_notes=notes(facts.ledger) if facts.ledger is not None and facts.steps else (),
        loading=loading_python(facts.name),
        converter=converter_command(facts.name),
        recipe=recipe,
        citation=bibtex().rstrip(),
        counted=counted,
        duration=duration,
        windows_words=windows_words,
    )


def _sizes(facts: CardFacts) -> Table:
    both = (facts.base, facts.pruned)
    rows = [
        ["layers", *(f"{model.num_layers:,}" for model in both)],
        ["parameters", *(f"{model.parameters:,}" for model in both)],
        ["weights", *(size(model.bytes) for model in both)],
        ["KV cache per token", *(size(sum(model.layer_cache_bytes)) for model in both)],
        ["weights in layers and head, computed", "100 %", percent(1 - facts.base.weights_share(facts.plan.removed))],
    ]
    return Table(left("") + right("uncut", "this model"), rows)


def _measured(found: Evaluation) -> Table:
    score, base = found.score, found.base

    def both(words: Callable[[Score], str]) -> str:
        return words(score) if base is None else f"{words(base)} → {words(score)}"

    rows = [
        ("perplexity against uncut, paired", times(found.nll_increase, found.nll_increase_stderr)),
        ("perplexity", both(lambda one: with_error(one.perplexity, one.perplexity_stderr))),
        ("NLL (nats a token)", both(lambda one: with_error(one.nll, one.nll_stderr))),
        ("KL(uncut ‖ pruned), nats a token", with_error(found.kl, found.kl_stderr)),
        ("same most likely next token", percent(found.same_top1, found.same_top1_stderr)),
    ]
    return Table(left("", ""), [row for row in rows if row[1] != UNKNOWN])
