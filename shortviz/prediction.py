"""predict: memory, disk and seconds of work on a model, before it is loaded, from a calibration of a few seconds."""

import os
import threading
import time
from collections import Counter
from dataclasses import fields, replace

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from shortviz import hub, loading
from shortviz.architectures import LayerStack, layer_stack, text_config
from shortviz.calibration import Speeds, Timer, time_fits, time_gram, time_head, time_layers, time_product
from shortviz.errors import ModelError, ResourceError
from shortviz.loss_map import COARSE_TOKENS
from shortviz.model_files import ModelFiles, find_files, read_config, wanted_names
from shortviz.model_info import context_length, weight_size
from shortviz.placement import Placement, choose_placement, free_memory
from shortviz.prediction_records import Prediction, Work
from shortviz.records import ModelEstimate, ModelRef
from shortviz.repair_work import HELD_OUT_EVERY
from shortviz.seam_fit import RIDGES
from shortviz.shards import read_shards
from shortviz.sizes import estimate_files, parse_config, settle_gguf
from shortviz.streamed_model import non_layer_modules
from shortviz.timed_shapes import timed_shapes, within_context
from shortviz.weight_reader import WeightReader
from shortviz.words import size as human

_READ_BYTES = 64 * 2**20


def predict(ref: ModelRef, work: Work | None = None, *, stop: threading.Event | None = None) -> Prediction:
    """Return what work on the model would take; its config is read, and its weights are not.

    One layer of each kind is made of random numbers and timed: the figures are for a machine as busy as now. Raises
    what `estimate` raises, ModelError for a GGUF file that was never loaded, and Stopped once `stop` is set.
    """
    work, began = work or Work(), time.perf_counter()
    placement = choose_placement(ref)
    files = settle_gguf(find_files(ref))
    size = estimate_files(files, placement)
    if files.gguf is not None:
        raise ModelError(f"{files.name} is a GGUF file that was not loaded before; load it once, then it can be timed.")
    config, building = parse_config(files.name, read_config(files)), time.perf_counter()
    work = within_context(work, context_length(text_config(config)))
    with loading.quiet_transformers():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=placement.dtype)
        model.eval().requires_grad_(False)
        stack, built = layer_stack(model), time.perf_counter()
        _check_memory(files.name, stack)
        speeds, states = _calibrate(model, stack, placement, files, work, Timer(stop=stop))
    speeds = replace(speeds, opening=speeds.opening + built - building)
    return _predicted(model, stack, size, speeds, states, work, began)


def _check_memory(name: str, stack: LayerStack) -> None:
    """Raise ResourceError where not even one layer, with its gradient's states, or the embeddings can be made."""
    needed = max(weight_size(module)[1] for module in (*stack.layers, *non_layer_modules(stack))) * 1.2
    free = free_memory(torch.device("cpu"))
    if needed > free:
        raise ResourceError(
            f"Timing one layer of {name} needs {human(int(needed))} of memory, and {human(free)} is free; free "
            "some, or choose --dtype bfloat16."
        )


def _calibrate(
    model: PreTrainedModel, stack: LayerStack, placement: Placement, files: ModelFiles, work: Work, timer: Timer
) -> tuple[Speeds, torch.dtype]:
    """Return the speeds, and the dtype of the residual stream."""
    text = text_config(model.config)
    hidden, vocabulary = int(text.hidden_size), int(text.vocab_size)
    shapes = timed_shapes(stack, placement.dtype, work, context_length(text))
    seconds = time_layers(model, stack, placement, shapes, timer)
    timer.check()
    fresh, again = _time_reading(files, placement)
    speeds = Speeds(
        layers=seconds.forward[shapes.batch],
        fused=seconds.forward[shapes.fused],
        replayed=seconds.forward[shapes.replayed],
        trained=seconds.trained,
        gram=time_gram(len(stack.layers) + 1, hidden, placement.device, seconds.states, timer),
        head=time_head(hidden, vocabulary, placement, timer),
        fits=time_fits(len(stack.layers) + 1, hidden, work, timer),
        opening=seconds.on_meta,
        double=time_product(timer),
        read=fresh,
        read_again=again,
    )
    return speeds, seconds.states


def _time_reading(files: ModelFiles, placement: Placement) -> tuple[float, float]:
    """Return seconds to read all weight files: (into fresh memory, into memory used before); 0 of what is not here.

    Two tensors of one size are read, the largest that there are two of up to 64 MiB, in case the disk has to be asked.
    """
    folder = files.folder
    if files.hub is not None and not hub.missing_bytes(files.hub, wanted_names(files)):
        folder = hub.cached_folder(files.hub.repo, files.hub.commit)
    if folder is None:
        return 0.0, 0.0
    entries = read_shards(folder, files.name)
    reader = WeightReader(entries, placement.dtype, torch.device("cpu"))
    sizes = Counter(entry.num_bytes for entry in entries.values() if entry.num_bytes <= _READ_BYTES)
    chosen = max(sizes, key=lambda size: (sizes[size] > 1, size), default=0)
    pair = [name for name, entry in entries.items() if entry.num_bytes == chosen]
    times = []
    for name in (pair[0], pair[-1]) if pair else ():
        began = time.perf_counter()
        reader.read(name, aligned=False)
        times.append((time.perf_counter() - began) * sum(e.num_bytes for e in entries.values()) / max(chosen, 1))
    return (times[0], times[1]) if times else (0.0, 0.0)


def _predicted(
    model: PreTrainedModel,
    stack: LayerStack,
    size: ModelEstimate,
    speeds: Speeds,
    states: torch.dtype,
    work: Work,
    began: float,
) -> Prediction:
    count, hidden = len(stack.layers), int(text_config(model.config).hidden_size)
    tokens = work.rows * work.row_tokens
    stored = sum(weight_size(layer)[1] for layer in stack.layers)
    largest = max(weight_size(layer)[1] for layer in stack.layers)
    outside = sum(weight_size(module)[1] for module in non_layer_modules(stack))
    compared = tokens * speeds.gram + speeds.fits
    # The next layer is read while one computes, if there is a core left for that.
    beside_it = torch.get_num_threads() < (os.cpu_count() or 1)
    computing, reading = tokens * speeds.fused, speeds.read_again
    swept = max(computing, reading) if beside_it else computing + reading
    return Prediction(
        size=size,
        work=work,
        load_seconds=speeds.read or None,
        measure_seconds=tokens * speeds.layers + compared,
        streamed_seconds=speeds.opening + swept + compared,
        map_seconds=_map_seconds(count, speeds, work),
        repair_seconds=_repair_seconds(stack, text_config(model.config), work, speeds),
        heal_seconds=work.heal_steps * work.heal_tokens * (speeds.trained + 3 * speeds.head),
        streamed_memory_bytes=max(outside, 2 * largest),
        states_bytes=(count + 1) * tokens * hidden * states.itemsize,
        disk_bytes=stored + outside,
        calibration_seconds=time.perf_counter() - began,
    )


def _map_seconds(count: int, speeds: Speeds, work: Work) -> float:
    """Return the seconds of every block on every window: layers replayed behind it, and its score."""
    suffixes = (count**3 - count) / 6 / count
    blocks = count * (count + 1) / 2 - 1
    first_look = COARSE_TOKENS if work.window > COARSE_TOKENS else 0
    tokens = work.windows * work.window + first_look
    return tokens * (speeds.replayed * (1 + suffixes) + blocks * speeds.head)


def _repair_seconds(stack: LayerStack, text: object, work: Work, speeds: Speeds) -> float:
    """Return the seconds of one seam refit behind a quarter of the layers, with all fits that so much text allows.

    The uncut model once over the rows, the draft on half of its way; then with the layer's own neurons, and again with
    the removed layers': moments, a solution a ridge and a verdict of the MLP's features alone; and with the attention's
    where there are more tokens than features of both, which takes moments of both and then of the MLP's anew.
    """
    hidden, tokens = int(text.hidden_size), work.rows * work.row_tokens  # type: ignore[attr-defined]  # any config
    heads, width = getattr(text, "num_attention_heads", None), getattr(text, "head_dim", None)
    attended = heads * width if heads and width else hidden
    sizes = [_linear_size(module) for module in stack.layers[0].modules() if isinstance(module, nn.Linear | Conv1D)]
    features: int = max((inputs for inputs, outputs in sizes if outputs == hidden), default=hidden)
    held_out = 1 / min(HELD_OUT_EVERY, max(work.rows, 2))
    together = tokens * (1 - held_out) >= features + attended
    gathered = (features + attended, features) if together else (features,)
    solved: tuple[int, ...] = (features, *gathered) if together else gathered
    moments = tokens * sum(count * (count + hidden) for count in gathered)
    solutions = len(RIDGES) * sum(count * count * (count / 3 + 2 * hidden) for count in solved)
    layers = len(stack.layers)
    visits, verdicts = 2 * len(gathered) + 1 + layers // 4, 2 * len(gathered) + 1
    passes = tokens * speeds.layers * (1.5 + visits / layers)
    judged = verdicts * tokens * held_out * (speeds.layers / 2 + speeds.head)
    return passes + judged + 2 * (moments + solutions) * speeds.double


def _linear_size(module: nn.Linear | Conv1D) -> tuple[int, int]:
    """Return (inputs, outputs)."""
    return (module.nx, module.nf) if isinstance(module, Conv1D) else (module.in_features, module.out_features)


def prediction_json(found: Prediction) -> dict[str, object]:
    """Return a prediction as one flat JSON object."""
    named = {field.name: getattr(found, field.name) for field in fields(found) if field.name not in ("size", "work")}
    size = {f"size_{name}": getattr(found.size, name) for name in ("id", "parameters", "memory_bytes", "fits", "dtype")}
    return size | named | {"work": {field.name: getattr(found.work, field.name) for field in fields(found.work)}}
