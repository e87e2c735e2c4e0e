"""Weights of a treated model as GGUF tensors: transformers' conversion turned round, in the type that they replace.

llama.cpp orders the rows of some matrices otherwise and stores some norms with 1 added. Which, is not written down here
a second time: the numbers of a tensor's entries are sent through transformers' own conversion, which shows where each
of them goes. Every turned tensor is first tried on the file's own: it must give the weights that the uncut model has.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import gguf
import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from shortviz.errors import ExportError
from shortviz.model.gguf.container import GgufTensor
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import layer_stack, rename_state
from shortviz.records.formatting import counted

Array = np.ndarray[Any, Any]
_INSTEAD: Final = GGMLQuantizationType.Q8_0
"""What is written where a type cannot be: such types have rows of whole blocks of 32 too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Requantised:
    """Tensors written anew."""

    tensors: Mapping[str, GgufTensor]
    """By their name in the file."""
    weights: Mapping[str, Tensor]
    """What a reader of the file finds, float32, by their name in the model."""
    notes: tuple[str, ...]
    """Sentences: how many, and in which types."""


def changed_weights(model: ModelHandle, base: ModelHandle) -> dict[str, tuple[Tensor, Tensor]]:
    """Return {name in the model: (weight, what the uncut model has there)} of the weights that are not the same."""
    before = dict(base.model.named_parameters())
    names = rename_state(before, model.whole_plan, layer_stack(base.model).path)
    found = {}
    for name, weight in model.model.named_parameters():
        old = before[names[name]]
        if weight.data_ptr() != old.data_ptr() and not (weight.shape == old.shape and torch.equal(weight, old)):
            found[name] = (weight.detach(), old.detach())
    return found


def requantise(
    model: ModelHandle, base: ModelHandle, tensors: Mapping[str, GgufTensor], architecture: str
) -> Requantised:
    """Return the tensors of a treated model that are not the uncut one's, quantised anew.

    `tensors` are those of the uncut model's file, by the name that the cut model has for them. Raises ExportError
    where one cannot be turned into what the file holds.
    """
    kind = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
    processor = kind(config=model.model.config.get_text_config(decoder=True).to_dict())
    of_model: dict[str, list[str]] = {}
    for in_file, in_model in get_gguf_hf_weights_map(model.model, processor).items():
        if in_file in tensors:
            of_model.setdefault(in_model, []).append(in_file)
    made: dict[str, GgufTensor] = {}
    weights, types = {}, []
    for name, (weight, old) in changed_weights(model, base).items():
        found = of_model.get(name, [])
        if len(found) != 1 or weight.shape != old.shape:
            raise ExportError(
                f"The weight {name} was changed, and the GGUF file has {counted(len(found), 'tensor')} for it that it "
                "could be written back to; export the model as a folder."
            )
        source = tensors[found[0]]
        convert = _conversion(processor, source)
        values = _turned_back(convert, weight.float().cpu().numpy(), source.shape[::-1])
        same = torch.equal(torch.from_numpy(np.ascontiguousarray(convert(_values(source)))).to(old), old)
        if values is None or not same:
            raise ExportError(
                f"The weight {name} was changed, and how {found[0]} of the GGUF file becomes it is not understood; "
                "export the model as a folder."
            )
        made[found[0]] = _quantised(source, values)
        types.append((source.type_name, made[found[0]].type_name))
        weights[name] = torch.from_numpy(np.ascontiguousarray(convert(_values(made[found[0]]))))
    return Requantised(tensors=made, weights=weights, notes=_notes(types))


def _conversion(processor: Any, tensor: GgufTensor) -> Callable[[Array], Array]:
    """Return what transformers makes of the tensor's values; raises ExportError where it takes it apart."""

    def convert(values: Array) -> Array:
        found = processor.process(values, tensor.name, parsed_parameters={"tensors": {}})
        if found.name != tensor.name:
            raise ExportError(
                f"The tensor {tensor.name} of the GGUF file is part of a weight that was changed; export the model as "
                "a folder."
            )
        return np.asarray(found.weights)

    return convert


def _values(tensor: GgufTensor) -> Array:
    """Return the values of a tensor, float32, in numpy's order of dimensions."""
    kind = GGMLQuantizationType(tensor.kind)
    block, block_bytes = GGML_QUANT_SIZES[kind]
    data = np.frombuffer(b"".join(tensor.pieces()), dtype=np.uint8)
    rows = data.reshape(*tensor.shape[:0:-1], tensor.shape[0] // block * block_bytes)
    return np.array(gguf.dequantize(rows, kind), dtype=np.float32)  # a copy: torch takes no memory that is read-only


def _turned_back(convert: Callable[[Array], Array], weight: Array, shape: tuple[int, ...]) -> Array | None:
    """Return the values, of this shape, that `convert` makes the weight of; None where it is not turned round here.

    It may move entries and add a number. Another function of the numbers (mamba's logarithm) does not give each of
    them once.
    """
    nothing = np.broadcast_to(np.float32(0), shape)
    with np.errstate(all="ignore"):
        converted = convert(nothing)
        if converted is nothing:
            return weight
        added = float(converted.flat[0])
        moved = convert(np.arange(weight.size, dtype=np.int64).reshape(shape)).reshape(-1) - added
    if not np.array_equal(np.sort(moved), np.arange(weight.size)):
        return None
    values = np.empty(weight.size, dtype=np.float32)
    values[moved.astype(np.int64)] = weight.reshape(-1) - np.float32(added)
    return values.reshape(shape)


def _quantised(source: GgufTensor, values: Array) -> GgufTensor:
    """Return a tensor of these values in the type of the one that it replaces, else in Q8_0."""
    kind = GGMLQuantizationType(source.kind)
    try:
        stored = gguf.quantize(values, kind)
    except NotImplementedError:
        kind = _INSTEAD
        stored = gguf.quantize(values, kind)
    data = np.ascontiguousarray(stored).tobytes()
    return GgufTensor(name=source.name, shape=source.shape, kind=int(kind), num_bytes=len(data), data=data)


def _notes(types: list[tuple[str, str]]) -> tuple[str, ...]:
    """Return what was written in which type, a sentence for each."""
    notes = []
    for before, after in dict.fromkeys(types):
        number = counted(types.count((before, after)), "changed tensor")
        if before == after:
            notes.append(f"{number} quantised anew in the type of the original, {after}.")
        else:
            notes.append(f"{number} quantised anew as {after}: the original's type {before} cannot be written here.")
    return tuple(notes)
