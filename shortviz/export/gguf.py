"""A GGUF file without some of its layers: every tensor that stays is copied byte for byte, and the result is proved.

Read back, each key and tensor is what was to be written; de-quantised anew and loaded in a fresh process, it computes
what the cut model here computes, bit for bit.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from itertools import zip_longest
from pathlib import Path

from shortviz.errors import ExportError, ResourceError
from shortviz.export.export import needed_bytes
from shortviz.export.folder import check_target, filled_beside, is_gguf, write_error
from shortviz.export.proving import EXPORT_STOPPED, fresh_process, prove_checkpoint
from shortviz.export.recipes import converter_command
from shortviz.export.requantise import requantise
from shortviz.files import free_bytes
from shortviz.measure.losses import evaluate
from shortviz.model.files import find_files, sha256
from shortviz.model.gguf.blocks import check_blocks, cut_keys, cut_tensors
from shortviz.model.gguf.container import (
    Gguf,
    GgufTensor,
    Key,
    array_key,
    number_key,
    read_gguf,
    text_key,
    write_gguf,
    written_bytes,
)
from shortviz.model.gguf.copies import dequantise_into, memory_needed, read_model
from shortviz.model.handle import ModelHandle
from shortviz.model.placement import refuse_spread
from shortviz.model.prune import put_weights, shared_copy
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.formatting import size, with_error
from shortviz.records.measured import ExportReport
from shortviz.records.model import ModelRef
from shortviz.records.plan import PrunePlan, Removal
from shortviz.records.text import WindowSet

_OURS = "shortviz."


def gguf_source(ref: ModelRef) -> Gguf:
    """Return the GGUF file, or its parts, that a model is loaded from; raises ExportError where it is no such file."""
    found = find_files(ref)
    if found.gguf is None:
        raise ExportError(
            f"{ref.id} did not come as a GGUF file, so no GGUF file of it can be cut; export it as a folder and "
            f"convert that with llama.cpp: {converter_command('FOLDER')}."
        )
    return read_model(found.gguf)


def refuse_cut(ref: ModelRef, removal: Removal | None, target: Path | None) -> None:
    """Raise ExportError or PlanError where a GGUF file is to be written that no cut of this model can become."""
    if target is not None and is_gguf(target):
        source = gguf_source(ref)
        if removal is not None:
            cut_keys(source, removal.of(source.num_layers))


def export_gguf(
    source: Gguf,
    target: Path,
    plan: PrunePlan,
    *,
    pruned: ModelHandle | None = None,
    base: ModelHandle | None = None,
    windows: WindowSet | None = None,
    watch: Watch = NO_WATCH,
) -> ExportReport:
    """Return the report of a GGUF file without the plan's layers, proved equal to the model in memory.

    Args:
        source: the uncut model's file.
        target: a new file; it appears when it is proved, and whatever goes wrong, nothing stays behind.
        plan: the layers to leave out.
        pruned: the model without them, repaired or healed perhaps; None compares bytes and runs nothing.
        base: the uncut model, where `pruned` was repaired or healed: what changed is quantised anew.
        windows: what the difference is measured on that quantising it makes.
        watch: stages `write`, `reload`, `prove logits` and `prove generation`; may stop the work.

    Raises ExportError where the file is there or cannot be written or the proof fails, PlanError where llama.cpp would
    not read the cut as the model it is, ResourceError where disk or memory are too small, Stopped when asked to stop.
    """
    started = time.perf_counter()
    target = check_target(target)
    if pruned is not None:
        refuse_spread(pruned, "The proof of an export")
    keys, notes = cut_keys(source, plan)
    tensors = {name: replace(tensor, name=name) for name, tensor in cut_tensors(source, plan).items()}
    reference = pruned
    if pruned is not None and pruned.treatments and base is not None:
        tensors, reference, more = _with_changes(pruned, base, tensors, source, windows, watch)
        notes += more
    if _plan_before(source) is None and any(name.startswith(_OURS) for name in keys):
        notes += (f"The source's {_OURS}* keys do not describe its blocks, so they are written anew.",)
    keys |= _own_keys(source, plan, pruned)
    num_bytes = written_bytes(source, keys, tensors.values())
    needed = num_bytes
    if pruned is not None:  # the copy that is loaded is float32, whatever the model in memory is
        needed += 4 * sum(tensor.count for tensor in tensors.values()) + needed_bytes(pruned) - pruned.info.bytes
    with filled_beside(target, needed) as room:
        written = room / target.name
        try:
            write_gguf(written, source, keys, list(tensors.values()), watch)
            found = check_blocks(read_gguf(written))
            _compare(found, keys, tensors, watch)
            proof = _proved(found, reference, room, watch) if reference is not None else None
            files = {target.name: sha256(written)}
            watch.check(EXPORT_STOPPED)
            _put(written, target)
        except OSError as error:
            raise write_error(error, target, needed) from error
    return ExportReport(
        folder=str(target),
        removed=plan.removed,
        kept=plan.kept,
        parameters=found.parameters,
        bytes=found.num_bytes,
        files=files,
        max_logit_diff=proof,
        generation_equal=None if proof is None else True,
        seconds=time.perf_counter() - started,
        proof="bytes" if proof is None else "fresh process",
        notes=notes,
    )


def _with_changes(
    pruned: ModelHandle,
    base: ModelHandle,
    tensors: dict[str, GgufTensor],
    source: Gguf,
    windows: WindowSet | None,
    watch: Watch,
) -> tuple[dict[str, GgufTensor], ModelHandle, tuple[str, ...]]:
    """Return the tensors with those that changed, the model that a reader of the file has, and what it lost."""
    watch.tell("write", done=0, total=1, unit="bytes", detail="quantising what changed")
    made = requantise(pruned, base, tensors, source.architecture)
    reference = shared_copy(pruned)
    put_weights(reference.model, made.weights)
    notes = made.notes
    if made.tensors and windows is not None:
        change = evaluate(reference, windows, base=pruned, watch=watch.labelled(stage="write"))
        nats = with_error(change.nll_increase, change.nll_increase_stderr, sign=True)
        notes += (
            f"Quantising them changed the NLL by {nats} nats a token ({change.text.source}, {change.score.windows} "
            f"windows of {windows.tokens.shape[1]}).",
        )
    return tensors | dict(made.tensors), reference, notes


def _own_keys(source: Gguf, plan: PrunePlan, pruned: ModelHandle | None) -> dict[str, Key]:
    """Return what the file says about itself; of a cut of a cut, in the numbers of the first model."""
    removed, count, base = plan.removed, plan.num_layers, source.path.name
    done = [treatment.method for treatment in pruned.treatments] if pruned is not None else []
    before = _plan_before(source)
    if before is not None:
        removed = tuple(sorted({*before.removed, *(before.kept[i] for i in removed)}))
        count, base = before.num_layers, _own_text(source, "base") or base
        done = [*filter(None, [_own_text(source, "treatments")]), *done]
    found = {
        "version": text_key(metadata.version("shortviz")),
        "base": text_key(base),
        "base_block_count": number_key(count),
        "removed_layers": array_key(removed),
        "treatments": text_key(", ".join(done)),
    }
    return {f"{_OURS}{name}": key for name, key in found.items()}


def _plan_before(source: Gguf) -> PrunePlan | None:
    """Return what the file says that it lacks of a first model; None where it says nothing, or what it is not."""
    gone, whole = (source.keys.get(f"{_OURS}{name}") for name in ("removed_layers", "base_block_count"))
    if gone is None or whole is None or not isinstance(gone.value, tuple):
        return None
    removed, count = gone.value, whole.value
    numbers = {type(number) for number in (count, *removed)} == {int}
    fits = numbers and count == source.num_layers + len(set(removed)) and all(0 <= layer < count for layer in removed)
    return PrunePlan(num_layers=count, removed=removed) if fits else None


def _own_text(source: Gguf, name: str) -> str:
    key = source.keys.get(f"{_OURS}{name}")
    return key.value if key is not None and isinstance(key.value, str) else ""


def _compare(found: Gguf, keys: Mapping[str, Key], tensors: Mapping[str, GgufTensor], watch: Watch) -> None:
    """Raise ExportError where what was read back is not what was to be written, byte for byte."""
    if [(name, key.raw) for name, key in found.keys.items()] != [(name, key.raw) for name, key in keys.items()]:
        raise ExportError("The written GGUF file has other keys than it was given; nothing was exported.")
    if [tensor.name for tensor in found.tensors] != list(tensors):
        raise ExportError("The written GGUF file has other tensors than it was given; nothing was exported.")
    for done, tensor in enumerate(found.tensors):
        watch.check(EXPORT_STOPPED)
        watch.tell("write", done=done, total=len(tensors), unit="tensors", detail="reading back")
        source = tensors[tensor.name]
        same = (tensor.kind, tensor.shape) == (source.kind, source.shape)
        if not same or any(a != b for a, b in zip_longest(tensor.pieces(), source.pieces())):
            raise ExportError(
                f"The tensor {tensor.name} of the written GGUF file is not what it was made of; nothing was exported."
            )


def _proved(found: Gguf, reference: ModelHandle, room: Path, watch: Watch) -> float:
    """Return the largest difference of logits between the written file, loaded anew, and the model in memory: 0."""
    needed = memory_needed(found)
    if needed > free_bytes():
        raise ResourceError(
            f"Proving {found.path.name} needs {size(needed)} of memory, and {size(free_bytes())} is free; close "
            "something, or ask for stream, which compares bytes and runs nothing."
        )
    checkpoint = room / "checkpoint"
    dtype = str(reference.model.dtype).removeprefix("torch.")
    dequantise_into(found, checkpoint, room, watch.labelled(stage="reload"), dtype=dtype)
    with fresh_process(room) as child:
        return prove_checkpoint(child, reference, checkpoint, room, watch=watch).max_logit_diff


def _put(written: Path, target: Path) -> None:
    """Give the finished file its name; raises ExportError where something came there meanwhile."""
    check_target(target)
    os.replace(written, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
