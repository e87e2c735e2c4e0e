"""What a cut of a streamed model is: its facts, and whether bypassing layers gives what the really cut model gives."""

from dataclasses import replace

import torch
from torch import Tensor

from shortviz.architectures import layer_stack, pruned_config
from shortviz.errors import ModelError
from shortviz.layer_calls import difference, record_calls
from shortviz.pruning import empty_model, pruned_info
from shortviz.records import ModelInfo, PrunePlan
from shortviz.streamed_model import StreamedModel, non_layer_modules
from shortviz.streamed_parts import compute_buffers
from shortviz.words import layers_text


def cut_facts(model: StreamedModel, plan: PrunePlan, tokens: Tensor) -> ModelInfo:
    """Return the facts of the cut model, made on meta and given the embeddings of `model`, which must be loaded.

    Its layers have the weights of those that stay, so it gives what bypassing gives if they are also called with the
    same masks and positions; that is compared on `tokens`, (rows, tokens). Raises PlanError where the stock config
    cannot express the cut, ModelError, naming the argument, where a layer would be called with something else.
    """
    with torch.inference_mode(mode=False):
        short = empty_model(model.model, pruned_config(model.model.config, plan)).eval().requires_grad_(False)
        info, stack = pruned_info(model.info, short, plan), layer_stack(short)
        # The empty model is in torch's default dtype, whatever the weights that it would share are in.
        info = replace(info, bytes=model.info.bytes - sum(model.info.layer_bytes[i] for i in plan.removed))
        for mine, theirs in zip(non_layer_modules(stack), non_layer_modules(model.stack), strict=True):
            mine.load_state_dict(theirs.state_dict(), assign=True)
            for weight in mine.parameters():
                weight._is_hf_initialized = True  # type: ignore[attr-defined]  # shared: nobody may fill it anew
            compute_buffers(short, stack, mine, model.placement.device)
    _, before = record_calls(model.stack, tokens, in_tuple=model.in_tuple)
    _, after = record_calls(stack, tokens, in_tuple=model.in_tuple)
    for new, old in enumerate(plan.kept):
        odd = difference(before[old], after[new])
        if odd is not None:
            raise ModelError(
                f"Without layers {layers_text(plan.removed)}, layer {old} of {model.info.id} is given another "
                f"{odd} than with them, so its loss cannot be streamed; measure it in memory, or choose other layers."
            )
    return info
