"""The calls of `short-transformers` 1.0.0, on top of shortviz: a stock transformers model with a few methods more.

What differs, on purpose: row n-1 of a result holds blocks of n layers and is read so everywhere; the model given to
`from_model` stays as it is; no hook stays behind; rows may come in batches; per-layer config fields are cut too; and a
second `prune` works. `docs/decisions/compat.md` says why.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import plotly.graph_objects as go
import torch
from PIL import Image, ImageDraw, ImageFont
from plotly.colors import sample_colorscale
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from shortviz import criteria
from shortviz.analysis.compare import rescaled
from shortviz.criteria.base import angle
from shortviz.errors import ModelError, NumericsError, PlanError, ShortvizError, TextError, first_line
from shortviz.export.texts import savable
from shortviz.measure.distances import measure_distances
from shortviz.model import prune as pruning
from shortviz.model.gguf.dequantise import save_tokenizer
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import residual_boundaries
from shortviz.model.load import load, model_info
from shortviz.records.json import Floats
from shortviz.records.measured import Grid
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.text import TextSpec, TokenSet
from shortviz.text import tokens as texts
from shortviz.text.chats import Chat, read_chat
from shortviz.text.sources import TextRows, whole_characters

SCALE = "Viridis_r"
"""Yellow is low = redundant."""
WITH_CHROME = (".svg", ".pdf", ".jpg", ".jpeg", ".webp")


def draw_diagram(
    results: Floats, output_file_path: str | Path, title: str | None = None, normalized: bool = True
) -> go.Figure:
    """Return the triangular map as a figure, after writing it to a file: .png, .html or .json.

    The other image files (WITH_CHROME) need the package kaleido and a Chrome or Chromium. `normalized` rescales
    each row to 0-1 over all its cells; a row of one cell or of equal cells is drawn neutral, as 0.5.
    Raises ShortvizError where the file cannot be written.
    """
    shown = triangle(results, normalized)
    hover = "start %{x}, n %{y}: %{z:.4f}<extra></extra>"
    figure = go.Figure(go.Heatmap(z=shown, y0=1, dy=1, colorscale=SCALE, hovertemplate=hover))
    axis: dict[str, Any] = {"showgrid": False, "zeroline": False}
    figure.update_layout(
        title={"text": title},
        template="plotly_white",
        xaxis={**axis, "title": {"text": "start layer"}},
        yaxis={**axis, "title": {"text": "block size n"}},
    )
    _write(figure, shown, Path(output_file_path), title or "")
    return figure


def triangle(results: Floats, normalized: bool) -> Floats:
    """Return the array with NaN outside the triangle, each row rescaled to 0-1 where asked."""
    inside = np.tri(len(results), dtype=bool)[::-1]
    shown = np.where(inside, results, np.nan)
    if not normalized:
        return shown
    scaled, _ = rescaled(Grid(mean=shown, stderr=shown, samples=1))
    return np.where(inside, np.nan_to_num(scaled, nan=0.5), np.nan)


def _write(figure: go.Figure, shown: Floats, path: Path, title: str) -> None:
    kind = path.suffix.lower()
    if kind not in (".png", ".html", ".json", *WITH_CHROME):
        raise ShortvizError(f"{path.name!r} is no name for a diagram; choose one that ends in .png or .html.")
    try:
        if kind == ".png":
            _picture(shown, title).save(path)
        elif kind == ".html":
            figure.write_html(path)
        elif kind == ".json":
            figure.write_json(path)
        else:
            figure.write_image(path)
    except OSError as error:
        raise ShortvizError(f"The diagram cannot be written to {path} ({error.strerror or error}).") from error
    except (ValueError, RuntimeError) as error:
        raise ShortvizError(
            f"A {kind} diagram needs the package kaleido and a Chrome ({first_line(error)}); choose a name that "
            "ends in .png."
        ) from error


def _picture(shown: Floats, title: str) -> Image.Image:
    """Return the map drawn with Pillow, n upward as in the paper's figures."""
    size = shown.shape[0]
    cell = max(8, 600 // size)
    left, top, width, bottom = 70, 50, cell * size, 60
    image = Image.new("RGB", (left + width + 120, top + width + bottom), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(14)
    low, high = float(np.nanmin(shown)), float(np.nanmax(shown))
    for n, start in np.argwhere(~np.isnan(shown)):
        x, y = left + start * cell, top + width - (n + 1) * cell
        draw.rectangle((x, y, x + cell - 2, y + cell - 2), fill=_colour(float(shown[n, start]), low, high))
    every = max(1, size // 10)
    for i in range(0, size, every):
        middle = i * cell + cell / 2
        draw.text((left + middle, top + width + 6), str(i), fill="black", font=font, anchor="mt")
        draw.text((left - 8, top + width - middle), str(i + 1), fill="black", font=font, anchor="rm")
    draw.text((left + width / 2, top + width + 32), "start layer", fill="black", font=font, anchor="mt")
    draw.text((left, top - 8), f"block size n   {title}".rstrip(), fill="black", font=font, anchor="ls")
    for y in range(top, top + width):
        value = high - (high - low) * (y - top) / width
        draw.line((left + width + 24, y, left + width + 40, y), fill=_colour(value, low, high))
    for value, y in ((high, top), (low, top + width)):
        draw.text((left + width + 46, y), f"{value:.3g}", fill="black", font=font, anchor="lm")
    return image


def _colour(value: float, low: float, high: float) -> tuple[int, int, int]:
    share = (value - low) / (high - low) if high > low else 0.0
    red, green, blue = sample_colorscale(SCALE, [share], colortype="tuple")[0]
    return round(red * 255), round(green * 255), round(blue * 255)


Distance = Callable[[Tensor, Tensor], float]
"""(input, output) of a block, each (1, tokens, hidden) in float32 on the CPU -> one number, low = redundant."""


def get_best_pruning_start(result: Floats, block_size: int) -> int:
    """Return the start of the lowest block of `block_size` layers; raises PlanError where no such block exists."""
    num_layers = result.shape[0]
    if not 1 <= block_size < num_layers:
        raise PlanError(f"block_size is {block_size}; it must be 1 to {num_layers - 1} for {num_layers} layers.")
    return int(np.argmin(result[block_size - 1, : num_layers - block_size + 1]))


def get_scored_blocks(
    result: Floats, return_md: bool = True, threshold: float = math.inf
) -> str | dict[int, dict[str, float]]:
    """Return the lowest block of each size 1 .. L-1 that scores at most `threshold`.

    A Markdown table, or with `return_md=False` a dict: size -> {"start_layer", "score"}.
    """
    scored: dict[int, dict[str, float]] = {}
    for size in range(1, result.shape[0]):
        start = get_best_pruning_start(result, size)
        score = float(result[size - 1, start])
        if score <= threshold:
            scored[size] = {"start_layer": start, "score": score}
    if not return_md:
        return scored
    head = "| Block_size | Removed_layers | Score (avg dist)|\n| -------- | ------- | -------- |\n"
    layers = {size: f"{found['start_layer']}-{int(found['start_layer']) + size - 1}" for size, found in scored.items()}
    return head + "".join(f"| {size} | {layers[size]} | {found['score']:.3f}|\n" for size, found in scored.items())


def get_angular_distance_ith_token(i: int) -> Distance:
    """Return the angle at token i as a distance, in half turns: 0 the same direction, 1 opposite."""

    def angular_distance_ith_token(block_input: Tensor, block_output: Tensor) -> float:
        tokens = block_input.shape[1]
        if not -tokens <= i < tokens:
            raise ShortvizError(f"There is no token {i} in a row of {tokens} tokens; choose longer rows.")
        return float(angle(block_input[0, i], block_output[0, i]))

    return angular_distance_ith_token


def measure_callable(handle: ModelHandle, tokens: TokenSet, distance: Distance) -> Floats:
    """Return a distance of someone's own, averaged over rows, shape (L, L), 0 outside the triangle.

    It is called L(L+1)/2 times a row, so this is slow beside the built-in criteria, which share one Gram matrix.
    Raises NumericsError where it returns no finite number.
    """
    num_layers = handle.info.num_layers
    result = np.zeros((num_layers, num_layers))
    for number, row in enumerate(tokens.rows):
        states: list[Tensor] = []

        def keep(_boundary: int, hidden: Tensor, states: list[Tensor] = states) -> None:
            states.append(hidden.to("cpu", torch.float32, copy=True))

        with handle.lock, torch.no_grad(), residual_boundaries(handle, keep) as decoder:
            decoder(input_ids=torch.tensor(row, device=handle.model.device)[None], use_cache=False)
        for start in range(num_layers):
            for end in range(start + 1, num_layers + 1):
                value = float(distance(states[start], states[end]))
                if not math.isfinite(value):
                    raise NumericsError(
                        f"The distance given returned {value} for layers {start}-{end - 1} of row {number}; "
                        "it must return a finite number."
                    )
                result[end - start - 1, start] += (value - result[end - start - 1, start]) / (number + 1)
    return result


def token_set(
    dataset: Iterable[Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    key: str | None,
    limit: int,
    max_length: int,
    use_chat_template: bool,
) -> TokenSet:
    """Return the first `limit` rows of a data set as tokens; a streamed data set is read no further.

    A row is a string or a dict. `key` None takes the column `text`, else `content`: the defaults of the seed's calls.
    With `use_chat_template` a row's value is a list of chat messages, and the template's own text brings its BOS.
    Raises TextError naming the row that cannot be used.
    """
    if isinstance(dataset, (str, bytes)):
        raise TextError("The dataset is one string; give a list of strings, a list of dicts or a datasets.Dataset.")
    if isinstance(dataset, Mapping):
        names = ", ".join(map(str, dataset))
        raise TextError(f'The dataset is a dict of {names}; choose one part of it, such as dataset["train"].')
    if limit < 1:
        raise TextError(f"The row limit is {limit}; it must be at least 1.")
    rows = tuple(_row(row, number, key, use_chat_template) for number, row in enumerate(islice(dataset, limit)))
    spec = TextSpec(
        kind="paste",
        value="",
        max_length=max_length,
        bos="never" if use_chat_template else "auto",
        special_tokens="parsed" if use_chat_template else "auto",
        long_rows="truncate",
    )
    return texts.tokenize(TextRows(spec=spec, rows=rows, source="dataset given in Python"), tokenizer)


def _row(row: Any, number: int, key: str | None, chats: bool) -> str | Chat:
    value = row
    if isinstance(row, Mapping):
        column = key or next((name for name in ("text", "content") if name in row), "text")
        if column not in row:
            raise TextError(f"Row {number} has no column {column!r}; give key= one of {', '.join(map(str, row))}.")
        value = row[column]
    value, _ = whole_characters(value)
    if chats and isinstance(value, list):
        return read_chat(value, f"row {number}")
    if not isinstance(value, str):
        advice = "use_chat_template=True" if isinstance(value, list) else "key= a column of text"
        raise TextError(f"Row {number} holds a {type(value).__name__}, not text; give {advice}.")
    return value


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
        return np.nan_to_num(grid.mean)

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
            save_tokenizer(self.tokenizer, Path(save_directory))

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
        raise ModelError(
            f"The tokenizer of {name!r} cannot be loaded ({first_line(error)}); give tokenizer=."
        ) from error


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
