"""Text that repeats an export elsewhere: command line, Python, mergekit, and the lines that load it. No torch."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from shortviz.records.ledger import Treatment
from shortviz.records.model import STORED, hub_id
from shortviz.records.plan import Block, PrunePlan
from shortviz.text.sources import PASTED


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
    out_dtype: str = STORED,
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
    parts += ["--out-dtype", out_dtype] if out_dtype != STORED else []
    return shlex.join([*parts, "--out", folder])


def reproduce_python(
    model_id: str,
    plan: PrunePlan,
    *,
    folder: str = "pruned",
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    out_dtype: str = STORED,
) -> str:
    """Return a Python program that prunes, exports and proves the same checkpoint."""
    chosen = {"id": model_id, "revision": revision, "dtype": dtype, "device": device}
    arguments = ", ".join(
        f"{name}={value!r}" for name, value in chosen.items() if value not in (None, "auto") or name == "id"
    )
    written = f", out_dtype={out_dtype!r}" if out_dtype != STORED else ""
    return f"""from pathlib import Path

from shortviz import ModelRef, PrunePlan, export_checkpoint, load, prune

handle = load(ModelRef({arguments}))
plan = PrunePlan(num_layers={plan.num_layers}, removed={plan.removed!r})
report = export_checkpoint(prune(handle, plan), Path({folder!r}), base_info=handle.info{written})
print(report.folder, report.parameters, report.max_logit_diff)
"""


def loading_python(folder: str) -> str:
    """Return the lines that load an exported checkpoint with stock transformers."""
    return f"""from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({folder!r})
tokenizer = AutoTokenizer.from_pretrained({folder!r})
"""


def converter_command(folder: str) -> str:
    """Return the line of llama.cpp's converter that makes a GGUF file of an exported folder."""
    return shlex.join(["python", "convert_hf_to_gguf.py", folder, "--outfile", f"{folder.rstrip('/')}.gguf"])


# What a treated model was made by: the command that its ledger keeps, and what that does not say.


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How a model is made again."""

    command: str
    notes: tuple[str, ...] = ()
    """Sentences: what is to be added, or what the command does not repeat."""
    whole: bool = True
    """False: the command repeats the cut alone."""


def recipe_of(
    model_id: str, plan: PrunePlan, treatments: Sequence[Treatment], command: str, *,
    folder: str, adapter: bool = False, revision: str | None = None, dtype: str = "auto", device: str = "auto",
    out_dtype: str = STORED,
) -> Recipe:  # fmt: skip
    """Return how to cut, do all that was done after the cut, export and prove the same checkpoint.

    `command` makes a treated model; where it is not known, the cut alone is repeated, which is said. With `adapter`
    what the training learned is written alone.
    """
    if not treatments or not command:
        cut = reproduce_command(
            model_id, plan, folder=folder, revision=revision, dtype=dtype, device=device, out_dtype=out_dtype
        )
        if not treatments:
            return Recipe(command=cut)
        note = "The command repeats the cut; what was done after it stands above."
        return Recipe(command=cut, notes=(note,), whole=False)
    words = shlex.split(command)
    words[2] = model_id
    written = shlex.join([*words, "--adapter" if adapter else "--export", folder])
    other = [] if out_dtype == STORED else [f"The command writes the stored precision, not {out_dtype}."]
    return Recipe(command=written, notes=(*_text_notes(treatments[-1], words), *_ended(treatments[-1]), *other))


def _text_notes(treatment: Treatment, words: Sequence[str]) -> list[str]:
    """Return what is to be known of the text, where a folder or a command line cannot hold it."""
    text = treatment.text
    if "--text" in words or "--eval-text" in words:
        return ["It reads the text's file in the folder it is run in."]
    if text is not None and text.source == PASTED:
        return [f"Add the text ({text.source}, {text.tokens:,} tokens), e.g. as `--text FILE`."]
    return []


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
