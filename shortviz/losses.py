"""What a model really loses: perplexity on windows and, for a pruned model, what changed from the uncut one."""

import hashlib
import statistics
import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from cachetools import LRUCache

from shortviz.errors import Stopped, TextError
from shortviz.handle import ModelHandle
from shortviz.logits import LogitHead, open_head
from shortviz.progress import NO_WATCH, Watch
from shortviz.records import Evaluation, Score, Tokens, WindowSet
from shortviz.sums import mean_and_stderr
from shortviz.window_scores import BaseWindow, WindowChange, WindowScore, compare_window, score_base, score_window


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
) -> Evaluation:
    """Return the loss of a model on windows, in nats per scored token; W-1 of a window's W tokens are scored.

    With `base`, the uncut model, also what changed on the same windows: the NLL's increase with a paired standard
    error, KL(uncut || pruned) per token, and the share of tokens with the same most likely next token. Standard errors
    are over windows; with one window they are NaN. `base_scores` keeps the uncut model's share of the work between
    calls. Partial results come by `Progress.snapshot`; a stop, heard within a window too, returns what the windows
    before it gave.

    Raises TextError where a window does not fit the model, NumericsError for NaN or Inf (the layer is named), Stopped
    where no window was finished.
    """
    check_windows(handle, windows)
    cache = base_scores if base_scores is not None or base is None else BaseScores(base)
    if cache is not None and base is not None and cache.handle is not base:
        raise ValueError("base_scores belongs to another model than base")
    head = _head_of(handle, windows.tokens[0], cache)
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
                score, change = compare_window(head, tokens, uncut, watch)
                own.append(score)
                before.append(uncut.score)
                changes.append(change)
        except Stopped:
            break
        watch.tell("evaluate", done=index + 1, total=len(windows.tokens), unit="windows", snapshot=partial)
    if not own:
        raise Stopped("Stopped before the first window was scored; there is no result yet.")
    return partial()


def _head_of(handle: ModelHandle, tokens: Tokens, cache: BaseScores | None) -> LogitHead:
    """Return how the handle's logits are made; a cut model has its uncut model's head, which was checked already."""
    if cache is None or type(handle.model) is not type(cache.handle.model):
        return open_head(handle, torch.tensor(tokens))
    return replace(cache.head(tokens), handle=handle)


def check_windows(handle: ModelHandle, windows: WindowSet) -> None:
    """Raise TextError where the windows are too long for the model or hold tokens that it does not have."""
    length, context = windows.tokens.shape[1], handle.info.context_length
    if context is not None and length > context:
        raise TextError(
            f"A window of {length} tokens is longer than the model's context of {context}; choose a window of at "
            f"most {context}."
        )
    highest = int(windows.tokens.max())
    if highest >= handle.info.vocab_size:
        raise TextError(
            f"The windows hold token {highest}, but the model's vocabulary has {handle.info.vocab_size}; "
            "make them with this model's tokenizer."
        )


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
    done = _evaluation(handle, windows, scores)
    return done if base is None else _with_base(done, base, before, changes)


def _evaluation(handle: ModelHandle, windows: WindowSet, scores: Sequence[WindowScore]) -> Evaluation:
    removed = () if handle.plan is None else handle.plan.removed
    complete = len(scores) == len(windows.tokens)
    return Evaluation(score=score_of_windows(handle, scores), text=windows.info, removed=removed, complete=complete)


def _with_base(
    done: Evaluation, base: ModelHandle, before: Sequence[WindowScore], changes: Sequence[WindowChange]
) -> Evaluation:
    increase, increase_stderr = mean_and_stderr([c.increase for c in changes])
    kl, kl_stderr = mean_and_stderr([c.kl for c in changes])
    same, same_stderr = mean_and_stderr([c.same_top1 for c in changes])
    return replace(
        done,
        base=score_of_windows(base, before),
        nll_increase=increase,
        nll_increase_stderr=increase_stderr,
        kl=kl,
        kl_stderr=kl_stderr,
        same_top1=same,
        same_top1_stderr=same_stderr,
    )
