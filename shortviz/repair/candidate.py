"""A candidate for the repaired model: layers are fitted one after another, each judged before it stays."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from shortviz.errors import ModelError, NumericsError, TextError
from shortviz.measure.batches import batches_by_length
from shortviz.measure.logits import LogitHead, open_head
from shortviz.measure.losses import score_window
from shortviz.measure.replay import find_tail
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import layer_stack
from shortviz.model.prune import put_weights, shared_copy
from shortviz.progress import Watch
from shortviz.records.json import Floats
from shortviz.records.ledger import TRAINED
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.text import Tokens, TokenSet
from shortviz.repair.batches import STOPPED, PairedBatch, open_paired_batch
from shortviz.repair.fit import FitTarget, Fitted, Moments, fit, gather, weights_tried
from shortviz.repair.pool import choose

_PROBE_TOKENS = 16
_TOLERANCE = 2e-3
"""In nats: what running layer by layer may differ from the model's own forward pass; half precision, fifty times."""
SCALE_ONLY = "A norm follows the MLP of layer {}: only its scale is refitted, one number a channel, which wins little."
"""Of Gemma 2 and 3, OLMo 2 and their kind: said before the work, and of its result."""
HELD_OUT_EVERY = 8
"""Every eighth row is left out of the fit: the ridge is chosen, and the repair judged, on those."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Work:
    """One repair, checked."""

    cut: ModelHandle
    base: ModelHandle
    plan: PrunePlan
    method: str
    blocks: tuple[Block, ...]
    """Removed runs of layers whose seams are to be repaired, from the front."""
    tokens: TokenSet
    batch_size: int
    watch: Watch

    @property
    def fitted(self) -> list[Tokens]:
        """Rows to fit on."""
        return [row for i, row in enumerate(self.tokens.rows) if i % self._every != self._every - 1]

    @property
    def held_out(self) -> list[Tokens]:
        """Rows to judge on."""
        return [row for i, row in enumerate(self.tokens.rows) if i % self._every == self._every - 1]

    @property
    def _every(self) -> int:
        return min(HELD_OUT_EVERY, len(self.tokens.rows))

    def check_enough(self, unknowns: int) -> None:
        """Raise TextError where there are fewer tokens to fit on than numbers to fit for each channel."""
        if len(self.tokens.rows) < 2:
            raise TextError("The text has one row, and another is needed to judge the repair on; give several rows.")
        given = sum(map(len, self.fitted))
        if given < unknowns:
            total = sum(map(len, self.tokens.rows))
            row = max(map(len, self.tokens.rows))  # one may be held out, and a rest may not fill another
            needed = row + max(-(-unknowns * HELD_OUT_EVERY // (HELD_OUT_EVERY - 1)), unknowns + row)
            raise TextError(
                f"{self.method} fits {unknowns:,} numbers for each channel, and {given:,} of the text's {total:,} "
                f"tokens are there to fit on; give at least {needed:,} tokens."
            )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trial:
    """One change to the candidate, judged."""

    rejected: str
    """How the sentence begins where it is not applied, e.g. `Layer 11 was left as it was: refitted`."""
    weights: tuple[str, ...]
    """Names of the new weights, layers in the uncut model's numbers, e.g. `11.mlp.down_proj.weight`."""
    found: float
    """The ridge that was chosen, or the factor; of a training, the steps that it made."""
    tokens: int
    """Fitted on."""
    before: Floats
    """NLL of each held-out row without this change, with those before it."""
    after: Floats
    applied: bool
    remark: str = ""
    """What is to be said of the change where it is applied."""


@dataclass(kw_only=True, slots=True, eq=False)
class Candidate:
    """A model of one's own on its way from cut to repaired."""

    work: Work
    handle: ModelHandle
    layers: nn.ModuleList
    fit_on: list[PairedBatch]
    held_out: list[PairedBatch]
    weights: Floats
    """Scored tokens of each held-out row."""
    head: LogitHead
    tail: tuple[nn.Module, ...]
    """What stands between the last layer and the head."""
    place: int
    """The layer that the streams are about to enter."""
    tell: Callable[[int, str], None]
    """Told of rows done, and in which part of the work; raises Stopped where a stop was asked for."""
    nll: Floats = field(default_factory=lambda: np.array([]))
    """Of each held-out row, mean over its scored tokens, as the candidate is now."""

    @property
    def numbers(self) -> Sequence[int]:
        """The layers' numbers in the uncut model."""
        return self.work.plan.kept

    def mean(self, nll: Floats) -> float:
        """Return the mean over held-out tokens."""
        return float(np.average(nll, weights=self.weights))

    def go_to(self, layer: int) -> None:
        """Take the batches to the entrance of a layer, at or after the candidate's place."""
        for batch in (*self.fit_on, *self.held_out):
            batch.state = self.entering(batch, layer)
        self.place = layer

    def standing(self) -> tuple[int, list[Tensor]]:
        """Return the place and the batches' states, for `go_back`."""
        return self.place, [batch.state for batch in (*self.fit_on, *self.held_out)]

    def go_back(self, standing: tuple[int, list[Tensor]]) -> None:
        """Take the batches to where they stood before."""
        self.place, states = standing
        for batch, state in zip((*self.fit_on, *self.held_out), states, strict=True):
            batch.state = state

    @torch.inference_mode()
    def entering(self, batch: PairedBatch, layer: int) -> Tensor:
        """Return what enters a layer, (rows, tokens, hidden); the batch stays where it is."""
        state = batch.state.clone()
        for index in range(self.place, layer):
            state = batch.calls[self.numbers[index]].run(self.layers[index], state)
        return state

    @torch.inference_mode()
    def through_tail(self, state: Tensor) -> Tensor:
        """Return what the head gets for what leaves the last layer."""
        for module in self.tail:
            state = module(state)
        return state

    @torch.inference_mode()
    def judge(self, *, told: bool = True) -> Floats:
        """Return the NLL of each held-out row as the candidate is now; progress is told if asked."""
        self.work.watch.check(STOPPED)
        found: list[float] = []
        for batch in self.held_out:
            states = self.through_tail(self.entering(batch, len(self.layers)))
            lengths = batch.real.sum(1).tolist()
            found += [self._row(s[:r], i[:r]) for s, i, r in zip(states, batch.ids, lengths, strict=True)]
            if told:
                detail = "the loss on held-out rows, with what was fitted"
                done, total = len(found), len(self.weights)
                self.work.watch.tell("judge", done=done, total=total, unit="rows", detail=detail)
        return np.array(found)

    def _row(self, states: Tensor, ids: Tensor) -> float:
        total = 0.0
        for low in range(0, len(ids) - 1, self.head.chunk):
            targets = ids[low + 1 : low + 1 + self.head.chunk]
            logits = self.head.logits(states[low : low + len(targets)])
            chosen = logits.gather(-1, targets[:, None])[:, 0]
            total += float((logits.logsumexp(-1).double() - chosen.double()).sum())
        if not np.isfinite(total):
            raise NumericsError(
                "The loss on held-out text is NaN or Inf; check the weights, or load the model with dtype float32."
            )
        return total / (len(ids) - 1)

    def nll_with(self, weights: Mapping[str, Tensor]) -> Floats:
        """Return the NLL of each held-out row with some weights in the layers' place; the candidate stays as it is.

        Names begin with the candidate's number of the layer, which is not before the candidate's place.
        """
        with weights_tried(self.layers, weights):
            return self.judge()

    def keep_if_better(self, weights: Mapping[str, Tensor], after: Floats) -> bool:
        """Put weights into the layers if the held-out loss falls with them, to `after`; return whether it does."""
        better = self.mean(after) < self.mean(self.nll)
        if better:
            put_weights(self.layers, weights)
            self.nll = after
        return better

    def try_target(self, target: FitTarget) -> Trial:
        """Fit a target at or after the candidate's place, and keep it if that lowers the end loss on held-out rows.

        With others besides the writer, both are tried: the writer alone, and all of them. With neurons, both are tried
        again with neurons of the removed layers in the places of the layer's weakest.
        """
        number, before = self.numbers[target.layer], self.nll
        self.go_to(target.layer)
        chosen = self._choose_neurons(target) if target.neurons is not None else None
        tried = [(nll, fitted, "") for nll, fitted in self._tries(target)]
        if chosen is not None:
            tried += self._pooled(target, *chosen)
        after, best, remark = min(tried, key=lambda found: self.mean(found[0]))
        applied = self.keep_if_better(_in_layer(target, best), after)
        if target.writer.scale and self.work.method != TRAINED:
            remark = SCALE_ONLY.format(number)
        return Trial(
            rejected=f"Layer {number} was left as it was: refitted",
            weights=tuple(f"{number}.{name}" for name in best.weights),
            found=best.ridge,
            tokens=best.tokens,
            before=before,
            after=after,
            applied=applied,
            remark=remark,
        )

    def _tries(self, target: FitTarget) -> list[tuple[Floats, Fitted]]:
        """Return the held-out losses of what is worth trying with the layer's features as they are now."""
        fit_on, held_out = self._moments(target)
        found = [fit(self.layers[target.layer], target.alone, fit_on.last_group(), held_out.last_group())]
        if target.others:
            found.append(self._together(target, fit_on, held_out))
        return [(self.nll_with(_in_layer(target, fitted)), fitted) for fitted in found]

    def _choose_neurons(self, target: FitTarget) -> tuple[dict[str, Tensor], int] | None:
        """Return the layer's weights with neurons of the removed layers and how many those are; None where none are."""
        number, layer = self.numbers[target.layer], self.layers[target.layer]
        uncut = layer_stack(self.work.base.model).layers
        removed = [uncut[index] for index in range(number + 1, target.boundary)]
        everything = sum(len(batch.ids) for batch in (*self.fit_on, *self.held_out))
        left, detail = (1 + len(removed)) * everything, f"neurons for layer {number}"

        def told(rows: int) -> None:
            nonlocal left
            left -= rows
            self.tell(rows, detail)

        chosen = choose(layer, removed, target, self.fit_on, number, told)
        # Held-out rows take no part in the choice; without neurons there are no more fits.
        self.tell(left + (target.fits * everything if chosen is None else 0), detail)
        return chosen

    def _pooled(self, target: FitTarget, weights: Mapping[str, Tensor], taken: int) -> list[tuple[Floats, Fitted, str]]:
        """Return what is worth trying with such weights in the layer, and a remark; the layer stays as it is."""
        number = self.numbers[target.layer]
        try:
            with weights_tried(self.layers[target.layer], weights):
                tried = self._tries(target)
        except NumericsError:  # float16 may overflow with neurons that are at home elsewhere; without them it did not
            return []
        remark = f"{taken:,} of the {target.writer.inputs:,} neurons of layer {number} are now those of removed layers."
        return [(nll, replace(fitted, weights={**weights, **fitted.weights}), remark) for nll, fitted in tried]

    def _moments(self, target: FitTarget) -> list[Moments]:
        """Return the moments of a target on the rows to fit on and on those held out."""
        number, layer = self.numbers[target.layer], self.layers[target.layer]
        return [
            gather(layer, target, batches, number, lambda rows: self.tell(rows, f"layer {number}"))
            for batches in (self.fit_on, self.held_out)
        ]

    def _together(self, target: FitTarget, fit_on: Moments, held_out: Moments) -> Fitted:
        """Return the writer and the others refitted.

        The solution takes the others' part to reach the layer's output as it is. The MLP hears it too, so the others
        are put in first, and the writer is then fitted to what is left.
        """
        layer = self.layers[target.layer]
        joint = fit(layer, target, fit_on, held_out)
        writers = tuple(f"{target.writer.name}.{leaf}" for leaf in ("weight", "bias"))
        others = {name: weight for name, weight in joint.weights.items() if name not in writers}
        with weights_tried(layer, others):
            rest = fit(layer, target.alone, *self._moments(target.alone))
        return replace(rest, weights=others | rest.weights)


def _in_layer(target: FitTarget, fitted: Fitted) -> dict[str, Tensor]:
    return {f"{target.layer}.{name}": weight for name, weight in fitted.weights.items()}


def open_candidate(work: Work, *, wanted: Set[int], first: int, passes: int) -> Candidate:
    """Return a candidate, as the cut is, whose place is at most at layer `first`.

    `wanted` are the boundaries of the uncut model that will be needed; rows go through the candidate `passes` times
    after the uncut model, for the progress. Raises ModelError where the family's layers cannot be run one by one.
    """
    work.watch.check(STOPPED)
    total, done = len(work.tokens.rows) * (1 + passes), 0

    def tell(rows: int, detail: str) -> None:
        nonlocal done
        done += rows
        work.watch.tell("repair", done=done, total=total, unit="rows", detail=detail)
        work.watch.check(STOPPED)

    handle, start = shared_copy(work.cut), shared_front(work.cut, work.base, work.plan.kept, first)

    def opened(part: Sequence[Tokens], end: int) -> Iterator[PairedBatch]:
        for batch in batches_by_length(part, work.batch_size):
            yield open_paired_batch(work.base, batch, wanted, start, end)
            tell(len(batch), "the uncut model")

    fit_on = list(opened(work.fitted, max(wanted)))
    held_out = list(opened(work.held_out, work.base.info.num_layers))
    ordered = [row for batch in batches_by_length(work.held_out, work.batch_size) for row in batch]
    head, tail = open_tail(work.cut, ordered[0])
    candidate = Candidate(
        work=work,
        handle=handle,
        layers=layer_stack(handle.model).layers,
        fit_on=fit_on,
        held_out=held_out,
        weights=np.array([len(row) - 1.0 for row in ordered]),
        head=head,
        tail=tail,
        place=start,
        tell=tell,
    )
    candidate.nll = candidate.judge(told=False)
    _check_replay(head, ordered[0], float(candidate.nll[0]))
    return candidate


def open_tail(cut: ModelHandle, row: Tokens) -> tuple[LogitHead, tuple[nn.Module, ...]]:
    """Return a model's head, and what stands between it and the last layer; `row` is some row of tokens, to check on.

    Raises ModelError where they cannot be told apart.
    """
    tail, head = find_tail(cut, torch.tensor(row[:_PROBE_TOKENS])), open_head(cut, torch.tensor(row))
    if tail is None or not head.split:
        raise ModelError(
            f"{cut.info.architecture} does something between its layers and its head that repair does not know; heal "
            "the cut by training instead."
        )
    return head, tail


def _check_replay(head: LogitHead, row: Tokens, replayed: float) -> None:
    """Raise ModelError where a row's loss by layers called one by one is not the cut model's own."""
    own, cut = score_window(head, row).nll, head.handle
    tolerance = _TOLERANCE * (1 if torch.finfo(cut.model.dtype).eps < 1e-6 else 50)
    if not abs(own - replayed) <= tolerance:
        raise ModelError(
            f"The layers of {cut.info.architecture} do more when run together than one by one (loss {own:.4f} against "
            f"{replayed:.4f}), so a repair cannot be fitted; heal the cut by training instead."
        )


def shared_front(cut: ModelHandle, base: ModelHandle, numbers: Sequence[int], limit: int) -> int:
    """Return how many layers, at most `limit`, the cut model's front has in common with the uncut model: same tensors.

    What enters the next layer is then the same in both.
    """
    if not _same(cut.model.get_input_embeddings(), base.model.get_input_embeddings()):
        return 0
    ours, theirs = layer_stack(cut.model).layers, layer_stack(base.model).layers
    for index in range(limit):
        if numbers[index] != index or not _same(ours[index], theirs[index]):
            return index
    return limit


def _same(ours: nn.Module, theirs: nn.Module) -> bool:
    pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    return all(a.data_ptr() == b.data_ptr() for a, b in pairs)
