"""Which dtype and device a model is loaded in, why, how much memory is free there, and models on several devices."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import dispatch_model
from torch import Tensor
from transformers import PreTrainedModel

from shortviz.errors import ModelError, ResourceError
from shortviz.files import free_bytes
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import rename_state
from shortviz.records.model import SPREAD, ModelRef
from shortviz.records.plan import PrunePlan

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where a model goes and in what dtype."""

    dtype: torch.dtype
    device: torch.device
    """The first one, of a model that is spread over several."""
    reason: str
    """One sentence, for people."""
    spread: tuple[torch.device, ...] = ()
    """All devices of a model that is spread over several."""

    @property
    def dtype_name(self) -> str:
        """The dtype without `torch.`."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def device_name(self) -> str:
        """The device, or all devices, for people."""
        return ", ".join(map(str, self.spread)) or str(self.device)

    @property
    def free_memory(self) -> int:
        """The bytes of memory that are free there now."""
        return sum(map(free_memory, self.spread)) if self.spread else free_memory(self.device)


def choose_placement(ref: ModelRef) -> Placement:
    """Return the device and dtype for a model, with the reason.

    Raises:
        ModelError: For a name that is unknown, or a device that this machine does not have.
    """
    spread = _all_gpus() if ref.device == SPREAD else ()
    device = spread[0] if spread else _device(ref.device)
    where = "the CPU" if device.type == "cpu" else ", ".join(map(str, spread)) or str(device)
    if ref.dtype != "auto":
        if ref.dtype not in DTYPES:
            raise ModelError(f"There is no dtype {ref.dtype!r}; choose one of auto, {', '.join(DTYPES)}.")
        dtype, why = ref.dtype, ", as asked for"
    elif device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        dtype, why = "bfloat16", ": this GPU computes in it natively"
    elif device.type == "cuda":
        dtype, why = "float32", ": this GPU does not compute in bfloat16 natively"
    else:
        no_gpu = "no GPU was found, and " if ref.device == "auto" else ""
        dtype, why = "float32", f": {no_gpu}CPUs are slow in half precision, which also blurs small distances"
    return Placement(dtype=DTYPES[dtype], device=device, spread=spread, reason=f"{dtype} on {where}{why}.")


def _all_gpus() -> tuple[torch.device, ...]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < 2:
        raise ModelError(
            f"The device {SPREAD} puts a model on several GPUs, and this machine has {count}; choose auto, and "
            "streaming where the model does not fit."
        )
    return tuple(torch.device("cuda", index) for index in range(count))


def _device(name: str) -> torch.device:
    kind, _, index = name.partition(":")
    if name == "mps":
        raise ModelError("The device mps has no float64, in which everything is summed here; choose auto or cpu.")
    if kind not in ("auto", "cpu", "cuda") or (index and (kind != "cuda" or not index.isdecimal())):
        raise ModelError(f"There is no device {name!r}; choose one of auto, cpu, cuda, cuda:0, {SPREAD}.")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "auto":
        kind = "cuda" if gpus else "cpu"
    if kind == "cuda" and int(index or 0) >= gpus:
        found = f"{gpus} CUDA device(s), numbered from 0" if gpus else "no CUDA device that PyTorch can use"
        raise ModelError(f"The device {name} was asked for, but this machine has {found}; choose auto or cpu.")
    return torch.device(kind, int(index or 0)) if kind == "cuda" else torch.device(kind)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device. To a GPU nobody waits for it: only from pinned memory is it sent on the side."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def free_memory(device: torch.device) -> int:
    """Return the bytes of memory that are free on the device now; on the CPU, within this container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_bytes()


# Models spread over several devices: `device_map="auto"` of transformers and accelerate, here the device `spread`.
#
# accelerate puts a hook on each part of such a model that moves what the part is given to where its weights are, so a
# layer may be called with states from anywhere, and its output lies on the layer's own device.

_NOT_A_DEVICE = ("cpu", "meta")
"""Where the weights are that accelerate found no room for on the devices: on meta between two calls."""


def devices_of(model: PreTrainedModel) -> tuple[torch.device, ...]:
    """Return the devices that hold the model's weights, that of the first weight first."""
    return tuple(dict.fromkeys(weight.device for weight in model.parameters()))


def is_spread(model: PreTrainedModel) -> bool:
    """Tell whether the model's weights are on several devices."""
    return len(devices_of(model)) > 1


def place_like(original: PreTrainedModel, cut: PreTrainedModel, plan: PrunePlan, path: str) -> None:
    """Give a cut model, whose tensors are the original's, hooks of its own where the original has some.

    accelerate's hooks are on modules, and a cut model has modules of its own. No tensor is moved but buffers that were
    computed anew.
    """
    if not is_spread(original):
        return
    places: Mapping[str, Any] = getattr(original, "hf_device_map", {})
    renamed = {new: places[old] for new, old in rename_state(places, plan, path).items()}
    skipped = getattr(original, "_skip_keys_device_placement", None)
    dispatch_model(cut, renamed, main_device=original.device, skip_keys=skipped, force_hooks=True)


def refuse_offloaded(name: str, model: PreTrainedModel) -> None:
    """Raise ResourceError where a part of a spread model found no room on the devices."""
    weights = [(weight, tensor.device.type) for weight, tensor in model.named_parameters()]
    left = [weight for weight, kind in weights if kind in _NOT_A_DEVICE]
    if left:
        raise ResourceError(
            f"The GPUs of this machine have no room for {len(left)} of {len(weights)} weights of {name} "
            f"({left[0]}, ...); stream it, which needs no more memory than a layer or two."
        )


def refuse_spread(handle: ModelHandle, what: str) -> None:
    """Raise ModelError where the model is spread over several devices, which `what` is not made for."""
    if is_spread(handle.model):
        where = ", ".join(map(str, devices_of(handle.model)))
        raise ModelError(
            f"{what} needs a model on one device, and {handle.info.id} is spread over {where}; load it anew."
        )
