"""A candidate for the repaired model: layers are fitted one after another, each judged before it stays."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from shortviz.architectures import layer_stack
from shortviz.errors import NumericsError
from shortviz.handle import ModelHandle
from shortviz.held_out import EndLoss, check_replay, open_end_loss
from shortviz.new_weights import put_weights, restore_weights, shared_copy
from shortviz.progress import Watch
from shortviz.records import Floats, Tokens
from shortviz.repair_pool import choose
from shortviz.seam_fit import FitTarget, Fitted, fit, gather
from shortviz.seam_moments import Moments
from shortviz.seam_streams import STOPPED, PairedBatch, advance, open_paired_batch
from shortviz.token_batches import batches_by_length

Tell = Callable[[int, str], None]
"""Told of rows done, and in which part of the work."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trial:
    """One change to the candidate, judged."""

    subject: str
    """What was changed, for a sentence, e.g. `Layer 11`."""
    how: str
    """E.g. `refitted`."""
    weights: tuple[str, ...]
    """Names of the new weights, layers in the uncut model's numbers, e.g. `11.mlp.down_proj.weight`."""
    found: float
    """The ridge that was chosen, or the factor."""
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

    handle: ModelHandle
    layers: nn.ModuleList
    uncut: nn.ModuleList
    """The uncut model's layers."""
    numbers: Sequence[int]
    """The layers' numbers in the uncut model."""
    fit_on: list[PairedBatch]
    held_out: list[PairedBatch]
    weights: Floats
    """Scored tokens of each held-out row."""
    end_loss: EndLoss
    place: int
    """The layer that the streams are about to enter."""
    nll: Floats
    """Of each held-out row, mean over its scored tokens, as the candidate is now."""
    watch: Watch
    tell: Tell

    def mean(self, nll: Floats) -> float:
        """Return the mean over held-out tokens."""
        return float(np.average(nll, weights=self.weights))

    def go_to(self, layer: int) -> None:
        """Take the batches to the entrance of a layer, at or after the candidate's place."""
        advance(self.layers, self.numbers, (*self.fit_on, *self.held_out), self.place, layer)
        self.place = layer

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
        if target.writer.scale:
            remark = f"A norm follows the MLP of layer {number}: only its scale was refitted, one number a channel."
        return Trial(
            subject=f"Layer {number}",
            how="refitted",
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
        removed = [self.uncut[index] for index in range(number + 1, target.boundary)]
        everything = sum(len(batch.ids) for batch in (*self.fit_on, *self.held_out))
        left, detail = (1 + len(removed)) * everything, f"neurons for layer {number}"

        def told(rows: int) -> None:
            nonlocal left
            self.watch.check(STOPPED)
            left -= rows
            self.tell(rows, detail)

        chosen = choose(layer, removed, target, self.fit_on, number, told)
        # Held-out rows take no part in the choice; without neurons there are no more fits.
        self.tell(left + (target.fits * everything if chosen is None else 0), detail)
        return chosen

    def _pooled(self, target: FitTarget, weights: Mapping[str, Tensor], taken: int) -> list[tuple[Floats, Fitted, str]]:
        """Return what is worth trying with such weights in the layer, and a remark; the layer stays as it is."""
        number, layer = self.numbers[target.layer], self.layers[target.layer]
        old = put_weights(layer, weights)
        try:
            tried = self._tries(target)
        except NumericsError:  # float16 may overflow with neurons that are at home elsewhere; without them it did not
            return []
        finally:
            restore_weights(layer, old)
        remark = f"{taken:,} of the {target.writer.inputs:,} neurons of layer {number} are now those of removed layers."
        return [(nll, replace(fitted, weights={**weights, **fitted.weights}), remark) for nll, fitted in tried]

    def _moments(self, target: FitTarget) -> list[Moments]:
        """Return the moments of a target on the rows to fit on and on those held out."""
        number, layer = self.numbers[target.layer], self.layers[target.layer]
        return [
            gather(layer, target, batches, number, self.watch, lambda rows: self.tell(rows, f"layer {number}"))
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
        old = put_weights(layer, others)
        try:
            rest = fit(layer, target.alone, *self._moments(target.alone))
        finally:
            restore_weights(layer, old)
        return replace(rest, weights=others | rest.weights)

    def nll_with(self, weights: Mapping[str, Tensor]) -> Floats:
        """Return the NLL of each held-out row with some weights in the layers' place; the candidate stays as it is.

        Names begin with the candidate's number of the layer, which is not before the candidate's place.
        """
        old = put_weights(self.layers, weights)
        try:
            return self.judge()
        finally:
            restore_weights(self.layers, old)

    def keep_if_better(self, weights: Mapping[str, Tensor], after: Floats) -> bool:
        """Put weights into the layers if the held-out loss falls with them, to `after`; return whether it does."""
        better = self.mean(after) < self.mean(self.nll)
        if better:
            put_weights(self.layers, weights)
            self.nll = after
        return better

    def judge(self) -> Floats:
        """Return the NLL of each held-out row as the candidate is now."""
        self.watch.check(STOPPED)
        return self.end_loss.nll(self.layers, self.numbers, self.held_out, self.place)


def _in_layer(target: FitTarget, fitted: Fitted) -> dict[str, Tensor]:
    return {f"{target.layer}.{name}": weight for name, weight in fitted.weights.items()}


def open_candidate(
    cut: ModelHandle,
    base: ModelHandle,
    rows: tuple[Sequence[Tokens], Sequence[Tokens]],
    *,
    wanted: Set[int],
    first: int,
    batch_size: int,
    watch: Watch,
    tell: Tell,
) -> Candidate:
    """Return a candidate, as the cut is; `rows` are those to fit on and those held out.

    `wanted` are the boundaries of the uncut model that will be needed. Its place is at most at layer `first`.
    Raises ModelError where the family's layers cannot be run one by one.
    """
    assert cut.plan is not None
    handle, numbers = shared_copy(cut), cut.plan.kept
    start = shared_front(cut, base, numbers, first)

    def opened(part: Sequence[Tokens], end: int) -> Iterable[PairedBatch]:
        for batch in batches_by_length(part, batch_size):
            watch.check(STOPPED)
            yield open_paired_batch(base, batch, wanted, start, end)
            tell(len(batch), "the uncut model")

    fit_on, held_out = list(opened(rows[0], max(wanted))), list(opened(rows[1], base.info.num_layers))
    layers = layer_stack(handle.model).layers
    ordered = [row for batch in batches_by_length(rows[1], batch_size) for row in batch]
    end_loss = open_end_loss(cut, ordered[0])
    nll = end_loss.nll(layers, numbers, held_out, start)
    check_replay(cut, ordered[0], float(nll[0]))
    return Candidate(
        handle=handle,
        layers=layers,
        uncut=layer_stack(base.model).layers,
        numbers=numbers,
        fit_on=fit_on,
        held_out=held_out,
        weights=np.array([len(row) - 1.0 for row in ordered]),
        end_loss=end_loss,
        place=start,
        nll=nll,
        watch=watch,
        tell=tell,
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
