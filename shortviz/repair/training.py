"""A short training of what a refit changed, by what the whole model says: the one repair that is not in closed form.

The refit brings the layer before a seam near to what the uncut model had there; which of what it misses matters to the
layers behind, it cannot know. One pass over the same rows, by the gradient of the loss at the end (half next tokens,
half the uncut model's distribution), tells it. Rows stand where they enter the layer, so what comes before never runs.
"""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from shortviz.errors import NumericsError
from shortviz.measure.gradients import HeadLoss, head_logits
from shortviz.model.layers import LayerCall
from shortviz.repair.batches import STOPPED, PairedBatch
from shortviz.repair.candidate import Candidate, Trial, open_tail
from shortviz.repair.fit import weights_tried

STEP_ROWS = 2
"""Rows behind one update."""
STEP = 0.015
"""The highest learning rate, as a share of a weight's root mean square: families keep theirs at sizes of their own."""
_WARMUP = 3
_SEED = 0


def train(candidate: Candidate, names: Sequence[str]) -> Trial:
    """Train weights of the layers from the candidate's place on; they stay if that lowers the loss on held-out rows.

    Names begin with the uncut model's number of the layer. One pass over the rows to fit on, in a seeded order, by Adam
    whose rate rises for three steps and falls along half a cosine to 0. Raises Stopped when stopped.
    """
    before, tokens = candidate.nll, sum(int(batch.real.sum()) for batch in candidate.fit_on)
    parts = [name.partition(".") for name in names]
    weights = _trained(candidate, [f"{candidate.numbers.index(int(number))}.{rest}" for number, _, rest in parts])
    try:
        after = candidate.nll_with(weights)
    except NumericsError:  # it ran away: what the refit gave is no worse for it
        after = np.full_like(before, np.inf)
    how = f"trained by {len(candidate.fit_on)} steps on {tokens:,} tokens"
    return Trial(
        subject="What was refitted",
        how=how,
        weights=tuple(names),
        found=None,
        tokens=tokens,
        before=before,
        after=after,
        applied=candidate.keep_if_better(weights, after),
        remark=(
            f"What was refitted was then {how}: loss on held-out rows {candidate.mean(before):.4f} before that, "
            f"{candidate.mean(after):.4f} after it."
        ),
    )


def _trained(candidate: Candidate, names: Sequence[str]) -> dict[str, Tensor]:
    """Return what the weights became; where the loss is no number any more, what they were before that step.

    Names begin with the candidate's number of the layer.
    """
    layers, work = candidate.layers, candidate.work
    behind, steps = len(layers) - candidate.place, len(candidate.fit_on)
    head, tail = open_tail(work.base, work.tokens.rows[0])
    loss = HeadLoss(
        logits=partial(head_logits, candidate.handle),
        uncut_logits=partial(head_logits, head.handle),
        vocab_size=candidate.handle.info.vocab_size,
    )
    order = torch.randperm(steps, generator=torch.Generator().manual_seed(_SEED)).tolist()
    with weights_tried(layers, {name: layers.get_parameter(name) for name in names}):
        live = [layers.get_parameter(name).requires_grad_() for name in names]
        # In half precision a step is less than a rounding, so it is the float32 copies that learn.
        masters = [w.detach().to(torch.promote_types(w.dtype, torch.float32), copy=True) for w in live]
        sizes = [float(master.square().mean().sqrt()) for master in masters]
        optimizer = torch.optim.Adam([{"params": [master]} for master in masters], betas=(0.9, 0.95))
        for step, at in enumerate(order):
            work.watch.check(STOPPED)
            batch = candidate.fit_on[at]
            states = head_states(candidate, batch)
            real = batch.real[:, 1:].clone()
            scored, targets = states[:, :-1][real], batch.ids[:, 1:][real]
            uncut = batch.uncut_states[work.base.info.num_layers]
            with torch.inference_mode():
                for module in tail:
                    uncut = module(uncut)
            found, gradient = loss.gradient(scored.detach(), targets, uncut[:, :-1][real].clone(), 1.0)
            if not math.isfinite(found):
                break
            torch.autograd.backward(scored, gradient)
            rate = STEP * min(1.0, (step + 1) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group, master, weight, size in zip(optimizer.param_groups, masters, live, sizes, strict=True):
                group["lr"] = rate * size
                master.grad = None if weight.grad is None else weight.grad.to(master.dtype)
                weight.grad = None
            optimizer.step()
            with torch.no_grad():
                for master, weight in zip(masters, live, strict=True):
                    weight.copy_(master)
            candidate.tell(len(batch.ids) * behind, f"step {step + 1} of {steps} of the training")
        return dict(zip(names, masters, strict=True))


def head_states(candidate: Candidate, batch: PairedBatch) -> Tensor:
    """Return what the head gets for a batch, (rows, tokens, hidden), with the way back to the trained weights."""
    states = batch.state.clone()
    calls = _with_gradients([batch.calls[number] for number in candidate.numbers[candidate.place :]])
    for layer, call in zip(candidate.layers[candidate.place :], calls, strict=True):
        states = call.run(layer, states)
    for module in candidate.tail:
        states = module(states)
    return states


def _with_gradients(calls: Sequence[LayerCall]) -> list[LayerCall]:
    """Return the calls with tensors that a gradient may pass, which those born in inference mode are not.

    Keys and values that layers leave for later ones go into a store of this pass.
    """
    store = calls[0].store
    if store is not None:
        fresh = type(store)()
        fresh.update({key: tuple(tensor.clone() for tensor in tensors) for key, tensors in store.items()})
        store = fresh
    return [call.mapped(Tensor.clone).storing(store) for call in calls]
