"""QLoRA: the frozen linear layers of a student in 4 bits while it is trained (Dettmers et al. 2023, arXiv 2305.14314).

What is learned is added to the cut model's own weights in their own precision: nothing that is kept was quantised.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from shortviz.architectures import layer_stack
from shortviz.errors import ResourceError
from shortviz.heal_packages import check_bitsandbytes


def check_quantiser(device: torch.device) -> None:
    """Raise ResourceError where weights cannot be held in 4 bits here: no CUDA device, or no bitsandbytes."""
    if device.type != "cuda":
        raise ResourceError(
            f"Training in 4 bits needs a CUDA device, and the model is on {device}; choose quantize none, or load the "
            "model with device cuda."
        )
    check_bitsandbytes()


def quantise_layers(model: PreTrainedModel) -> int:
    """Replace the linear layers inside the decoder layers by 4-bit ones, and return their number.

    The model must own its modules (a shared-tensor copy does); the tensors it shares with others are read, not changed.
    """
    import bitsandbytes as bnb

    compute = model.dtype if model.dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
    replaced = 0
    for layer in layer_stack(model).layers:
        for path, module in list(layer.named_modules()):
            if type(module) is nn.Linear:
                parent, _, leaf = path.rpartition(".")
                setattr(layer.get_submodule(parent), leaf, _in_4bit(bnb, module, compute))
                replaced += 1
    model.is_loaded_in_4bit = True  # what peft looks at
    return replaced


def _in_4bit(bnb: Any, linear: nn.Linear, compute: torch.dtype) -> nn.Module:
    made: nn.Module = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=compute,
        compress_statistics=True,
        quant_type="nf4",
        device="meta",
    )
    weight = linear.weight.detach()
    made.weight = bnb.nn.Params4bit(
        weight.to("cpu", copy=True), requires_grad=False, compress_statistics=True, quant_type="nf4", module=made
    ).to(weight.device)
    if linear.bias is not None:
        made.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
    return made
