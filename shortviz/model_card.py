"""What an exported checkpoint says about itself: README.md for people, shortviz.json for programs. No torch."""

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from shortviz.citations import GROMOV
from shortviz.ledger import Treatment
from shortviz.recipes import DEMO_HUB_ID, hub_id, loading_python
from shortviz.record_json import plain
from shortviz.records import Evaluation, ModelInfo, PrunePlan, Score, TextInfo, evaluation_json
from shortviz.runs import versions
from shortviz.treated_recipe import treated_recipe
from shortviz.words import duration, percent, size


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


def shortviz_json(facts: CardFacts) -> dict[str, Any]:
    """Return the record that programs read: plan, old-to-new layer map, texts, numbers, versions."""
    new = {layer: position for position, layer in enumerate(facts.plan.kept)}
    return {
        "schema": 1,
        "base": _identity(facts.base),
        "model": _identity(facts.pruned),
        "plan": {
            "num_layers": facts.plan.num_layers,
            "removed": list(facts.plan.removed),
            "kept": list(facts.plan.kept),
            "blocks": plain(facts.plan.blocks),
        },
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
    sections = [
        f"---\n{yaml.safe_dump(_front_matter(facts), sort_keys=False)}---",
        f"# {facts.name}",
        _removed(facts),
        _treated(facts),
        _sizes(facts),
        _measured(facts.evaluation),
        _proved(facts.proof),
        f"## Load it\n\n```python\n{loading_python(facts.name)}```",
        _made(facts),
        f"## Method\n\n```bibtex\n{GROMOV}\n```",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(facts: CardFacts) -> dict[str, Any]:
    matter: dict[str, Any] = {}
    base = hub_name(facts.base)
    if base is not None:
        matter["base_model"] = base
    if base == DEMO_HUB_ID:
        matter["license"] = "apache-2.0"
    return matter | {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["layer-pruning", "pruned", "shortviz"],
    }


def hub_name(base: ModelInfo) -> str | None:
    """Return the hub id of a model, or None for a local file or folder, whose path is nobody else's business."""
    name = hub_id(base.id)
    if base.revision is None and name == base.id and Path(base.id).expanduser().exists():
        return None
    return name if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not name.endswith(".gguf") else None


def _shown_name(base: ModelInfo) -> str:
    name = hub_name(base)
    return f"[{name}](https://huggingface.co/{name})" if name else f"`{Path(base.id).name}`, a local model"


def _removed(facts: CardFacts) -> str:
    total, removed = facts.plan.num_layers, facts.plan.removed
    base = _shown_name(facts.base) + (f" at revision `{facts.base.revision}`" if facts.base.revision else "")
    if not removed:
        return f"All {total} layers of {base}, written as ordinary safetensors."
    blocks = "; ".join(map(str, facts.plan.blocks))
    kinds = [treatment.kind for treatment in facts.treatments]
    done = "It was healed by training" if "heal" in kinds else "It was repaired in closed form, without training,"
    after = f"{done} after the cut." if kinds else "Nothing was trained after the cut."
    return f"{base}, without {len(removed)} of its {total} decoder layers: {blocks}. Layers are counted from 0. {after}"


def _treated(facts: CardFacts) -> str:
    """Return what was done after the cut, each treatment with its text, its time and everything to do it again."""
    if not facts.treatments:
        return ""
    lines = ["## After the cut", ""]
    for number, treatment in enumerate(facts.treatments, 1):
        name, text = treatment.method.replace("_", " "), treatment.text
        on = "" if text is None else f" on {text.source} ({text.tokens:,} tokens, fingerprint `{text.fingerprint}`)"
        verb = "Repaired" if treatment.kind == "repair" else "Healed"
        lines.append(f"{number}. {verb} by {name}{on}, in {duration(treatment.seconds)}. {treatment.note}".rstrip())
        shown = ", ".join(f"{key} {value}" for key, value in treatment.settings.items() if value is not None)
        lines += [f"   Settings: {shown}."] if shown else []
    return "\n".join(lines)


def _sizes(facts: CardFacts) -> str:
    rows = (
        ("layers", f"{facts.base.num_layers:,}", f"{facts.pruned.num_layers:,}"),
        ("parameters", f"{facts.base.parameters:,}", f"{facts.pruned.parameters:,}"),
        ("weights", size(facts.base.bytes), size(facts.pruned.bytes)),
        ("KV cache per token", *(size(sum(i.layer_cache_bytes)) for i in (facts.base, facts.pruned))),
    )
    lines = [f"| {name} | {before} | {after} |" for name, before, after in rows]
    return "\n".join(
        ["## Size", "", "| | uncut | this model |", "|---|---|---|", *lines, "", f"dtype: {facts.pruned.dtype}"]
    )


def _measured(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return "## Measured\n\nNothing was measured before the export."
    text, score = evaluation.text, evaluation.score
    rows = [
        ("perplexity", _pm(score.perplexity, score.perplexity_stderr)),
        ("NLL (nats a token)", _pm(score.nll, score.nll_stderr)),
    ]
    if evaluation.base is not None:
        rows = [(name, f"{_base_number(evaluation.base, name)} → {value}") for name, value in rows]
    paired = (
        ("NLL increase, paired", evaluation.nll_increase, evaluation.nll_increase_stderr),
        ("KL(uncut ‖ pruned), nats a token", evaluation.kl, evaluation.kl_stderr),
    )
    rows += [(name, _pm(value, stderr)) for name, value, stderr in paired if value is not None]
    if evaluation.same_top1 is not None:
        rows.append(("same most likely next token", percent(evaluation.same_top1, evaluation.same_top1_stderr, "±")))
    rows.append(("forward pass of one window", _seconds(evaluation)))
    lines = [f"| {name} | {value} |" for name, value in rows]
    behind = (
        f"Text: {text.source}, {score.windows} window{'s' * (score.windows > 1)}, {score.tokens:,} scored tokens, BOS "
        f"{text.bos}, fingerprint `{text.fingerprint}`."
        + (" ± is one standard error over windows." if score.windows > 1 else "")
    )
    return "\n".join(["## Measured", "", "| | |", "|---|---|", *lines, "", behind])


def _base_number(base: Score, name: str) -> str:
    return _pm(base.perplexity, base.perplexity_stderr) if name == "perplexity" else _pm(base.nll, base.nll_stderr)


def _seconds(evaluation: Evaluation) -> str:
    before = "" if evaluation.base is None else f"{evaluation.base.forward_seconds:.3f} s → "
    return f"{before}{evaluation.score.forward_seconds:.3f} s"


def _pm(value: float, stderr: float | None) -> str:
    if stderr is None or math.isnan(stderr):
        return f"{value:.4g} (one window, no error)"
    return f"{value:.4g} ± {stderr:.2g}"


def _proved(proof: dict[str, Any]) -> str:
    if proof.get("kind") == "bytes":
        return (
            f"## Checked\n\nThe bytes of all {proof['tensors']} tensors are those of the original checkpoint. "
            "The weights are quantised and were not run: neither logits nor generation were compared."
        )
    if proof.get("kind") == "streamed":
        return (
            "## Proved\n\nStreamed layer by layer from these files, the logits on prompts of "
            f"{', '.join(map(str, proof['prompt_lengths']))} tokens equal those of the original with the removed "
            f"layers bypassed, bit for bit (largest difference {proof['max_logit_diff']:g}). Generation was not run: "
            "the model does not fit in the memory it was exported on."
        )
    lengths = ", ".join(map(str, proof["prompt_lengths"]))
    return (
        "## Proved\n\nA fresh process loaded these files with plain `AutoModelForCausalLM.from_pretrained`. Its logits "
        f"on prompts of {lengths} tokens equal those of the model in memory bit for bit (largest difference "
        f"{proof['max_logit_diff']:g}), and it generates the same {proof['new_tokens']} tokens with a cache as without "
        f"(in {proof['generation_dtype']})."
    )


def _made(facts: CardFacts) -> str:
    name = hub_name(facts.base)
    shown = facts.base.id if name else Path(facts.base.id).name
    recipe = treated_recipe(
        shown,
        facts.plan,
        facts.treatments,
        folder=facts.name,
        revision=facts.base.revision,
        dtype=facts.base.dtype,
    )
    lines = ["## How it was made", "", f"```\n{recipe.command}\n```"]
    if facts.treatments:
        lines += ["", *recipe.notes, "`mergekit.yml` repeats the cut alone."]
    if facts.text is not None:
        text = facts.text
        lines += [
            "",
            f"Layers were chosen on {text.source}: {text.rows:,} rows, {text.tokens:,} tokens, "
            f"fingerprint `{text.fingerprint}`.",
        ]
    lines += [
        "",
        "`shortviz.json` holds the plan and all numbers for programs, `mergekit.yml` the same cut for mergekit.",
    ]
    return "\n".join([*lines, *(f"\n{note}" for note in facts.notes)])
