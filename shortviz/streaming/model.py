"""A model that is never whole in memory: built on meta, its layers filled from the weight files one at a time.

The weights go through transformers' own loader (renamings, merged experts, dtype plan), part by part, so that a layer
holds bit for bit what `from_pretrained` would have put into it.
"""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers import initialization as transformers_init
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    convert_and_load_state_dict_in_model,
)
from transformers.modeling_utils import LoadStateDictConfig

from shortviz.errors import ModelError, memory_told
from shortviz.model import load
from shortviz.model.headers import Entry, read_shards, twice_there
from shortviz.model.layers import (
    LayerCall,
    LayerStack,
    kept_parts,
    layer_stack,
    model_names,
    placeholder_ids,
    pruned_config,
    stream_width,
    text_config,
    widest,
)
from shortviz.model.load import ResolvedModel, context_length, model_info, weight_size
from shortviz.model.placement import Placement
from shortviz.model.prune import empty_model
from shortviz.model.rules import kv_readers
from shortviz.model.tokenizer import read_tokenizer, refuse_larger_vocabulary
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.formatting import size
from shortviz.records.model import SPREAD, ModelEstimate, ModelInfo, ModelRef
from shortviz.records.plan import PrunePlan
from shortviz.streaming.calls import CHECKED_TOKENS, check_independent, finish, record_calls, returns_tuple, run_on_meta
from shortviz.streaming.reader import ALIGNMENT, LaterTensor, WeightReader

NON_LAYER = ""
"""The part of the decoder outside its layers; other parts are called by their prefix, e.g. `model.layers.3.`."""
HEAD = "head"
"""The part that makes logits, where it is not tied to the embeddings."""


class Parts:
    """Reads the weights of a part of the model out of the files."""

    def __init__(
        self, model: PreTrainedModel, stack: LayerStack, entries: Mapping[str, Entry], placement: Placement, name: str
    ) -> None:
        self._model, self._stack, self._device = model, stack, placement.device
        self._name = name
        mapping = get_model_conversion_mapping(model)
        self._config = LoadStateDictConfig(
            dtype=placement.dtype,
            dtype_plan=model._get_dtype_plan(placement.dtype),
            weight_mapping=mapping,
            device_map=None if placement.device.type == "cpu" else {"": placement.device},
        )
        self._groups = grouped(model, stack, entries, mapping, name)
        self._reader = WeightReader(entries, placement.dtype, placement.device)

    def release(self) -> None:
        """Give back memory that no part holds any more."""
        self._reader.release()

    @torch.inference_mode(mode=False)
    def fill(self, part: str, modules: Sequence[nn.Module], *, aligned: bool = False) -> None:
        """Load the weights of a part into its modules, and compute the buffers that no file holds.

        Weights lie at the addresses (modulo 64) of a mapped file, as `from_pretrained` leaves them; at 0 if `aligned`.
        Raises ModelError where a weight is missing or has another shape, NumericsError where one is not finite.
        """
        self._reader.suspicious = False
        weights = {key: LaterTensor(self._reader, key, aligned) for key in self._groups[part]}
        info, _ = convert_and_load_state_dict_in_model(self._model, weights, self._config)
        if part == NON_LAYER:
            self._model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
        names = {key for key in info.missing_keys if self._is_of(key, part)}
        load.refuse_disagreement(
            self._name,
            {"missing_keys": names, "unexpected_keys": (), "mismatched_keys": info.mismatched_keys},
            self._model.config,
        )
        for module in modules:
            compute_buffers(self._model, self._stack, module, self._device)
            module.requires_grad_(False)
            if aligned:
                align(module)
            if self._reader.suspicious:
                place = name_of(self._model, module)
                named = ((f"{place}.{name}", weight) for name, weight in module.named_parameters())
                load.refuse_not_finite(named, self._stack.path)

    def _is_of(self, key: str, part: str) -> bool:
        """Tell whether a weight of the model has to come with the part; one that is tied comes with its partner."""
        if part != HEAD:
            return part_of(key, self._stack.path) == part
        head = name_of(self._model, self._model.get_output_embeddings())
        return key.startswith(f"{head}.") and key not in self._model.all_tied_weights_keys


def align(module: nn.Module) -> None:
    """Move what is not at an address that is 0 modulo 64 (what a merge left, tied views) to one."""
    for weight in (*module.parameters(), *module.buffers()):
        if weight.data_ptr() % ALIGNMENT:
            weight.data = weight.data.clone()


def name_of(model: nn.Module, module: nn.Module | None) -> str:
    """Return the module's name in the model; empty for none."""
    return next((name for name, found in model.named_modules() if found is module), "")


def part_of(key: str, path: str) -> str | None:
    """Return the part that a weight of the model belongs to; None outside the decoder (the head, other towers)."""
    found = re.match(rf"{re.escape(path)}\.\d+\.", key)
    if found:
        return found.group()
    outer = path.rpartition(".")[0]
    return NON_LAYER if key.startswith(f"{outer}.") or not outer else None


def grouped(
    model: PreTrainedModel, stack: LayerStack, entries: Mapping[str, Entry], mapping: Sequence[Any], name: str
) -> dict[str, list[str]]:
    """Return {part: names in the files of its tensors}; raises ModelError where a file holds what no part has."""
    renamed = model_names(model, entries, mapping)
    parts = (NON_LAYER, HEAD, *(f"{stack.path}.{i}." for i in range(len(stack.layers))))
    groups: dict[str, list[str]] = {part: [] for part in parts}
    head = name_of(model, model.get_output_embeddings())
    known = model.state_dict().keys()
    for key, target in renamed.items():
        part = HEAD if head and target.startswith(f"{head}.") else part_of(target, stack.path)
        if target in known and part is not None:
            groups[part].append(key)
    # A tied weight may be in the file under the name of its partner only, such as the head's.
    of_target = {target: key for key, target in renamed.items()}
    again = twice_there(model.all_tied_weights_keys, of_target, entries, name)
    for target, source in model.all_tied_weights_keys.items():
        for here, there in ((source, target), (target, source)):
            if here not in of_target and there in of_target and part_of(here, stack.path) == NON_LAYER:
                groups[NON_LAYER].append(of_target[there])
    groups[HEAD] = [key for key in groups[HEAD] if key not in groups[NON_LAYER]]
    ignored = model._keys_to_ignore_on_load_unexpected or ()
    unexpected = {key for key in renamed.values() if key not in known and not any(re.search(i, key) for i in ignored)}
    load.refuse_disagreement(
        name, {"missing_keys": (), "unexpected_keys": unexpected, "mismatched_keys": ()}, model.config
    )
    return {part: [key for key in dict.fromkeys(keys) if key not in again] for part, keys in groups.items()}


@torch.no_grad()
@transformers_init.guard_torch_init_functions()  # type: ignore[untyped-decorator]
def compute_buffers(model: PreTrainedModel, stack: LayerStack, module: nn.Module, device: torch.device) -> None:
    """Compute the buffers that no file holds (rotary frequencies, masks), as from_pretrained does after loading."""
    # The innermost model around the layers knows how their buffers are computed.
    owner = stack.decoder if isinstance(stack.decoder, PreTrainedModel) else model
    for part in module.modules():
        for leaf in part._non_persistent_buffers_set:
            buffer = part._buffers.get(leaf)
            if buffer is not None:
                part._buffers[leaf] = torch.empty_like(buffer, device=device)
        owner._init_weights(part)  # weights that were loaded are marked, and are left alone
    for leaf in stack.decoder._non_persistent_buffers_set:  # gemma3n has scales beside its modules
        buffer = stack.decoder._buffers.get(leaf)
        if buffer is not None and buffer.is_meta:
            stack.decoder._buffers[leaf] = torch.empty_like(buffer, device=device)
    owner._init_weights(owner)  # falcon_h1's model fills a buffer of its layers; those on meta take no notice


@dataclass(kw_only=True, eq=False)
class StreamedModel:
    """A causal language model on meta, with its files; use `open_streamed`.

    What stands outside the layers of its decoder is in memory until `drop_non_layer_modules`.
    """

    model: PreTrainedModel
    stack: LayerStack
    tokenizer: PreTrainedTokenizerBase
    info: ModelInfo
    ref: ModelRef
    placement: Placement
    entries: Mapping[str, Entry]
    """Every tensor of the files."""
    parts: Parts = field(repr=False)
    in_tuple: bool
    """Whether the decoder expects a tuple from its layers."""
    state_dtypes: tuple[torch.dtype, ...]
    """Of the residual stream at boundary 0..L."""
    plan: PrunePlan | None = None

    def calls(self, tokens: Tensor) -> tuple[Tensor, list[LayerCall]]:
        """Return boundary 0 of rows of tokens, and what each layer is called with besides the residual stream.

        Raises ModelError for tokens that stand for pictures or sound: what is read in their place is not streamed.
        """
        odd = placeholder_ids(self.model.config)
        held = sorted(odd.intersection(tokens.flatten().tolist())) if odd else ()
        if held:
            word = self.tokenizer.convert_ids_to_tokens(held[0])
            raise ModelError(
                f"The text holds {word!r} (token {held[0]}), which stands for a picture or sound in {self.info.id}; "
                "remove it from the text, or measure without streaming."
            )
        entered, calls = record_calls(self.stack, tokens.to(self.placement.device), in_tuple=self.in_tuple)
        return entered[0], calls

    def finish(self, tokens: Tensor, final: Tensor) -> Any:
        """Return what the model makes of the state at boundary L, by its own code; the head must be filled."""
        return finish(self.model, self.stack, tokens, final, in_tuple=self.in_tuple)

    @torch.inference_mode(mode=False)
    def without(self, plan: PrunePlan) -> tuple[PreTrainedModel, LayerStack]:
        """Return the cut model on meta, given what stands outside the layers, which must be loaded, and its layers.

        Raises PlanError where the stock config cannot express the cut.
        """
        config = self.model.config
        short = empty_model(self.model, pruned_config(config, plan)).eval().requires_grad_(False)
        stack = layer_stack(short)
        for mine, theirs in zip(non_layer_modules(stack), non_layer_modules(self.stack), strict=True):
            empty = mine.state_dict()
            given = {name: kept_parts(config, t, empty[name], plan) for name, t in theirs.state_dict().items()}
            mine.load_state_dict(given, assign=True)
            for weight in mine.parameters():
                weight._is_hf_initialized = True  # type: ignore[attr-defined]  # shared: nobody may fill it anew
            compute_buffers(short, stack, mine, self.placement.device)
        return short, stack

    def load_layer(self, index: int, *, aligned: bool = False) -> nn.Module:
        """Return the layer, filled from the files; raises NumericsError or ModelError where its weights are unsound."""
        layer = self.stack.layers[index]
        self.parts.fill(f"{self.stack.path}.{index}.", [layer], aligned=aligned)
        return layer

    def layers_in_turn(self, indices: Sequence[int], *, aligned: bool = False) -> Iterator[tuple[int, nn.Module]]:
        """Yield (index, filled layer) one after the other; the next one is read meanwhile, but for `aligned`.

        `aligned` puts the weights at addresses that are multiples of 64, wherever they are in the files: matrix kernels
        choose their path, and so the last bits, by alignment. It is for proofs, which hold one layer at a time.
        """
        with load.quiet_transformers(), ThreadPoolExecutor(max_workers=1) as ahead:
            try:
                coming = [ahead.submit(self.load_layer, index, aligned=aligned) for index in indices[:1]]
                for place, index in enumerate(indices):
                    layer = coming.pop().result()
                    following = indices[place + 1 : place + 2]
                    coming += [ahead.submit(self.load_layer, one) for one in following if not aligned]
                    yield index, layer
                    _to_meta(layer)
                    coming += [ahead.submit(self.load_layer, one, aligned=True) for one in following if aligned]
            finally:
                self.parts.release()

    def load_non_layer_modules(self, *, head: bool = False, aligned: bool = False) -> None:
        """Fill what stands outside the layers of the decoder, the embeddings first of all; and the head if asked.

        What is there already stays, but for `aligned` (see `layers_in_turn`).
        """
        if aligned:
            self.drop_non_layer_modules()
        if any(weight.is_meta for module in non_layer_modules(self.stack) for weight in module.parameters()):
            self.parts.fill(NON_LAYER, non_layer_modules(self.stack), aligned=aligned)
        output = self.model.get_output_embeddings()
        if head and isinstance(output, nn.Module) and any(weight.is_meta for weight in output.parameters()):
            self.parts.fill(HEAD, [output], aligned=aligned)

    def drop_non_layer_modules(self) -> None:
        """Free what stands outside the layers."""
        for module in [*non_layer_modules(self.stack), self.model.get_output_embeddings()]:
            if isinstance(module, nn.Module):
                _to_meta(module)
        self.parts.release()

    @property
    def store_bytes(self) -> int:
        """Memory that a token takes from the layer that leaves keys and values for later ones to their last reader."""
        fields = text_config(self.model.config).to_dict()
        producers = kv_readers(fields, self.info.num_layers) if fields.get("num_kv_shared_layers") else ()
        return sum(self.info.layer_cache_bytes[i] for i in producers)

    @property
    def working_bytes(self) -> int:
        """Memory that weights take at most at one time: what stands outside the layers, or two layers."""
        return _working_bytes(self.stack)

    @property
    def ending_bytes(self) -> int:
        """Memory of the weights that make logits: what stands outside the layers, and a head that is not tied to it."""
        head = self.model.get_output_embeddings()
        tied = f"{name_of(self.model, head)}.weight" in self.model.all_tied_weights_keys
        own = weight_size(head)[1] if isinstance(head, nn.Module) and not tied else 0
        return own + sum(weight_size(module)[1] for module in non_layer_modules(self.stack))


@contextmanager
def open_streamed(model: ModelRef | ResolvedModel, *, watch: Watch = NO_WATCH) -> Iterator[StreamedModel]:
    """Yield the model, downloaded if need be, with nothing of its layers in memory.

    Raises what `load` raises, and ModelError where the family cannot be run layer by layer (the reason is named).
    """
    resolved = load.resolve(model, watch=watch)
    placement, name = resolved.placement, resolved.files.name
    if placement.spread:
        raise ModelError(f"A streamed model runs on one device; choose {placement.device}, not {SPREAD}.")
    load.say(resolved.left_out, watch)
    folder, config = load.fetch(resolved, watch)
    with load.quiet_transformers():
        built, stack = _build_on_meta(config, placement.dtype)
        tokenizer = read_tokenizer(name, folder)
        disagree = load.say(load.told_after_fetching(resolved, folder), watch)
        refuse_larger_vocabulary(name, tokenizer, built)
        entries = read_shards(folder, name)
        parts = Parts(built, stack, entries, placement, name)
        parts.fill(NON_LAYER, non_layer_modules(stack))
        probe = torch.arange(2 * CHECKED_TOKENS, device=placement.device).reshape(2, -1) % len(
            built.get_input_embeddings().weight
        )
        with torch.inference_mode():
            in_tuple = returns_tuple(stack, probe)
            check_independent(stack, probe, in_tuple=in_tuple)
            on_meta = run_on_meta(stack, probe, in_tuple=in_tuple)
        info = model_info(
            built,
            id=name,
            revision=resolved.files.revision,
            reason=f"{resolved.estimate.reason} Streamed: one layer at a time.",
            device=str(placement.device),
            layer_cache_bytes=on_meta.cache_bytes,
        )
        info = replace(info, left_out=(*resolved.left_out, *disagree))
        yield StreamedModel(
            model=built,
            stack=stack,
            tokenizer=tokenizer,
            info=info,
            ref=resolved.ref,
            placement=placement,
            entries=entries,
            parts=parts,
            in_tuple=in_tuple,
            state_dtypes=on_meta.dtypes,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamingEstimate:
    """What a model takes of memory and disk, whole and streamed, before it is loaded."""

    size: ModelEstimate
    rows: int
    row_tokens: int
    """Tokens of a row, within the model's context."""
    streamed_memory_bytes: int
    """Weights of two layers, or the embeddings, whichever is more; the states come on top."""
    states_bytes: int
    """States of all rows at all boundaries, in memory or in a file, while streaming."""
    disk_bytes: int
    """Of an export of the uncut model in the loaded dtype; a cut takes less."""


def estimate_streaming(model: ModelRef | ResolvedModel, *, rows: int, row_tokens: int) -> StreamingEstimate:
    """Return what the model takes, measured on rows of so many tokens; its config is read, and its weights are not.

    Raises what `estimate` raises, and ModelError for a GGUF file that was never loaded.
    """
    resolved = load.resolve(model)
    if resolved.config is None:
        raise ModelError(
            f"{resolved.files.name} is a GGUF file that was not loaded before; load it once, then its layers can be "
            "estimated."
        )
    config, dtype = copy.deepcopy(resolved.config), resolved.placement.dtype
    text = text_config(config)
    row_tokens = min(row_tokens, context_length(text) or row_tokens)
    with load.quiet_transformers():
        built, stack = _build_on_meta(config, dtype)
        num_bytes = weight_size(built)[1]  # while tied weights are one
        states = _state_dtype(built, stack, dtype)
    return StreamingEstimate(
        size=resolved.estimate,
        rows=rows,
        row_tokens=row_tokens,
        streamed_memory_bytes=_working_bytes(stack),
        states_bytes=(len(stack.layers) + 1) * rows * row_tokens * stream_width(config) * states.itemsize,
        disk_bytes=num_bytes,
    )


def _build_on_meta(config: PreTrainedConfig, dtype: torch.dtype) -> tuple[PreTrainedModel, LayerStack]:
    with torch.device("meta"):  # the thread's own; the default dtype is set for all threads, as from_pretrained does
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.eval().requires_grad_(False)
    return model, layer_stack(model)


def _state_dtype(model: PreTrainedModel, stack: LayerStack, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the residual stream where it is widest; `dtype` where the model cannot be streamed."""
    cpu = torch.device("cpu")
    for module in non_layer_modules(stack):  # decoders read their masks and positions, which meta does not hold
        module.to_empty(device=cpu)
        for weight in module.parameters():
            weight._is_hf_initialized = True  # type: ignore[attr-defined]  # else transformers fills all that memory
        compute_buffers(model, stack, module, cpu)
    tokens = torch.zeros(2, CHECKED_TOKENS, dtype=torch.long)
    try:
        with torch.inference_mode():
            return widest(run_on_meta(stack, tokens, in_tuple=returns_tuple(stack, tokens)).dtypes)
    except ModelError:
        return dtype


def memory_limit(model: StreamedModel, state_bytes: int, then: str) -> AbstractContextManager[None]:
    """Turn running out of memory inside into a ResourceError that tells what was expected, and `then` what to do."""
    states = f" and {size(state_bytes)} for states" if state_bytes else ""
    return memory_told(
        lambda: (
            f"Memory ran out while {model.info.id} was streamed: {size(model.working_bytes)} for weights{states} were "
            f"expected; {then}."
        )
    )


@torch.inference_mode(mode=False)  # else the empty tensors could not be filled again outside of inference mode
def _to_meta(module: nn.Module) -> None:
    module.to("meta")


def _working_bytes(stack: LayerStack) -> int:
    outside = sum(weight_size(module)[1] for module in non_layer_modules(stack))
    return max(outside, 2 * max(weight_size(layer)[1] for layer in stack.layers))


def non_layer_modules(stack: LayerStack) -> list[nn.Module]:
    """Return the modules of the decoder next to its layer list."""
    attribute = stack.path.rpartition(".")[2]
    return [module for name, module in stack.decoder.named_children() if name != attribute]
