"""Text that repeats an export elsewhere: command line, Python, mergekit, and the lines that load it. No torch."""

import shlex
from typing import Any

import yaml

from shortviz.records import Block, PrunePlan

DEMO_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What the model named `demo` is on the hub."""


def hub_id(model_id: str) -> str:
    """Return the name other tools know a model by: `demo` is a hub model, all other ids are their own name."""
    return DEMO_HUB_ID if model_id == "demo" else model_id


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
