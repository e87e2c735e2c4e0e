"""What an exported checkpoint says about itself: README.md for people, shortviz.json for programs. No torch."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from shortviz.export.recipes import loading_python, recipe_of
from shortviz.files import versions
from shortviz.records.citations import bibtex
from shortviz.records.formatting import UNKNOWN, counted, duration, percent, size, with_error
from shortviz.records.json import plain
from shortviz.records.ledger import Treatment
from shortviz.records.measured import Evaluation, Score, evaluation_json
from shortviz.records.model import DEMO_HUB_ID, ModelInfo, hub_name
from shortviz.records.plan import PrunePlan
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
        "text": plain(facts.text),
        "evaluation": None if facts.evaluation is None else evaluation_json(facts.evaluation),
        "proof": facts.proof,
        "notes": list(facts.notes),
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _identity(info: ModelInfo) -> dict[str, Any]:
    names = ("id", "revision", "architecture", "num_layers", "parameters", "bytes", "dtype")
    return {name: getattr(info, name) for name in names}


def model_card(facts: CardFacts) -> str:
    """Return README.md: the hub's front matter, what was removed, numbers with errors and text, how to load."""
    base, hub = facts.base, hub_name(facts.base)
    local = Path(base.id).name
    shown = f"[{hub}](https://huggingface.co/{hub})" if hub else f"`{local}`, a local model"
    data = ModelCardData(
        base_model=hub,
        license="apache-2.0" if hub == DEMO_HUB_ID else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["layer-pruning", "pruned", "shortviz"],
    )
    made_of, folder = base.id if hub else local, facts.name
    recipe = recipe_of(
        made_of, facts.plan, facts.treatments, facts.command,
        folder=folder, revision=base.revision, dtype=base.dtype,
    )  # fmt: skip
    return CARDS.get_template("card.md").render(
        facts=facts,
        front_matter=data.to_yaml(),
        base=shown + (f" at revision `{base.revision}`" if base.revision else ""),
        sizes=_sizes(facts),
        measured=None if facts.evaluation is None else _measured(facts.evaluation),
        loading=loading_python(facts.name),
        recipe=recipe,
        citation=bibtex().rstrip(),
        counted=counted,
        duration=duration,
    )


def _sizes(facts: CardFacts) -> Table:
    both = (facts.base, facts.pruned)
    rows = [
        ["layers", *(f"{model.num_layers:,}" for model in both)],
        ["parameters", *(f"{model.parameters:,}" for model in both)],
        ["weights", *(size(model.bytes) for model in both)],
        ["KV cache per token", *(size(sum(model.layer_cache_bytes)) for model in both)],
    ]
    return Table(left("") + right("uncut", "this model"), rows)


def _measured(found: Evaluation) -> Table:
    score, base = found.score, found.base

    def both(words: Callable[[Score], str]) -> str:
        return words(score) if base is None else f"{words(base)} → {words(score)}"

    rows = [
        ("perplexity", both(lambda one: with_error(one.perplexity, one.perplexity_stderr))),
        ("NLL (nats a token)", both(lambda one: with_error(one.nll, one.nll_stderr))),
        ("NLL increase, paired", with_error(found.nll_increase, found.nll_increase_stderr, sign=True)),
        ("KL(uncut ‖ pruned), nats a token", with_error(found.kl, found.kl_stderr)),
        ("same most likely next token", percent(found.same_top1, found.same_top1_stderr)),
        ("forward pass of one window", both(lambda one: f"{one.forward_seconds:.3f} s")),
    ]
    return Table(left("", ""), [row for row in rows if row[1] != UNKNOWN])
