"""measure_streamed: the distances of a model that does not fit in memory, layer by layer, each weight read once.

Layer-major order: all batches go through a layer while the next one is read, then the layer is dropped. The numbers
are those of `measure_distances`, by the same code on the same states.
"""

import hashlib
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from shortviz.criteria.base import Criterion, Score
from shortviz.errors import ModelError
from shortviz.measure.batches import padded_right
from shortviz.measure.distances import Measurement
from shortviz.measure.processes import ALONE, Ranks
from shortviz.model.delta import checkpoint_key, discard_checkpoint, load_checkpoint, save_checkpoint
from shortviz.model.layers import LayerCall
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.json import Floats
from shortviz.records.measured import BlockDistances
from shortviz.records.text import Tokens, TokenSet
from shortviz.streaming.calls import CallBook
from shortviz.streaming.model import StreamedModel, memory_limit
from shortviz.streaming.reader import ALIGNMENT
from shortviz.streaming.states import BatchShape, StatePlan, StateStore, batch_shapes, planned_states, sampled_positions

FUSED_TOKENS = 512
"""Tokens that go through a layer at once; products of more are hardly faster, and take more memory."""


def groups_of(shapes: Sequence[BatchShape], dtype: torch.dtype) -> list[range]:
    """Return which neighbouring batches go together: those of one width, up to FUSED_TOKENS tokens.

    In narrow floats each goes alone: a trial proves nothing there, for rounding hides most of what another path does.
    """
    groups: list[range] = []
    for index, shape in enumerate(shapes):
        last = groups[-1] if groups and dtype.itemsize >= 4 else range(0)
        tokens = sum(shapes[i].tokens for i in last) + shape.tokens
        if last and shapes[last[0]].width == shape.width and tokens <= FUSED_TOKENS:
            groups[-1] = range(last.start, index + 1)
        else:
            groups.append(range(index, index + 1))
    return groups


class FusedRunner:
    """Runs several small batches through a layer at once where that changes no bit of what each gives.

    With more tokens each weight is used more often while it is there. Kernels choose their path by shapes and
    addresses, so every new combination is tried first: a batch alone and at its place in its group must give equal
    bits, else the layer runs batch by batch.
    """

    def __init__(self) -> None:
        self._equal: dict[Hashable, bool] = {}

    def run(
        self, layer: nn.Module, states: Sequence[Tensor], calls: Sequence[LayerCall], together: LayerCall | None
    ) -> list[Tensor]:
        """Return the layer's output for each batch of a group, each (rows, tokens, hidden).

        `calls` are what the layer is called with for each batch, `together` for all of them as one batch.
        """
        # Tokens sorted to experts: then shapes depend on the tokens, and trying some says nothing.
        routes = any("expert" in name or weight.ndim > 2 for name, weight in layer.named_parameters())
        if together is None or routes or together.store is not None:
            return [call.run(layer, state) for call, state in zip(calls, states, strict=True)]
        rows = [len(state) for state in states]
        found = list(together.run(layer, torch.cat(list(states))).split(rows))
        kind, low = _kind(layer, together), 0
        for state, call, part in zip(states, calls, found, strict=True):
            key = (kind, sum(rows), low, state.shape)  # its place counts: kernels treat the last rows otherwise
            low += len(state)
            if key not in self._equal:
                self._equal[key] = torch.equal(call.run(layer, state), part)
            if not self._equal[key]:
                return self.run(layer, states, calls, None)
        return found


def _kind(layer: nn.Module, call: LayerCall) -> Hashable:
    """Return what kernels choose their path by, but for the rows."""
    weights = tuple((name, w.shape, w.data_ptr() % ALIGNMENT) for name, w in layer.named_parameters())
    given = tuple(value.shape if isinstance(value, Tensor) else str(type(value)) for value in call.kwargs.values())
    return type(layer), weights, given


_SMALLER = "give a smaller batch size, fewer rows, or a folder to write to, which keeps the states in a file"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def measure_streamed(
    model: StreamedModel,
    tokens: TokenSet,
    *,
    criteria: Sequence[str | Criterion | Score] | None = None,
    batch_size: int = 8,
    tokens_per_row: int | None = None,
    memory_bytes: int | None = None,
    checkpoint: Path | None = None,
    ranks: Ranks | None = None,
    watch: Watch = NO_WATCH,
) -> BlockDistances:
    """Return every criterion for every block, as `measure_distances` does; each weight is read once.

    The states of all tokens at all boundaries are kept where they fit (`planned_states`); else, or where
    `tokens_per_row` says so, token means are taken over that many evenly spaced tokens of each row. With a `checkpoint`
    path the states are in a file beside it, and a killed run goes on with the layer it was in. Of several processes
    (`ranks`) each streams the model for its share of the batches.

    Raises Stopped when stopped between layers, ResourceError where memory or disk does not suffice, and what
    `measure_distances` raises.
    """
    ranks = ranks or ALONE
    checkpoint = ranks.checkpoint(checkpoint)
    one = Measurement(model.info, tokens, criteria, batch_size, ranks=ranks)
    file = None if checkpoint is None else checkpoint.with_suffix(".states")
    with planned_states(
        model,
        batch_shapes(one.batches),
        one.sample,
        tokens_per_row=tokens_per_row,
        memory_bytes=memory_bytes,
        file=file,
        processes=ranks.local_size,
    ) as plan:
        sweep = _Sweep(model, plan, checkpoint, _key(model, tokens, batch_size, plan.per_row), watch)
        with memory_limit(model, plan.num_bytes if plan.file is None else 0, _SMALLER), torch.inference_mode():
            sweep.run(one.batches)
            _compare(sweep, one)
    one.gather()
    return replace(one.record(sweep.seconds), tokens_per_row=plan.per_row)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Group:
    """Batches that go through a layer together, with what every layer is called with."""

    batches: range
    calls: Sequence[Sequence[LayerCall]]
    """Of each batch by itself."""
    together: Sequence[LayerCall] | None
    """Of all as one batch; None where there is only one."""


class _Sweep:
    """One pass of all batches through all layers."""

    def __init__(self, model: StreamedModel, plan: StatePlan, checkpoint: Path | None, key: str, watch: Watch) -> None:
        self.model, self.watch = model, watch
        self._checkpoint, self._key, self._began = checkpoint, key, time.monotonic()
        arrays = load_checkpoint(checkpoint, key) if checkpoint is not None else None
        # What layers leave for later ones is not in the file of states: such a model is begun anew.
        goes_on = arrays is not None and arrays["boot"] == _boot() and plan.is_there and not model.store_bytes
        self._before = float(arrays["seconds"]) if arrays is not None and goes_on else 0.0
        self._done = int(arrays["layers"]) if arrays is not None and goes_on else -1
        pinned = model.placement.device.type == "cuda" and plan.file is None
        self.store = StateStore(plan, keep_file=goes_on, pinned=pinned)
        self._runner = FusedRunner()

    @property
    def seconds(self) -> float:
        """Seconds spent, those of runs before a kill included."""
        return self._before + time.monotonic() - self._began

    def run(self, batches: Sequence[Sequence[Tokens]]) -> None:
        """Fill the store; raises Stopped on the way."""
        groups = self._enter(batches)
        for index, layer in self.model.layers_in_turn(range(max(self._done, 0), self.model.info.num_layers)):
            self._through(index, layer, groups)
            self._save(index + 1)

    def _enter(self, batches: Sequence[Sequence[Tokens]]) -> list[_Group]:
        """Keep boundary 0 of all batches, and return what each layer is called with; the embeddings are then dropped.

        A run that goes on has boundary 0 already, and needs the arguments only.
        """
        book, groups = CallBook(), []
        self.model.load_non_layer_modules()
        for chosen in groups_of(self.store.plan.shapes, self.model.placement.dtype):
            calls = []
            for index in chosen:
                self._check_stop(0)
                hidden, made = self.model.calls(padded_right(batches[index]))
                if self._done < 0:
                    self.store.write(0, index, hidden)
                calls.append(book.add(made))
            together = None
            if len(chosen) > 1:
                _, made = self.model.calls(padded_right([row for index in chosen for row in batches[index]]))
                together = book.add(made)
            groups.append(_Group(batches=chosen, calls=calls, together=together))
        self.model.drop_non_layer_modules()
        if self._done < 0:
            self._save(0)
        return groups

    def _through(self, index: int, layer: nn.Module, groups: Sequence[_Group]) -> None:
        device, count, total = self.model.placement.device, len(self.store.plan.shapes), self.model.info.num_layers
        for group in groups:
            self._check_stop(index)
            states = [self.store.read(index, batch, device) for batch in group.batches]
            calls = [call[index] for call in group.calls]
            found = self._runner.run(layer, states, calls, group.together[index] if group.together else None)
            for batch, hidden in zip(group.batches, found, strict=True):
                self._check_kept_whole(index, hidden)
                self.store.write(index + 1, batch, hidden)
            done = round(index + group.batches.stop / count, 2)
            self.watch.tell("stream", done=done, total=total, unit="layers")

    def _save(self, layers: int) -> None:
        if self._checkpoint is not None:
            arrays = {"layers": np.array(float(layers)), "seconds": np.array(self.seconds), "boot": _boot()}
            save_checkpoint(self._checkpoint, self._key, arrays)

    def _check_kept_whole(self, index: int, hidden: Tensor) -> None:
        if hidden.dtype != self.store.plan.dtypes[index + 1]:
            info = self.model.info
            if self._checkpoint is not None:  # it would stand in the way of the dtype that is advised
                discard_checkpoint(self._checkpoint)
            raise ModelError(
                f"Layer {index} of {info.architecture} gives its residual stream in {str(hidden.dtype)[6:]} though the "
                f"model computes in {info.dtype}; stream it in float32."
            )

    def _check_stop(self, index: int) -> None:
        then = "the same command goes on there" if self._checkpoint is not None else "written to disk it could go on"
        if self.model.store_bytes:
            then = "it would begin anew, for its later layers read keys and values of earlier ones"
        self.watch.check(f"Stopped in layer {index} of {self.model.info.num_layers}; {then}.")


def _compare(sweep: _Sweep, one: Measurement) -> None:
    """Add up the states of all boundaries, batch by batch."""
    store, per_row, device = sweep.store, sweep.store.plan.per_row, sweep.model.placement.device
    for index, shape in enumerate(store.plan.shapes):
        sweep.watch.check("Stopped while the boundaries were compared; the same command does that again.")
        picked = None if per_row is None else [sampled_positions(length, per_row) for length in shape.lengths]
        one.add(store.of_batch(index, device), shape.lengths, picked)
        sweep.watch.tell("compare", done=one.count, total=one.total, unit="rows")


def _key(model: StreamedModel, tokens: TokenSet, batch_size: int, per_row: int | None) -> str:
    """Return a fingerprint of everything the states depend on; the criteria are computed from them at the end."""
    return checkpoint_key("streamed 2", model, tokens.info.fingerprint, batch_size, per_row)


def _boot() -> Floats:
    """Return which start of this machine it is: what a mapped file held is only sure while the kernel that had it runs.

    (Pages go to the disk in their own time, so that a kill loses nothing, and a power cut might.)
    """
    text = _BOOT.read_text().strip() if _BOOT.exists() else ""
    return np.array(float(int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)))
