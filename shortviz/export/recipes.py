"""The command line that makes a repaired, healed or shrunk model again, from what its treatments say. No torch."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import yaml

from shortviz.records.heal import PRESETS, HealSettings
from shortviz.records.ledger import Treatment
from shortviz.records.model import hub_id
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.text import ALL_TOKENS, TextInfo
from shortviz.text.tokens import FIT_LENGTH

# Text that repeats an export elsewhere: command line, Python, mergekit, and the lines that load it. No torch.


def mergekit_yaml(model_id: str, plan: PrunePlan, dtype: str) -> str:
    """Return a mergekit `passthrough` recipe that keeps the plan's layers; `layer_range` excludes its end.

    mergekit lowers only the number of layers in the config: where other fields hold one value a layer, its checkpoint
    differs from ours, which is right.
    """
    recipe: dict[str, Any] = {
        "slices": [
            {"sources": [{"model": hub_id(model_id), "layer_range": [run.start, run.start + run.n]}]}
            for run in kept_runs(plan)
        ],
        "merge_method": "passthrough",
        "dtype": dtype,
    }
    return yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None)


def kept_runs(plan: PrunePlan) -> tuple[Block, ...]:
    """Return the layers that stay as maximal runs of consecutive layers."""
    edges = [-1, *plan.removed, plan.num_layers]
    return tuple(
        Block(start=before + 1, n=after - before - 1)
        for before, after in zip(edges, edges[1:], strict=False)
        if after - before > 1
    )


def reproduce_command(
    model_id: str,
    plan: PrunePlan,
    *,
    folder: str = "pruned",
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
) -> str:
    """Return the command line that prunes, exports and proves the same checkpoint."""
    parts = ["shortviz", "prune", model_id]
    blocks = plan.blocks
    if len(blocks) == 1:
        parts += ["--start", str(blocks[0].start), "--n", str(blocks[0].n)]
    else:
        parts += ["--remove", ",".join(map(str, plan.removed))]
    for option, value in (("--revision", revision), ("--dtype", dtype), ("--device", device)):
        if value not in (None, "auto"):
            parts += [option, str(value)]
    return shlex.join([*parts, "--out", folder])


def reproduce_python(
    model_id: str,
    plan: PrunePlan,
    *,
    folder: str = "pruned",
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
) -> str:
    """Return a Python program that prunes, exports and proves the same checkpoint."""
    chosen = {"id": model_id, "revision": revision, "dtype": dtype, "device": device}
    arguments = ", ".join(
        f"{name}={value!r}" for name, value in chosen.items() if value not in (None, "auto") or name == "id"
    )
    return f"""from pathlib import Path

from shortviz import ModelRef, PrunePlan, export_checkpoint, load, prune

handle = load(ModelRef({arguments}))
plan = PrunePlan(num_layers={plan.num_layers}, removed={plan.removed!r})
report = export_checkpoint(prune(handle, plan), Path({folder!r}), base_info=handle.info)
print(report.folder, report.parameters, report.max_logit_diff)
"""


def loading_python(folder: str) -> str:
    """Return the lines that load an exported checkpoint with stock transformers."""
    return f"""from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({folder!r})
tokenizer = AutoTokenizer.from_pretrained({folder!r})
"""


_ALWAYS = ("steps", "warmup_steps", "length", "learning_rate")
"""Settings that a preset fits to the model, or that everybody asks for."""
_NAMES = {"batch_size": "train-batch"}
_BATCH = 8
"""The command line's own --batch-size."""
_GONE = "linear_replacement"
"""A repair of earlier versions, which ledgers on people's disks still name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TreatedRecipe:
    """How a model is made again."""

    command: str
    notes: tuple[str, ...] = ()
    """Sentences: what is to be added, or what the command does not repeat."""
    whole: bool = True
    """False: the command repeats the cut alone."""


def treated_recipe(
    model_id: str,
    plan: PrunePlan,
    treatments: Sequence[Treatment],
    *,
    folder: str,
    adapter: bool = False,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
) -> TreatedRecipe:
    """Return the command that cuts, does all that was done after the cut, exports and proves the same checkpoint.

    With `adapter` it writes what the training learned alone.
    """
    cut = shlex.split(reproduce_command(model_id, plan, folder=folder, revision=revision, dtype=dtype, device=device))
    place = cut.index("--out")
    removal, loading = _parted(cut[3:place])
    rest = [*loading, "--adapter" if adapter else "--export", folder]
    if not treatments:
        return TreatedRecipe(command=shlex.join(cut))
    cut_alone = TreatedRecipe(
        command=shlex.join(cut),
        notes=("The command repeats the cut; what was done after it stands above.",),
        whole=False,
    )
    if any(treatment.method == _GONE for treatment in treatments):
        return cut_alone
    kinds, last = [treatment.kind for treatment in treatments], treatments[-1]
    if all("chosen_options" in treatment.settings for treatment in treatments):
        parts = ["shortviz", "shrink", model_id, "--to-layers", str(len(plan.kept)), *_fit(last)]
        parts += shlex.split(str(last.settings["chosen_options"]))
        notes = _text_notes(last)
        if not last.settings["chosen_options"]:
            notes.append(f"Add the text that layers were chosen on: {last.settings['chosen_on']}.")
        return TreatedRecipe(command=shlex.join([*parts, *rest]), notes=tuple(notes))
    if kinds == ["repair"]:
        parts = ["shortviz", "repair", model_id, *removal, *_fit(last)]
        return TreatedRecipe(command=shlex.join([*parts, *rest]), notes=tuple(_text_notes(last)))
    if kinds == ["heal"] or (kinds == ["repair", "heal"] and _repaired_on_the_same(treatments[0], last)):
        first = ["--repair", treatments[0].method] if len(kinds) == 2 else []
        parts = ["shortviz", "heal", model_id, *removal, *first, *_training(last)]
        return TreatedRecipe(command=shlex.join([*parts, *rest]), notes=tuple([*_text_notes(last), *_ended(last)]))
    return cut_alone


def _parted(options: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the options that say what is removed, and those that say how the model is loaded."""
    pairs = list(zip(options[::2], options[1::2], strict=True))
    removal = [part for pair in pairs if pair[0] in ("--start", "--n", "--remove") for part in pair]
    return removal, [part for pair in pairs if pair[0] not in ("--start", "--n", "--remove") for part in pair]


def _fit(treatment: Treatment) -> list[str]:
    """Return the options of a repair: how, on which rows."""
    text, batch = treatment.text, treatment.settings.get("batch_size", _BATCH)
    parts = ["--method", treatment.method, *([] if batch == _BATCH else ["--batch-size", str(batch)])]
    if text is not None and text.max_length is not None:
        parts += [*shlex.split(text.options), "--max-length", str(text.max_length), "--fit-tokens", str(text.tokens)]
    return parts


def _training(treatment: Treatment) -> list[str]:
    """Return the options of a training: those that differ from the preset `good`."""
    good, parts = PRESETS["good"], []
    for name in (field.name for field in fields(HealSettings)):
        value = treatment.settings.get(name)
        usual = treatment.settings.get("rank") if name == "alpha" else getattr(good, name)
        if value is None or (value == usual and name not in _ALWAYS):
            continue
        if name == "last_layers" and treatment.method != "partial":
            continue
        option = f"--{_NAMES.get(name, name).replace('_', '-')}"
        parts += [option] if value is True else [option, str(value)]
    text = treatment.text
    if text is not None:
        parts += shlex.split(text.options)
        parts += ["--max-length", str(text.max_length)] if _truncated(text) else []
    return parts


def _truncated(text: TextInfo) -> bool:
    return text.max_length is not None and text.max_length < ALL_TOKENS


def _repaired_on_the_same(repaired: Treatment, healed: Treatment) -> bool:
    """Return whether `heal --repair` fits its repair to the rows that this one was fitted to."""
    ours, theirs = repaired.text, healed.text
    if ours is None or theirs is None or not ours.options or ours.options != theirs.options:
        return False
    length = theirs.max_length if _truncated(theirs) else FIT_LENGTH
    return ours.max_length == length and repaired.settings.get("batch_size", _BATCH) == _BATCH


def _text_notes(treatment: Treatment) -> list[str]:
    text = treatment.text
    if text is not None and text.options:
        return ["It reads the text's file in the folder it is run in."] if text.options.startswith("--text ") else []
    named = f" ({text.source}, {text.tokens:,} tokens)" if text is not None else ""
    return [f"Add the text{named}, e.g. as `--text FILE`."]


def _ended(treatment: Treatment) -> list[str]:
    """Return what a training did not do as its command will."""
    notes = []
    if "Stopped after" in treatment.note:
        notes.append("The training was stopped early; the command makes all of its steps, and may keep a later one.")
    if treatment.settings.get("processes", 1) != 1:
        notes.append(
            f"It ran in {treatment.settings['processes']} processes; start as many with `accelerate launch -m`."
        )
    return notes
