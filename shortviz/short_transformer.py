"""The calls of `short-transformers` 1.0.0, on top of shortviz: a stock transformers model with a few methods more.

What differs, on purpose: row n-1 of a result holds blocks of n layers and is read so everywhere; the model given to
`from_model` stays as it is; no hook stays behind; rows may come in batches; per-layer config fields are cut too; and a
second `prune` works. `docs/decisions.md` says why.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any, Self, cast

import numpy as np
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from shortviz import criteria, pruning, texts
from shortviz.distances import measure_distances
from shortviz.errors import ModelError, PlanError, ShortvizError
from shortviz.generation_defaults import savable
from shortviz.handle import ModelHandle
from shortviz.loading import load
from shortviz.model_info import model_info
from shortviz.records import Block, Floats, ModelRef, PrunePlan
from shortviz.seed_diagram import draw_diagram
from shortviz.seed_results import (
    Distance,
    get_angular_distance_ith_token,
    get_best_pruning_start,
    get_scored_blocks,
    measure_callable,
)
from shortviz.seed_rows import token_set

__all__ = [
    "ShortTransformer",
    "draw_diagram",
    "get_angular_distance_ith_token",
    "get_best_pruning_start",
    "get_scored_blocks",
]

DEFAULT_LIMIT = 64
"""Rows. The seed's default of one row chooses a block by chance."""


class ShortTransformer:
    """What is added to a model's own class; make one with `from_pretrained` or `from_model`.

    The result is a real transformers model (`generate`, `Trainer`, `save_pretrained`, ... work), an instance of its
    stock class and of this one. As in the seed, `prune` and `remove_layers` change the object and return it.
    """

    tokenizer: PreTrainedTokenizerBase | None
    distance: str | Distance

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        revision: str | None = None,
        dtype: str | None = None,
        torch_dtype: str | None = None,
        device_map: str | None = None,
        distance: str | Distance = "angular_last",
    ) -> "ShortTransformer":
        """Return the model and tokenizer of a hub id, a checkpoint folder, a `.gguf` file, or `demo`.

        `dtype` (`torch_dtype` is its old name) is `auto`, a name or a torch.dtype; `device_map` is `auto` or a device.
        For anything else load the model with transformers and use `from_model`. Raises what `shortviz.load` raises.
        """
        kind = str(dtype or torch_dtype or "auto").removeprefix("torch.")
        handle = load(ModelRef(id=name, revision=revision, dtype=kind, device=str(device_map or "auto")))
        return _short(handle, distance)

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        distance: str | Distance = "angular_last",
    ) -> "ShortTransformer":
        """Return a model that shares the tensors of `model`, which is left as it is.

        Training the one changes the weights of the other. Without a tokenizer, the one of the model's name is loaded
        when it is first needed. Raises ModelError where this is no causal language model of at least two layers.
        """
        if not isinstance(model, PreTrainedModel):
            raise ModelError(f"A {type(model).__name__} is no transformers model; load one with AutoModelForCausalLM.")
        return _short(_handle(model, tokenizer), distance)

    def set_metric(self, distance: str | Distance) -> None:
        """Set the distance: a criterion's name, or a callable (input, output) -> float, low = redundant.

        The callable gets the residual stream before and after a block, each (1, tokens, hidden), float32, on the CPU.
        """
        if isinstance(distance, str):
            criteria.info(distance)
        elif not callable(distance):
            raise ShortvizError(f"The distance {distance!r} is neither a criterion's name nor a callable.")
        self.distance = distance

    def analyse_layers(
        self,
        dataset: Iterable[Any] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        use_chat_template: bool = False,
        key: str | None = None,
        limit: int = DEFAULT_LIMIT,
        max_length: int = 1000,
        batch_size: int = 1,
        distance: str | Distance | None = None,
    ) -> Floats:
        """Return the distance of every block, averaged over rows, shape (L, L): `result[n-1, start]`, 0 elsewhere.

        `dataset` is a `datasets.Dataset` or IterableDataset, a list of dicts or of strings; None is the built-in text.
        Rows are cut at `max_length` tokens or the model's context; a callable distance is called row by row, whatever
        `batch_size` is.
        Raises TextError where the rows cannot be used.
        """
        handle = self._as_handle(tokenizer)
        if dataset is None:
            tokens = texts.tokenize(texts.DEFAULT_CALIBRATION, handle.tokenizer)
        else:
            tokens = token_set(
                dataset,
                handle.tokenizer,
                key=key,
                limit=limit,
                max_length=min(max_length, handle.info.context_length or max_length),
                use_chat_template=use_chat_template,
            )
        chosen = self.distance if distance is None else distance
        if not isinstance(chosen, str):
            return measure_callable(handle, tokens, chosen)
        grid = measure_distances(handle, tokens, criteria=[chosen], batch_size=batch_size).criteria[chosen]
        result = grid.mean.copy()
        for n in range(1, grid.num_layers + 1):
            result[n - 1, grid.num_layers - n + 1 :] = 0.0
        return result

    def remove_layers(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        block_size: int | None = None,
        dataset: Iterable[Any] | None = None,
        key: str | None = None,
        limit: int = DEFAULT_LIMIT,
        batch_size: int = 1,
        max_length: int = 1000,
        return_outputs: bool = False,
        *,
        n: int | None = None,
        distance: str | Distance | None = None,
        use_chat_template: bool = False,
    ) -> Any:
        """Remove the n consecutive layers (n is the seed's `block_size`) that the data set says matter least.

        Changes this object and returns it; with `return_outputs`, returns (it, the array of `analyse_layers`).
        Raises PlanError where the number of layers is missing or does not fit, before anything is measured.
        """
        if (n is None) == (block_size is None):
            raise PlanError("Say how many layers to remove: n=5, or block_size=5, not both.")
        size = cast(int, n if n is not None else block_size)
        num_layers = self._as_handle(tokenizer).info.num_layers
        if not 1 <= size < num_layers:
            raise PlanError(f"n is {size}; remove 1 to {num_layers - 1} of {num_layers} layers.")
        result = self.analyse_layers(
            dataset, tokenizer, use_chat_template, key, limit, max_length, batch_size, distance
        )
        self.prune(self._best_legal_start(result, size), size)
        return (self, result) if return_outputs else self

    def _best_legal_start(self, result: Floats, size: int) -> int:
        """Return the lowest start whose block the stock config can do without; raises PlanError where there is none."""
        row = result[size - 1, : result.shape[0] - size + 1].copy()
        blocked = [start for start, n, _ in self._as_handle(None, tokenizer_needed=False).info.illegal if n == size]
        row[blocked] = np.inf
        if not np.isfinite(row).any():
            raise PlanError(f"No block of {size} layers can be removed from this model; choose another n.")
        return int(np.argmin(row))

    def prune(self, start_layer: int, block_size: int) -> Self:
        """Remove layers start_layer .. start_layer+block_size-1 from this object, and return it.

        Layers are numbered as they are now, so a second prune counts in the pruned model. Raises PlanError where
        the block does not fit, or the stock config cannot do without it.
        """
        handle = self._as_handle(None, tokenizer_needed=False)
        plan = PrunePlan.of_blocks(handle.info.num_layers, Block(start=start_layer, n=block_size))
        _become(self, pruning.prune(handle, plan).model, self.tokenizer, self.distance)
        return self

    def save_pretrained(self, save_directory: Any, **options: Any) -> None:
        """Write a stock checkpoint, as the model's own class does, and the tokenizer beside it."""
        # What transformers loads with a warning it refuses to write, e.g. a temperature beside do_sample=False.
        model: Any = self
        if model.generation_config is not None:
            model.generation_config, _ = savable(model.generation_config)
        super().save_pretrained(save_directory, **options)  # type: ignore[misc]  # the stock class is the next base
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)

    def _as_handle(self, tokenizer: PreTrainedTokenizerBase | None, *, tokenizer_needed: bool = True) -> ModelHandle:
        if tokenizer is not None:
            self.tokenizer = tokenizer
        model = cast(PreTrainedModel, self)
        if self.tokenizer is None and tokenizer_needed:
            self.tokenizer = _tokenizer_of(model)
        return _handle(model, self.tokenizer)


def _handle(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> ModelHandle:
    name = str(getattr(model.config, "_name_or_path", "") or "model given in Python")
    info = model_info(model, id=name, revision=None, reason="as the model was given")
    return ModelHandle(
        model=model, tokenizer=cast(PreTrainedTokenizerBase, tokenizer), info=info, ref=ModelRef(id=name)
    )


def _tokenizer_of(model: PreTrainedModel) -> PreTrainedTokenizerBase:
    name = str(getattr(model.config, "_name_or_path", "") or "")
    if not name:
        raise ModelError("The model has no tokenizer and no name to find one by; give tokenizer=.")
    try:
        return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(name))
    except (OSError, ValueError) as error:
        raise ModelError(f"The tokenizer of {name!r} cannot be loaded ({_line(error)}); give tokenizer=.") from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _short(handle: ModelHandle, distance: str | Distance) -> ShortTransformer:
    """Return a new object on the handle's tensors: pruned by nothing, so that the original stays as it is."""
    pruned = pruning.prune(handle, PrunePlan(num_layers=handle.info.num_layers, removed=())).model
    stock: Any = type(handle.model)
    short = object.__new__(stock if issubclass(stock, ShortTransformer) else _short_class(stock))
    _become(short, pruned, handle.tokenizer, "angular_last")
    short.set_metric(distance)
    return cast(ShortTransformer, short)


def _become(
    short: Any, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, distance: str | Distance
) -> None:
    """Make `short` the model: everything a torch module is, is in its __dict__."""
    short.__dict__ = dict(model.__dict__)
    short.tokenizer, short.distance = tokenizer, distance
    # A handle's tensors take no gradient; here the next step may be training, as in the seed.
    short.requires_grad_(True)


@cache
def _short_class(stock: Any) -> Any:
    """Return the stock class with our methods. It keeps the name, which transformers writes into the saved config."""
    return type(stock.__name__, (ShortTransformer, stock), {"__module__": stock.__module__, "__doc__": stock.__doc__})
