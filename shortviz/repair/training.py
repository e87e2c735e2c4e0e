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
from torch import Tensor, nn

from shortviz.errors import NumericsError
from shortviz.measure.gradients import HeadLoss, head_logits
from shortviz.model.layers import LayerCall
from shortviz.repair.batches import PairedBatch
from shortviz.repair.candidate import Candidate, Trial, Work, open_tail
from shortviz.repair.fit import weights_tried

STEP_ROWS = 2
"""Rows behind one update."""
STEP = 0.015
"""The highest learning rate, as a share of a weight's root mean square: families keep theirs at sizes of their own."""
_WARMUP = 3
_SEED = 0


def train(candidate: Candidate, names: Sequence[str]) -> Trial:
    """Train weights of the layers from the candidate's place on; they stay if that lowers the loss on held-out rows.

    Names begin with the candidate's number of the layer. One pass over the rows to fit on, in a seeded order, by Adam
    whose rate rises for three steps and falls along half a cosine to 0. Raises Stopped when stopped.
    """
    before = candidate.nll
    weights, steps = _trained(candidate, names)
    try:
        after = candidate.nll_with(weights)
    except NumericsError:  # it ran away: what the refit gave is no worse for it
        after = np.full_like(before, np.inf)
    parts = [(candidate.numbers[int(index)], rest) for index, _, rest in (name.partition(".") for name in names)]
    numbers = list(dict.fromkeys(number for number, _ in parts))
    subject = f"Layer {numbers[0]} was" if len(numbers) == 1 else f"Layers {', '.join(map(str, numbers))} were"
    tokens = sum(int(batch.real.sum()) for batch in candidate.fit_on)
    return Trial(
        rejected=f"The training was not kept: with its {steps} steps",
        weights=tuple(f"{number}.{rest}" for number, rest in parts),
        found=steps,
        tokens=tokens,
        before=before,
        after=after,
        applied=candidate.keep_if_better(weights, after),
        remark=(
            f"{subject} then trained by {steps} steps on {tokens:,} tokens: loss on held-out rows "
            f"{candidate.mean(before):.4f} before that, {candidate.mean(after):.4f} after it."
        ),
    )


def _trained(candidate: Candidate, names: Sequence[str]) -> tuple[dict[str, Tensor], int]:
    """Return what the weights became, and in how many steps: it ends before one whose gradient is no number."""
    layers, work = candidate.layers, candidate.work
    _, tail = open_tail(work.base, work.tokens.rows[0])
    loss = head_loss(work)
    steps, behind = len(candidate.fit_on), len(layers) - candidate.place
    order = torch.randperm(steps, generator=torch.Generator().manual_seed(_SEED)).tolist()
    left = sum(len(batch.ids) for batch in (*candidate.fit_on, *candidate.held_out)) * behind
    done = 0
    with weights_tried(layers, {name: layers.get_parameter(name) for name in names}):
        live = [layers.get_parameter(name).requires_grad_() for name in names]
        # In half precision a step is less than a rounding, so it is the float32 copies that learn.
        masters = [w.detach().to(torch.promote_types(w.dtype, torch.float32), copy=True) for w in live]
        sizes = [float(master.square().mean().sqrt()) for master in masters]
        optimizer = torch.optim.Adam([{"params": [master]} for master in masters], betas=(0.9, 0.95))
        for batch in (candidate.fit_on[at] for at in order):
            add_gradients(candidate, batch, loss, tail)
            if not all(bool(weight.grad.isfinite().all()) for weight in live if weight.grad is not None):
                break
            rate = STEP * min(1.0, (done + 1) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * done / steps))
            for group, master, weight, size in zip(optimizer.param_groups, masters, live, sizes, strict=True):
                group["lr"] = rate * size
                master.grad = None if weight.grad is None else weight.grad.to(master.dtype)
                weight.grad = None
            optimizer.step()
            with torch.no_grad():
                for master, weight in zip(masters, live, strict=True):
                    weight.copy_(master)
            done += 1
            left -= len(batch.ids) * behind
            candidate.tell(len(batch.ids) * behind, f"step {done} of {steps} of the training")
    candidate.tell(left, f"{done} steps of the training")  # rows held out take no part in it
    return dict(zip(names, masters, strict=True)), done


def head_loss(work: Work) -> HeadLoss:
    """Return the loss that is trained on: half next tokens, half the uncut model's distribution."""
    ours, theirs = partial(head_logits, work.cut), partial(head_logits, work.base)
    return HeadLoss(logits=ours, uncut_logits=theirs, vocab_size=work.cut.info.vocab_size)


def add_gradients(candidate: Candidate, batch: PairedBatch, loss: HeadLoss, tail: Sequence[nn.Module]) -> None:
    """Add the gradient of a batch's loss to the weights that ask for one; `tail` is the uncut model's.

    The sum over tokens, not their mean: Adam's steps are the same, and float16 would lose small gradients.
    """
    states, real = _head_states(candidate, batch), batch.real[:, 1:].clone()
    scored, targets = states[:, :-1][real], batch.ids[:, 1:][real]
    uncut = batch.uncut_states[candidate.work.base.info.num_layers]
    with torch.inference_mode():
        for module in tail:
            uncut = module(uncut)
    _, gradient = loss.gradient(scored.detach(), targets, uncut[:, :-1][real].clone(), float(len(scored)))
    torch.autograd.backward(scored, gradient)


def _head_states(candidate: Candidate, batch: PairedBatch) -> Tensor:
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
