"""One model on one window: its NLL, and what a cut changed there, with the logits of a few tokens at a time."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shortviz.capture import residual_boundaries
from shortviz.errors import NumericsError
from shortviz.handle import ModelHandle
from shortviz.logits import LogitHead
from shortviz.progress import NO_WATCH, Watch
from shortviz.records import Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowScore:
    """One model on one window."""

    nll: float
    """Mean over the window's scored tokens, in nats."""
    tokens: int
    """Scored tokens."""
    seconds: float
    """Of the forward pass, head included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowChange:
    """What a cut changed on one window; means over its scored tokens."""

    increase: float
    kl: float
    same_top1: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BaseWindow:
    """The uncut model on one window, with what a comparison needs."""

    head: LogitHead
    score: WindowScore
    states: Tensor
    """What the head gets, (scored tokens, hidden), on the CPU in the model's dtype."""
    log_z: Tensor
    """Log of the softmax's denominator, (scored tokens,)."""
    top1: Tensor
    """Most likely next token, (scored tokens,)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Chunk:
    """Some scored tokens of a window."""

    where: slice
    states: Tensor
    logits: Tensor
    log_z: Tensor
    nll: Tensor
    """Of each token, float64."""
    seconds: float


@torch.inference_mode()
def _chunks(head: LogitHead, tokens: Tokens, watch: Watch) -> Iterator[_Chunk]:
    """Run a window and yield its scored tokens, a few at a time; the first chunk has the decoder's seconds too.

    Raises Stopped once `watch.stop` is set.
    """
    ids = torch.tensor(tokens)
    states, seconds = head.states(ids, watch)
    targets = ids[1:]
    for at in range(0, len(targets), head.chunk):
        watch.check("Stopped within a window.")
        where = slice(at, min(at + head.chunk, len(targets)))
        logits, took = head.timed_logits(states[where])
        log_z = logits.logsumexp(-1)
        chosen = targets[where, None].to(logits.device)
        nll = log_z.double() - logits.gather(-1, chosen)[:, 0].double()
        if not bool(torch.isfinite(nll).all()):
            raise NumericsError(where_not_finite(head.handle, ids))
        yield _Chunk(where=where, states=states[where], logits=logits, log_z=log_z, nll=nll, seconds=seconds + took)
        seconds = 0.0


def _score_of(chunks: Sequence[tuple[float, int, float]]) -> WindowScore:
    """Return the score of a window from (sum of NLL, tokens, seconds) of its chunks."""
    tokens = sum(c[1] for c in chunks)
    return WindowScore(nll=sum(c[0] for c in chunks) / tokens, tokens=tokens, seconds=sum(c[2] for c in chunks))


def score_window(head: LogitHead, tokens: Tokens, watch: Watch = NO_WATCH) -> WindowScore:
    """Return a model's score on one window, shape (tokens,); Stopped is raised within it once `watch.stop` is set."""
    return _score_of([(float(c.nll.sum()), len(c.nll), c.seconds) for c in _chunks(head, tokens, watch)])


@torch.inference_mode()
def score_base(head: LogitHead, tokens: Tokens, watch: Watch = NO_WATCH) -> BaseWindow:
    """Return the uncut model on one window, with what comparisons need; Stopped is raised as in `score_window`."""
    sums, kept = [], []
    for c in _chunks(head, tokens, watch):
        sums.append((float(c.nll.sum()), len(c.nll), c.seconds))
        kept.append((c.states.cpu(), c.log_z.cpu(), c.logits.argmax(-1).cpu()))
    states, log_z, top1 = (torch.cat(part) for part in zip(*kept, strict=True))
    return BaseWindow(head=head, score=_score_of(sums), states=states, log_z=log_z, top1=top1)


@torch.inference_mode()
def compare_window(
    head: LogitHead, tokens: Tokens, base: BaseWindow, watch: Watch = NO_WATCH
) -> tuple[WindowScore, WindowChange]:
    """Return a cut model's score on one window and what changed from the uncut model; Stopped as in `score_window`."""
    sums, kl, same = [], 0.0, 0
    for c in _chunks(head, tokens, watch):
        sums.append((float(c.nll.sum()), len(c.nll), c.seconds))
        same += int((c.logits.argmax(-1).cpu() == base.top1[c.where]).sum())
        before = base.head.logits(base.states[c.where]).to(c.logits.device)
        kl += float(kl_sum(before, base.log_z[c.where].to(before.device), c.logits, c.log_z))
    if not math.isfinite(kl):
        raise NumericsError("The KL divergence from the uncut model is NaN or Inf; load the model with dtype float32.")
    score = _score_of(sums)
    change = WindowChange(increase=score.nll - base.score.nll, kl=kl / score.tokens, same_top1=same / score.tokens)
    return score, change


def kl_sum(before: Tensor, log_z_before: Tensor, after: Tensor, log_z_after: Tensor) -> Tensor:
    """Return the sum over tokens of KL(before || after), float64, from logits (tokens, vocabulary).

    Overwrites `before` and `after`. Exactly 0 for equal logits.
    """
    log_p = before.sub_(log_z_before[:, None])
    difference = torch.sub(log_p, after.sub_(log_z_after[:, None]), out=after)
    # A pairwise sum: a dot product (einsum) adds up 49k small terms in a row and was 2e-4 off on the demo model.
    return log_p.exp_().mul_(difference).sum(-1).double().sum()


def where_not_finite(handle: ModelHandle, tokens: Tensor) -> str:
    """Return a sentence that names the first layer whose output is NaN or Inf, found by running the window again."""
    bad: list[int] = []

    def keep(boundary: int, hidden: Tensor) -> None:
        if not bool(torch.isfinite(hidden).all()):
            bad.append(boundary)

    with handle.lock, residual_boundaries(handle, keep) as decoder:
        decoder(input_ids=tokens.to(handle.model.device)[None], use_cache=False)
    kept: Sequence[int] = range(handle.info.num_layers) if handle.plan is None else handle.plan.kept
    if not bad:
        where = "The final norm or the head"
    elif min(bad) == 0:
        where = "The embedding"
    else:
        where = f"Layer {kept[min(bad) - 1]}"
    return (
        f"{where} of {handle.info.id} gives NaN or Inf in {handle.info.dtype}; check the weights, or load the model "
        "with dtype float32."
    )
