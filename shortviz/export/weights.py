"""The weight files of an export: every tensor under the name and in the dtype that the source stores it in.

What the cut leaves alone is copied from the source's files, byte for byte. What is other in memory (repaired, healed,
changed by hand) is written from there, rounded to the dtype of the tensor that it replaces. A model that was given as
an object has no source, and is written as `save_pretrained` writes it.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from shortviz.errors import ExportError, ModelError, PlanError
from shortviz.export.proving import EXPORT_STOPPED
from shortviz.model import load
from shortviz.model.files import INDEX, WEIGHTS, ModelFiles, read_config
from shortviz.model.handle import ModelHandle
from shortviz.model.headers import Entry, PartEntry, read_shards, twice_there
from shortviz.model.layers import layer_stack, model_names, packed_axis
from shortviz.model.prune import put_weights, shared_copy
from shortviz.model.unread import OLD_BUFFERS, head_pattern
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.formatting import runs
from shortviz.records.model import STORED
from shortviz.records.plan import PrunePlan

FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""By the names that safetensors has for them."""
_NAMES = {dtype: name for name, dtype in FLOATS.items()} | {
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"},
    torch.bool: "BOOL",
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Held:
    """A tensor that is written from memory."""

    tensor: Tensor
    dtype: str
    """What it is written in, as safetensors names it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self.tensor.shape)

    @property
    def num_bytes(self) -> int:
        """What it takes in its file."""
        return self.tensor.numel() * (FLOATS[self.dtype].itemsize if self.dtype in FLOATS else self.tensor.itemsize)

    def raw(self) -> memoryview:
        """Return the bytes that are written."""
        stored = self.tensor.detach().to("cpu", FLOATS.get(self.dtype)).contiguous()
        return stored.reshape(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptTensors:
    """What the files of the pruned checkpoint will hold."""

    tensors: Mapping[str, Entry]
    """By new name, in the order of the model."""
    path: str
    """Where the files keep the layers, e.g. `model.layers`."""


def kept_tensors(
    model: PreTrainedModel,
    name: str,
    entries: Mapping[str, Entry],
    plan: PrunePlan,
    *,
    cut: PreTrainedModel | None = None,
    quantised: bool = False,
) -> KeptTensors:
    """Return the tensors that stay, with the layers renumbered; `model` is the uncut one, on meta, `cut` the cut one.

    Prediction heads, what the class passes over, constants of old versions, and what repeats the tensor it is tied to
    are left out; the first two were told before loading. What a layer has and does not use (Gemma 3n and 4 store the
    matrices for keys and values of layers that read those of another) stays with it. Of tables that pack a part of each
    layer the parts of the kept ones stay.
    Raises ModelError where a file holds what the config does not describe (scales of `quantised` weights may be there),
    PlanError where the files do not keep the layers under one name.
    """
    names, known = model_names(model, entries, get_model_conversion_mapping(model)), model.state_dict()
    shorter = {key: weight.shape for key, weight in (cut.state_dict() if cut is not None else {}).items()}
    packed = {key.rpartition(".")[0] for key, shape in shorter.items() if key in known and known[key].shape != shape}
    order = {key: place for place, key in enumerate(known)}
    path = file_path(names, known, layer_stack(model).path)
    layer = re.compile(rf"{re.escape(path)}\.(\d+)\.")
    ignored = [re.compile(pattern) for pattern in (model._keys_to_ignore_on_load_unexpected or ())]
    ignored.append(OLD_BUFFERS)
    numbers = {old: new for new, old in enumerate(plan.kept)}
    again = twice_there(model.all_tied_weights_keys, {names[key]: key for key in entries}, entries, name)
    kept: dict[str, Entry] = {}
    strange: set[str] = set()
    heads = head_pattern(model.config)
    for key in sorted(entries, key=lambda key: (order.get(names[key], len(order)), _natural(key))):
        found = layer.match(key)
        number = int(found.group(1)) if found else None
        unused = names[key] not in known and any(pattern.search(names[key]) for pattern in ignored)
        beyond = number is not None and number >= plan.num_layers
        if key in again or (names[key] not in known and heads.search(key)):
            continue
        if unused and (number is None or beyond or OLD_BUFFERS.search(names[key])):
            continue
        if names[key] not in known and not unused and (beyond or not quantised):
            strange.add(names[key])
        elif found is None and names[key] not in known and names[key].rpartition(".")[0] in packed:
            raise PlanError(f"{key} belongs to a quantised table of all layers, which cannot be cut; {_OTHER}.")
        elif found is None:
            kept[key] = _kept_part(model, entries[key], known.get(names[key]), shorter.get(names[key]), plan, key)
        elif number in numbers:
            kept[f"{path}.{numbers[number]}.{key[found.end() :]}"] = entries[key]
    load.refuse_disagreement(
        name, {"missing_keys": (), "unexpected_keys": strange, "mismatched_keys": ()}, model.config
    )
    return KeptTensors(tensors=kept, path=path)


_OTHER = "choose the checkpoint that is not quantised"


def _kept_part(
    model: PreTrainedModel, entry: Entry, had: Tensor | None, has: Sequence[int] | None, plan: PrunePlan, key: str
) -> Entry:
    """Return what stays of a tensor outside the layers, which may pack a part of each of them."""
    if had is None or has is None or tuple(had.shape) == tuple(has):
        return entry
    axis = packed_axis(model.config, had.shape, has)
    if axis is None or entry.shape != tuple(had.shape):
        raise PlanError(f"{key} packs data of all layers in a form that cannot be cut; {_OTHER}.")
    row_bytes = entry.num_bytes // math.prod(entry.shape[:axis])
    part = row_bytes // plan.num_layers
    taken = tuple((first * part, (first + n) * part) for first, n in runs(plan.kept))
    num_bytes = entry.num_bytes // plan.num_layers * len(plan.kept)
    return PartEntry(
        file=entry.file,
        dtype=entry.dtype,
        shape=tuple(has),
        start=entry.start,
        num_bytes=num_bytes,
        row_bytes=row_bytes,
        taken=taken,
    )


def file_path(names: Mapping[str, str], known: Mapping[str, object], path: str) -> str:
    """Return where the files keep the layers, found by the tensors whose layer is known; raises PlanError."""
    layer = re.compile(rf"{re.escape(path)}\.(\d+)\.")
    found = set()
    for key, target in names.items():
        number = layer.match(target) if target in known else None
        if number is not None:
            place = re.match(rf"((?:[^.]+\.)*?){number.group(1)}\.", key)
            found.add(place.group(1).removesuffix(".") if place else "")
    if len(found) != 1 or "" in found:
        places = ", ".join(sorted(found)) or "no name"
        raise PlanError(
            f"The files keep the layers under {places}, not under one name; export the model without streaming it."
        )
    return found.pop()


def _natural(key: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in key.split(".")]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WrittenWeights:
    """What the weight files of an export hold."""

    tensors: Mapping[str, Entry | Held]
    """By name in the files, in the order of the model."""
    notes: tuple[str, ...] = ()
    rounded: Mapping[str, torch.dtype] = field(default_factory=dict)
    """Parameters of the model whose values the stored dtype does not hold, and that dtype."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(item.num_bytes for item in self.tensors.values())

    @property
    def dtype(self) -> str:
        """The dtype of most bytes, e.g. `bfloat16`."""
        counted: Counter[str] = Counter()
        for item in self.tensors.values():
            counted[_word(item.dtype)] += item.num_bytes
        return counted.most_common(1)[0][0]

    @property
    def dtypes(self) -> str:
        """All dtypes in words, e.g. `bfloat16, 3 of 57 tensors float32`."""
        most = self.dtype
        others = Counter(word for item in self.tensors.values() if (word := _word(item.dtype)) != most)
        return ", ".join([most, *(f"{n} of {len(self.tensors)} tensors {word}" for word, n in sorted(others.items()))])


def _word(dtype: str) -> str:
    return str(FLOATS[dtype]).removeprefix("torch.") if dtype in FLOATS else dtype


def stored_bytes(pruned: ModelHandle, memory_bytes: int, out_dtype: str = STORED) -> int:
    """Return about how many bytes weights that take so many in memory take in the files of an export."""
    if out_dtype != STORED:
        return memory_bytes // int(pruned.model.dtype.itemsize) * int(getattr(torch, out_dtype).itemsize)
    if pruned.folder is None:
        return memory_bytes
    entries = _source_entries(pruned.folder, pruned.info.id).values()
    elements = sum(math.prod(entry.shape) for entry in entries)
    stored, held = sum(entry.num_bytes for entry in entries), elements * int(pruned.model.dtype.itemsize)
    in_files = memory_bytes * stored // held
    return in_files if pruned.ref.dtype == "auto" else min(in_files, memory_bytes)


def _source_entries(folder: Path, name: str) -> dict[str, Entry]:
    if not folder.is_dir():
        raise ModelError(
            f"The folder {folder} that {name} was loaded from is gone, and an export needs it; load again."
        )
    return read_shards(folder, name)


def weights_to_write(pruned: ModelHandle, *, out_dtype: str = STORED, watch: Watch = NO_WATCH) -> WrittenWeights:
    """Return what an export of a model in memory writes; nothing is written yet.

    Each tensor is written in the dtype its source has; in a dtype that the model was loaded in by name where that is
    not wider; all weights in `out_dtype` where one is given.
    Raises ModelError where the source's files are not whole any more, ExportError where `out_dtype` cannot hold a
    weight, Stopped when asked to stop.
    """
    if pruned.folder is None:
        return _all_in(_from_memory(pruned.model), pruned.model, out_dtype)
    name = pruned.info.id
    entries = _source_entries(pruned.folder, name)
    try:
        with torch.device("meta"):
            config = load.parse_config(name, read_config(ModelFiles(name=name, folder=pruned.folder)))
            uncut = AutoModelForCausalLM.from_config(config)
        kept = kept_tensors(uncut, name, entries, pruned.whole_plan, cut=pruned.model)
    except PlanError as error:  # the cut can be made in memory, and not by the names in the files
        found = _all_in(_from_memory(pruned.model), pruned.model, out_dtype)
        because = str(error).partition(";")[0].rstrip(".")
        note = f"Weights have the names that transformers gives them, and the dtype they had in memory: {because}."
        return replace(found, notes=(note,))
    asked = pruned.ref.dtype
    tensors: dict[str, Entry | Held] = dict(kept.tensors)
    rounded = {}
    total = sum(entry.num_bytes for entry in kept.tensors.values())
    watch.tell("write", done=0, total=total, unit="bytes", detail="comparing with the source")
    for key, parameter, value in _in_memory(pruned.model, kept.tensors):
        watch.check(EXPORT_STOPPED)
        entry = kept.tensors[key]
        if entry.dtype not in FLOATS:
            continue
        stored = FLOATS[entry.dtype]
        narrower = asked != "auto" and value.dtype.itemsize <= stored.itemsize
        target = value.dtype if narrower else stored
        if out_dtype != STORED:
            target = _holding(getattr(torch, out_dtype), value, key)
        held = _to_hold(entry, value, target)
        if held is None:
            continue
        tensors[key] = Held(tensor=held, dtype=_NAMES[target])
        if not torch.equal(held.to(target).to(held.dtype), held):
            rounded[parameter] = target
    found = WrittenWeights(tensors=tensors, rounded=rounded)
    if out_dtype != STORED or asked in ("auto", found.dtype):
        return found
    note = f"The dtype {asked} was asked for, which holds nothing more: most weights stay {found.dtype}, as stored."
    return replace(found, notes=(*found.notes, note))


def _to_hold(entry: Entry, value: Tensor, target: torch.dtype) -> Tensor | None:
    """Return the values that are written in a dtype, of memory or of the file; None where the file's bytes stay."""
    source = _read(entry)
    if not torch.equal(source.to(value.dtype), value.cpu()):
        return value
    if target == source.dtype:
        return None
    return source if target.itemsize > value.dtype.itemsize else value  # the file may hold more than is computed with


def _holding(target: torch.dtype, value: Tensor, name: str) -> torch.dtype:
    """Return the dtype that was chosen for a weight; raises ExportError where it is too small for a value."""
    largest = float(value.detach().abs().max()) if value.numel() else 0.0
    if largest > torch.finfo(target).max and math.isfinite(largest):
        words = str(target).removeprefix("torch.")
        raise ExportError(f"{words} cannot hold {name}, whose largest value is {largest:.3g}; choose bfloat16.")
    return target


def _all_in(weights: WrittenWeights, model: PreTrainedModel, out_dtype: str) -> WrittenWeights:
    """Return the same weights, all of a model in memory, written in a dtype that was chosen."""
    if out_dtype == STORED:
        return weights
    target: torch.dtype = getattr(torch, out_dtype)
    tensors: dict[str, Entry | Held] = {}
    for key, item in weights.tensors.items():
        held = isinstance(item, Held) and item.dtype in FLOATS
        tensors[key] = replace(item, dtype=_NAMES[target]) if held else item
    rounded = {
        name: _holding(target, weight, name)
        for name, weight in model.named_parameters()
        if weight.is_floating_point() and not torch.equal(weight.to(target).to(weight.dtype), weight)
    }
    return replace(weights, tensors=tensors, rounded=rounded)


def as_written(pruned: ModelHandle, rounded: Mapping[str, torch.dtype]) -> ModelHandle:
    """Return the model with its changed weights as the files hold them; itself where nothing was rounded."""
    if not rounded:
        return pruned
    copy = shared_copy(pruned)
    weights = {name: copy.model.get_parameter(name) for name in rounded}
    put_weights(copy.model, {name: weight.to(rounded[name]) for name, weight in weights.items()})
    copy.model.tie_weights()
    return copy


def _from_memory(model: PreTrainedModel) -> WrittenWeights:
    """Return the weights under the names and in the order that `save_pretrained` gives them."""
    ignored = model._keys_to_ignore_on_save or ()
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in ignored}
    named = revert_weight_conversion(model, remove_tied_weights_from_state_dict(state, model))
    return WrittenWeights(tensors={key: Held(tensor=t, dtype=_NAMES[t.dtype]) for key, t in named.items()})


def _in_memory(model: PreTrainedModel, keys: Iterable[str]) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (name in the files, name in the model, what the model has of it), layer by layer.

    What transformers merges while it loads (experts) is taken apart again. A tensor that is not found so is left out:
    it is copied from its file, and the proof tells whether that is right.
    """
    names, state = model_names(model, keys, get_model_conversion_mapping(model)), model.state_dict()
    layer = re.compile(rf"{re.escape(layer_stack(model).path)}\.\d+\.")
    groups: dict[str, list[str]] = {}
    for key, target in names.items():
        if target in state:
            found = layer.match(target)
            groups.setdefault(found.group() if found else "", []).append(key)
    for group in groups.values():
        apart = revert_weight_conversion(model, {names[key]: state[names[key]] for key in group})
        plain = {(tensor.data_ptr(), tensor.shape) for tensor in apart.values()}
        for key in group:
            whole = state[names[key]]
            if key in apart:
                yield key, names[key], apart[key]
            elif (whole.data_ptr(), whole.shape) in plain:
                yield key, names[key], whole


def _read(entry: Entry) -> Tensor:
    """Return a floating-point tensor of a file, (its shape) in the dtype stored."""
    raw = bytearray(b"".join(entry.pieces()))
    return torch.frombuffer(raw, dtype=FLOATS[entry.dtype]).reshape(entry.shape)


_CHUNK = 16 * 1024 * 1024
_ORDER = (
    *("U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"),
    *("F8_E4M3", "F8_E8M0", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "F6_E3M2", "F6_E2M3", "F4", "BOOL"),
)
"""How the safetensors library orders tensors: wide dtypes first, so that every one is aligned."""


def write_shard(path: Path, tensors: Mapping[str, Entry | Held], written: Callable[[int], None]) -> None:
    """Write one file of tensors, as safetensors would; `written` is told of every piece."""
    ordered = sorted(tensors.items(), key=lambda item: (_ORDER.index(item[1].dtype), item[0]))
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, entry in ordered:
        end = offset + entry.num_bytes
        entries[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as target, ExitStack() as files:
        target.write(len(text).to_bytes(8, "little") + text)
        target.flush()
        names = {item.file for item in tensors.values() if isinstance(item, Entry)}
        sources = {name: files.enter_context(name.open("rb")).fileno() for name in names}
        for _, item in ordered:
            if isinstance(item, PartEntry):
                for piece in item.pieces():
                    written(_write(target.fileno(), piece))
            elif isinstance(item, Entry):
                _copy(sources[item.file], item, target.fileno(), written)
            else:
                raw = item.raw()
                for start in range(0, len(raw), _CHUNK):
                    written(_write(target.fileno(), raw[start : start + _CHUNK]))


def _write(target: int, raw: memoryview | bytes) -> int:
    """Write all of the bytes, which the system may take in pieces; return their number."""
    done = 0
    while done < len(raw):
        done += os.write(target, raw[done:])
    return done


def _copy(source: int, entry: Entry, target: int, written: Callable[[int], None]) -> None:
    """Copy a tensor's bytes inside the kernel; by hand where it cannot (another kind of disk)."""
    done, by_kernel = 0, hasattr(os, "copy_file_range")
    while done < entry.num_bytes:
        count = min(_CHUNK, entry.num_bytes - done)
        try:
            copied = os.copy_file_range(source, target, count, entry.start + done) if by_kernel else 0
        except OSError:
            copied, by_kernel = 0, False
        if not copied:
            piece = os.pread(source, count, entry.start + done)
            if not piece:  # cut short since its header was read
                raise ModelError(f"The file {entry.file} ends before its last tensor does; fetch it again.")
            copied = os.write(target, piece)
        done += copied
        written(copied)


def write_weights(
    tensors: Mapping[str, Entry | Held], checkpoint: Path, shard_bytes: int, parameters: int, watch: Watch
) -> Iterable[str]:
    """Return the names of the files written, filled in order up to `shard_bytes` as transformers does; and an index."""
    total, done = sum(item.num_bytes for item in tensors.values()), 0

    def written(count: int) -> None:
        nonlocal done
        watch.check(EXPORT_STOPPED)
        done += count
        watch.tell("write", done=done, total=total, unit="bytes")

    layout = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda item: item.num_bytes,
        filename_pattern=WEIGHTS.replace(".", "{suffix}.", 1),
        max_shard_size=shard_bytes,
    )
    for file, names in layout.filename_to_tensors.items():
        write_shard(checkpoint / file, {name: tensors[name] for name in names}, written)
    if layout.is_sharded:
        index = {
            "metadata": {"total_parameters": parameters, "total_size": total},
            "weight_map": layout.tensor_to_filename,
        }
        (checkpoint / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return layout.filename_to_tensors
