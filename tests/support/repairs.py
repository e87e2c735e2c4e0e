"""A cut that a repair can undo exactly, for any family, and text that the uncut model itself wrote."""

from dataclasses import replace

import numpy as np
import torch

from shortviz.model.handle import ModelHandle
from shortviz.model.layers import layer_stack
from shortviz.model.prune import prune, put_weights, shared_copy
from shortviz.records.plan import PrunePlan
from shortviz.records.text import TextInfo, TokenSet
from shortviz.repair.probe import find_writers, open_probe
from tests.support.families import NUM_LAYERS, shared_handle

REMOVED = 2


def token_set(rows: list[np.ndarray]) -> TokenSet:
    info = TextInfo(source="rows for tests", rows=len(rows), tokens=sum(map(len, rows)), fingerprint="test")
    return TokenSet(rows=tuple(rows), info=info)


@torch.inference_mode()
def written_by(handle: ModelHandle, rows: int = 10, length: int = 24, seed: int = 0) -> TokenSet:
    """Rows sampled from the model, so that no other model has a lower loss on them (but for chance)."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 256, (rows, 1), generator=generator)
    while ids.shape[1] < length:
        logits = handle.model(input_ids=ids.to(handle.model.device), use_cache=False).logits[:, -1, :256].cpu()
        ids = torch.cat([ids, torch.multinomial((2 * logits).softmax(-1), 1, generator=generator)], dim=1)
    # Rows of several lengths, so that some are padded.
    return token_set([row[: length - i % 3].numpy() for i, row in enumerate(ids)])


def spoiled_cut(family: str) -> tuple[ModelHandle, ModelHandle, str]:
    """(uncut, cut, weight): the removed layer did nothing, but a weight of the layer before was changed after the cut.

    The best repair is that weight as it was.
    """
    base = shared_copy(shared_handle(family))
    layer = layer_stack(base.model).layers[REMOVED]
    put_weights(layer, {name: torch.zeros_like(weight) for name, weight in layer.named_parameters()})
    cut = shared_copy(prune(base, PrunePlan(num_layers=NUM_LAYERS, removed=(REMOVED,))))
    before = REMOVED - 1
    writers = find_writers(open_probe(cut, before))
    if not writers:
        return base, cut, ""
    weight = f"{layer_stack(cut.model).path}.{before}.{writers[0].name}.weight"
    old = cut.model.get_parameter(weight)
    noise = torch.randn(old.shape, generator=torch.Generator().manual_seed(3)).to(old.device)
    put_weights(cut.model, {weight: old + (noise if writers[0].scale else 2 * noise * old.std())})
    return replace(base, plan=None), cut, weight
