"""What a model really loses: perplexity on windows and, for a pruned model, what changed from the uncut one."""

import hashlib
import math
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from cachetools import LRUCache
from torch import Tensor

from shortviz.errors import NumericsError, Stopped
from shortviz.measure.batches import check_fits
from shortviz.measure.logits import LogitHead, open_head
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import residual_boundaries
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.measured import Evaluation, Score
from shortviz.records.sums import mean_and_stderr
from shortviz.records.text import Tokens, WindowSet


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
    """What a cut changed on one window, by the names of an Evaluation; means over its scored tokens."""

    nll_increase: float
    kl: float
    same_top1: float


TOP = 5
"""Most likely next tokens that are kept of each token."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenScores:
    """One model on each scored token of a window, on the CPU."""

    nll: Tensor
    """In nats, (tokens,), float64."""
    top: Tensor
    """The most likely tokens in its place, the likeliest first, (tokens, TOP)."""
    shares: Tensor
    """Their probabilities, (tokens, TOP)."""


OnTokens = Callable[[TokenScores, TokenScores], None]
"""Gets the uncut and the cut model on a window."""


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

    @property
    def part(self) -> tuple[float, int, float]:
        """Its share of a window's score: (sum of NLL, tokens, seconds)."""
        return float(self.nll.sum()), len(self.nll), self.seconds


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


def _score_of(parts: Sequence[tuple[float, int, float]]) -> WindowScore:
    """Return the score of a window from those of its chunks."""
    nll, tokens, seconds = map(sum, zip(*parts, strict=True))
    return WindowScore(nll=nll / tokens, tokens=tokens, seconds=seconds)


def score_window(head: LogitHead, tokens: Tokens, watch: Watch = NO_WATCH) -> WindowScore:
    """Return a model's score on one window, shape (tokens,); Stopped is raised within it once `watch.stop` is set."""
    return _score_of([c.part for c in _chunks(head, tokens, watch)])


@torch.inference_mode()
def score_base(head: LogitHead, tokens: Tokens, watch: Watch = NO_WATCH) -> BaseWindow:
    """Return the uncut model on one window, with what comparisons need; Stopped is raised as in `score_window`."""
    parts, kept = [], []
    for c in _chunks(head, tokens, watch):
        parts.append(c.part)
        kept.append((c.states.cpu(), c.log_z.cpu(), c.logits.argmax(-1).cpu()))
    states, log_z, top1 = map(torch.cat, zip(*kept, strict=True))
    return BaseWindow(head=head, score=_score_of(parts), states=states, log_z=log_z, top1=top1)


@torch.inference_mode()
def compare_window(
    head: LogitHead, tokens: Tokens, base: BaseWindow, watch: Watch = NO_WATCH, on_tokens: OnTokens | None = None
) -> tuple[WindowScore, WindowChange]:
    """Return a cut model's score on one window and what changed from the uncut model; Stopped as in `score_window`.

    `on_tokens` is told what both models made of each token.
    """
    parts, kl, same = [], 0.0, 0
    each: list[tuple[TokenScores, TokenScores]] = []
    for c in _chunks(head, tokens, watch):
        parts.append(c.part)
        same += int((c.logits.argmax(-1).cpu() == base.top1[c.where]).sum())
        before = base.head.logits(base.states[c.where]).to(c.logits.device)
        log_z = base.log_z[c.where].to(before.device)
        if on_tokens is not None:  # before the divergence, which overwrites the logits
            targets = torch.tensor(tokens)[1:][c.where, None].to(before.device)
            each.append((_token_scores(before, log_z, targets), _token_scores(c.logits, c.log_z, targets)))
        kl += float(kl_sum(before, log_z, c.logits, c.log_z))
    if not math.isfinite(kl):
        raise NumericsError("The KL divergence from the uncut model is NaN or Inf; load the model with dtype float32.")
    if on_tokens is not None:
        on_tokens(*map(_joined, zip(*each, strict=True)))
    score = _score_of(parts)
    change = WindowChange(nll_increase=score.nll - base.score.nll, kl=kl / score.tokens, same_top1=same / score.tokens)
    return score, change


def _token_scores(logits: Tensor, log_z: Tensor, targets: Tensor) -> TokenScores:
    nll = log_z.double() - logits.gather(-1, targets)[:, 0].double()
    values, top = logits.topk(min(TOP, logits.shape[-1]))
    return TokenScores(nll=nll.cpu(), top=top.cpu(), shares=(values - log_z[:, None]).exp().cpu())


def _joined(parts: Sequence[TokenScores]) -> TokenScores:
    return TokenScores(**{name: torch.cat([getattr(p, name) for p in parts]) for name in ("nll", "top", "shares")})


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
    where = "The final norm or the head"
    if bad:
        where = f"Layer {handle.whole_plan.kept[min(bad) - 1]}" if min(bad) else "The embedding"
    return (
        f"{where} of {handle.info.id} gives NaN or Inf in {handle.info.dtype}; check the weights, or load the model "
        "with dtype float32."
    )


class BaseScores:
    """The uncut model's results per window, kept so that the next block of the same model need not make them again.

    Grows window by window, whatever window set they come from. One window of W tokens keeps W x hidden numbers in
    the model's dtype (1.2 MB for 512 x 576 float32); beyond `limit_bytes` the window used longest ago is dropped.
    """

    def __init__(self, handle: ModelHandle, *, limit_bytes: int = 256 * 2**20) -> None:
        self.handle = handle
        self._windows: LRUCache[bytes, BaseWindow] = LRUCache(limit_bytes, getsizeof=lambda w: w.states.nbytes)
        self._head: LogitHead | None = None
        self._lock = threading.RLock()

    @property
    def windows(self) -> int:
        """Windows kept now."""
        return len(self._windows)

    @property
    def bytes(self) -> int:
        """Memory of the kept states."""
        return int(self._windows.currsize)

    def head(self, tokens: Tokens) -> LogitHead:
        """Return how the uncut model's logits are made, checked once on the first few tokens."""
        with self._lock:
            if self._head is None:
                self._head = open_head(self.handle, torch.tensor(tokens))
            return self._head

    def window(self, tokens: Tokens, watch: Watch = NO_WATCH) -> BaseWindow:
        """Return the uncut model on one window, from memory where it is known; raises Stopped where asked to."""
        key = hashlib.sha256(np.ascontiguousarray(tokens).tobytes()).digest()
        with self._lock:
            found = self._windows.get(key)
            if found is None:
                found = score_base(self.head(tokens), tokens, watch)
                if found.states.nbytes <= self._windows.maxsize:
                    self._windows[key] = found
            return found


def evaluate(
    handle: ModelHandle,
    windows: WindowSet,
    *,
    base: ModelHandle | None = None,
    base_scores: BaseScores | None = None,
    watch: Watch = NO_WATCH,
    on_tokens: OnTokens | None = None,
) -> Evaluation:
    """Return the loss of a model on windows, in nats per scored token; W-1 of a window's W tokens are scored.

    With `base`, the uncut model, also what changed on the same windows: the NLL's increase with a paired standard
    error, KL(uncut || pruned) per token, and the share of tokens with the same most likely next token. Standard errors
    are over windows; with one window they are NaN. `base_scores` keeps the uncut model's share of the work between
    calls; `on_tokens` is told what both models made of each token of the first window. Partial results come by
    `Progress.snapshot`; a stop, heard within a window too, returns what the windows before it gave.

    Raises TextError where a window does not fit the model, NumericsError for NaN or Inf (the layer is named), Stopped
    where no window was finished.
    """
    check_windows(handle, windows)
    cache = base_scores if base_scores is not None or base is None else BaseScores(base)
    if cache is not None and base is not None and cache.handle is not base:
        raise ValueError("base_scores belongs to another model than base")
    if cache is not None and type(handle.model) is type(cache.handle.model):
        head = replace(cache.head(windows.tokens[0]), handle=handle)  # checked already: a cut model has the same head
    else:
        head = open_head(handle, torch.tensor(windows.tokens[0]))
    own: list[WindowScore] = []
    before: list[WindowScore] = []
    changes: list[WindowChange] = []

    def partial() -> Evaluation:
        uncut = None if cache is None else cache.handle
        return evaluation_of(handle, windows, own, base=uncut, before=before, changes=changes)

    for index, tokens in enumerate(windows.tokens):
        try:
            if cache is None:
                own.append(score_window(head, tokens, watch))
            else:
                uncut = cache.window(tokens, watch)
                score, change = compare_window(head, tokens, uncut, watch, None if index else on_tokens)
                own.append(score)
                before.append(uncut.score)
                changes.append(change)
        except Stopped:
            break
        watch.tell("evaluate", done=index + 1, total=len(windows.tokens), unit="windows", snapshot=partial)
    if not own:
        raise Stopped("Stopped before the first window was scored; there is no result yet.")
    return partial()


def check_windows(handle: ModelHandle, windows: WindowSet) -> None:
    """Raise TextError where the windows are too long for the model or hold tokens that it does not have."""
    check_fits(handle.info, windows.tokens.shape[1], int(windows.tokens.max()), "window", "window")


def score_of_windows(handle: ModelHandle, windows: Sequence[WindowScore]) -> Score:
    """Return the record of a model on several windows of equal length."""
    nll, stderr = mean_and_stderr([w.nll for w in windows])
    return Score(
        nll=nll,
        nll_stderr=stderr,
        tokens=sum(w.tokens for w in windows),
        windows=len(windows),
        forward_seconds=statistics.median(w.seconds for w in windows),
        parameters=handle.info.parameters,
        bytes=handle.info.bytes,
        cache_bytes_per_token=sum(handle.info.layer_cache_bytes),
        window_nll=tuple(w.nll for w in windows),
    )


def evaluation_of(
    handle: ModelHandle,
    windows: WindowSet,
    scores: Sequence[WindowScore],
    *,
    base: ModelHandle | None = None,
    before: Sequence[WindowScore] = (),
    changes: Sequence[WindowChange] = (),
) -> Evaluation:
    """Return the record of scored windows; with `base`, of its scores and the changes on the same windows too."""
    found = Evaluation(
        score=score_of_windows(handle, scores),
        text=windows.info,
        removed=handle.removed,
        complete=len(scores) == len(windows.tokens),
    )
    if base is None:
        return found
    changed: dict[str, Any] = {}
    for name in ("nll_increase", "kl", "same_top1"):
        changed[name], changed[f"{name}_stderr"] = mean_and_stderr([getattr(change, name) for change in changes])
    return replace(found, base=score_of_windows(base, before), **changed)
