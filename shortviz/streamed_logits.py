"""The logits of a model that is never whole in memory, with layers left out if asked: what a proof compares with."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from shortviz.errors import NumericsError
from shortviz.layer_calls import finish
from shortviz.progress import NO_WATCH, Watch
from shortviz.proving import EXPORT_STOPPED
from shortviz.streamed_model import StreamedModel


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
    model.drop_non_layer_modules()
    kept = [index for index in range(model.info.num_layers) if index not in removed]
    for index, layer in model.layers_in_turn(kept, aligned=True):
        watch.check(EXPORT_STOPPED)
        states = [calls[index].run(layer, state) for state, (_, calls) in zip(states, entered, strict=True)]
    model.load_non_layer_modules(head=True, aligned=True)
    found = []
    for tokens, state in zip(ids, states, strict=True):
        output = finish(model.model, model.stack, tokens, state, in_tuple=model.in_tuple)
        found.append(output.logits[0].cpu().contiguous().clone())
        if torch.isnan(found[-1]).any():
            raise NumericsError(
                "The model's logits are NaN, so no checkpoint can be proved equal; choose other layers."
            )
    model.drop_non_layer_modules()
    return found
