"""Proving a checkpoint that was written file to file: by a fresh process, by streaming it, or byte by byte."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from shortviz.errors import ExportError, NumericsError
from shortviz.export.proving import EXPORT_STOPPED, fresh_process, proof_prompts, prove_checkpoint
from shortviz.model.handle import ModelHandle
from shortviz.model.headers import Entry, read_shards, same_bytes
from shortviz.model.layers import packed_weights
from shortviz.model.placement import free_memory
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.model import ModelRef
from shortviz.records.plan import PrunePlan
from shortviz.streaming.calls import record_calls, rounded_as
from shortviz.streaming.model import StreamedModel, open_streamed


@torch.inference_mode()
def streamed_logits(
    model: StreamedModel, prompts: Sequence[Sequence[int]], *, removed: Collection[int] = (), watch: Watch = NO_WATCH
) -> list[Tensor]:
    """Return the logits after each token of each prompt, (tokens, vocabulary), in the model's dtype.

    The layers in `removed` are bypassed: each returns its input. Weights lie at aligned addresses. Raises NumericsError
    where a logit is NaN, Stopped when asked to stop.
    """
    ids = [torch.tensor([list(prompt)], device=model.placement.device) for prompt in prompts]
    model.load_non_layer_modules(aligned=True)
    entered = [model.calls(tokens) for tokens in ids]
    states = [hidden.clone() for hidden, _ in entered]
    kept = [index for index in range(model.info.num_layers) if index not in removed]
    every = [calls for _, calls in entered]
    if removed and packed_weights(model.model):
        plan = PrunePlan(num_layers=model.info.num_layers, removed=tuple(sorted(removed)))
        _, short = model.without(plan)
        for calls, tokens in zip(every, ids, strict=True):
            _, own = record_calls(short, tokens, in_tuple=model.in_tuple)
            calls[:] = [rounded_as(call, own[kept.index(i)]) if i in kept else call for i, call in enumerate(calls)]
    model.drop_non_layer_modules()
    for index, layer in model.layers_in_turn(kept, aligned=True):
        watch.check(EXPORT_STOPPED)
        states = [calls[index].run(layer, state) for state, calls in zip(states, every, strict=True)]
    model.load_non_layer_modules(head=True, aligned=True)
    found = []
    for tokens, state in zip(ids, states, strict=True):
        found.append(model.finish(tokens, state).logits[0].cpu().contiguous().clone())
        if torch.isnan(found[-1]).any():
            raise NumericsError(
                "The model's logits are NaN, so no checkpoint can be proved equal; choose other layers."
            )
    model.drop_non_layer_modules()
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Proved:
    """What was proved, and how."""

    kind: Literal["fresh process", "streamed", "bytes"]
    max_logit_diff: float | None = None
    generation_equal: bool | None = None
    facts: Mapping[str, Any]
    """For shortviz.json and the card."""


def prove_logits(
    source: StreamedModel, pruned: ModelHandle, checkpoint: Path, room: Path, *, watch: Watch = NO_WATCH
) -> Proved:
    """Return the proof that a written folder computes what the original does with the removed layers bypassed.

    In a fresh process where the short model fits in memory; else its files are streamed, and generation is not run.
    Raises ExportError with the difference.
    """
    assert pruned.plan is not None
    prompts = proof_prompts(pruned)
    watch.tell("stream original", done=0, total=1, unit="steps", detail=f"{len(prompts)} prompts")
    expected = streamed_logits(source, prompts, removed=pruned.plan.removed, watch=watch)
    watch.tell("stream original", done=1, total=1, unit="steps")
    if pruned.info.bytes * 1.2 <= free_memory(torch.device("cpu")):
        with fresh_process(room) as child:
            proof = prove_checkpoint(child, pruned, checkpoint, room, expected=expected, watch=watch)
        facts = asdict(proof) | {"generation_equal": True}
        return Proved(kind="fresh process", max_logit_diff=proof.max_logit_diff, generation_equal=True, facts=facts)
    watch.tell("stream copy", done=0, total=1, unit="steps")
    ref = ModelRef(id=str(checkpoint), dtype=pruned.info.dtype, device="cpu")
    with open_streamed(ref, watch=watch) as written:
        found = streamed_logits(written, prompts, watch=watch)
    pairs = list(zip(expected, found, strict=True))
    unequal = [(a, b) for a, b in pairs if not torch.equal(a, b)]
    difference = max((float((a.double() - b.double()).abs().max()) for a, b in unequal), default=0.0)
    if unequal:
        raise ExportError(
            "The written checkpoint computes other logits than the original with the layers bypassed "
            f"(largest difference {difference:.3g}); nothing was exported."
        )
    watch.tell("stream copy", done=1, total=1, unit="steps")
    lengths = [len(prompt) for prompt in prompts]
    facts = {"kind": "streamed", "max_logit_diff": difference, "prompt_lengths": lengths, "generation_equal": None}
    return Proved(kind="streamed", max_logit_diff=difference, facts=facts)


def prove_bytes(tensors: Mapping[str, Entry], checkpoint: Path, watch: Watch = NO_WATCH) -> Proved:
    """Return the proof that every tensor of a written folder has the bytes it was copied from; raises ExportError."""
    written = read_shards(checkpoint, checkpoint.name)
    if written.keys() != tensors.keys():
        odd = sorted(written.keys() ^ tensors.keys())[0]
        raise ExportError(f"The written checkpoint differs from what was to be written ({odd}); nothing was exported.")
    for name, entry in tensors.items():
        watch.check(EXPORT_STOPPED)
        if not same_bytes(entry, written[name]):
            raise ExportError(f"The bytes of {name} were not written as they are; nothing was exported.")
    return Proved(kind="bytes", facts={"kind": "bytes", "tensors": len(tensors), "generation_equal": None})
