"""Models spread over several devices: `device_map="auto"` of transformers and accelerate, here the device `spread`.

accelerate puts a hook on each part of such a model that moves what the part is given to where its weights are, so a
layer may be called with states from anywhere, and its output lies on the layer's own device.
"""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import dispatch_model
from transformers import PreTrainedModel

from shortviz.errors import ModelError, ResourceError
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import rename_state
from shortviz.records.plan import PrunePlan

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
