"""predict: memory, disk and seconds of work on a model, before it is loaded, from a calibration of a few seconds."""

import time
from dataclasses import fields
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from shortviz import loading
from shortviz.architectures import LayerStack, layer_stack, text_config
from shortviz.calibration import Speeds, time_gram, time_head, time_layers, time_product
from shortviz.errors import ModelError
from shortviz.model_files import ModelFiles, find_files, read_config
from shortviz.model_info import weight_size
from shortviz.placement import Placement, choose_placement
from shortviz.prediction_records import Prediction, Work
from shortviz.records import ModelEstimate, ModelRef
from shortviz.sizes import estimate_files, parse_config, settle_gguf
from shortviz.streamed_model import beside
from shortviz.token_sample import SAMPLE_TOKENS

_READ_BYTES = 64 * 2**20
_TIMED_TOKENS = 512


def predict(ref: ModelRef, work: Work | None = None) -> Prediction:
    """Return what work on the model would take; its config is read, and its weights are not.

    One layer of each kind is made of random numbers and timed: the figures are for a machine as busy as now. Raises
    what `estimate` raises, and ModelError for a GGUF file that was never loaded.
    """
    work, began = work or Work(), time.perf_counter()
    placement = choose_placement(ref)
    files = settle_gguf(find_files(ref))
    size = estimate_files(files, placement)
    if files.gguf is not None:
        raise ModelError(f"{files.name} is a GGUF file that was not loaded before; load it once, then it can be timed.")
    config = parse_config(files.name, read_config(files))
    with loading.quiet_transformers():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=placement.dtype)
        model.eval().requires_grad_(False)
        stack = layer_stack(model)
        speeds = _calibrate(model, stack, placement, files, work)
    return _predicted(model, stack, size, speeds, work, placement, began)


def _calibrate(
    model: PreTrainedModel, stack: LayerStack, placement: Placement, files: ModelFiles, work: Work
) -> Speeds:
    text = text_config(model.config)
    hidden, vocabulary = int(text.hidden_size), int(text.vocab_size)
    timed = max(min(work.row_tokens * work.batch_size, _TIMED_TOKENS), 2)
    forward, both = time_layers(model, stack, placement, timed)
    return Speeds(
        layers=forward,
        trained=both,
        gram=time_gram(len(stack.layers) + 1, hidden, placement),
        head=time_head(hidden, vocabulary, placement),
        double=time_product(torch.float64),
        single=time_product(torch.float32),
        read=_time_reading(files, placement),
    )


def _time_reading(files: ModelFiles, placement: Placement) -> float:
    """Return seconds for a byte of a local weight file: read, cast, and checked for NaN."""
    shards = sorted(files.folder.glob("*.safetensors")) if files.folder is not None else []
    if not shards:
        return 0.0
    largest = max(shards, key=lambda path: path.stat().st_size)
    began = time.perf_counter()
    with Path(largest).open("rb") as file:
        raw = torch.frombuffer(bytearray(file.read(_READ_BYTES) + b"\0\0"), dtype=torch.uint8)
    values = raw[: len(raw) // 2 * 2].view(torch.bfloat16).to(placement.dtype)
    float(values.sum())
    return (time.perf_counter() - began) / len(raw)


def _predicted(
    model: PreTrainedModel,
    stack: LayerStack,
    size: ModelEstimate,
    speeds: Speeds,
    work: Work,
    placement: Placement,
    began: float,
) -> Prediction:
    count, hidden = len(stack.layers), int(text_config(model.config).hidden_size)
    tokens = work.rows * work.row_tokens
    stored = sum(weight_size(layer)[1] for layer in stack.layers)
    largest = max(weight_size(layer)[1] for layer in stack.layers)
    outside = sum(weight_size(module)[1] for module in beside(stack))
    forward, reading = tokens * speeds.layers, size.parameters * 2 * speeds.read
    measure = forward + tokens * speeds.gram + _fitting(count, hidden, work.rows) * speeds.single
    return Prediction(
        size=size,
        work=work,
        load_seconds=reading,
        measure_seconds=measure,
        streamed_seconds=measure + reading,
        map_seconds=_map_seconds(count, speeds, work),
        repair_seconds=_repair_seconds(stack, hidden, tokens, speeds),
        heal_seconds=work.heal_steps * work.heal_tokens * (speeds.trained + speeds.layers + 3 * speeds.head),
        streamed_memory_bytes=max(outside, 2 * largest),
        states_bytes=(count + 1) * tokens * hidden * placement.dtype.itemsize,
        disk_bytes=stored + outside,
        calibration_seconds=time.perf_counter() - began,
    )


def _fitting(count: int, hidden: int, rows: int) -> float:
    """Return the multiplications of the linear replacement: a map for every start, applied to every end."""
    sampled = SAMPLE_TOKENS if rows > 2 else 0
    known, new = sampled * 2 // 3, sampled // 3
    return new * known * hidden * count * count / 2 + count * (known**3 / 3 + known * known * hidden)


def _map_seconds(count: int, speeds: Speeds, work: Work) -> float:
    """Return the seconds of every block on every window: layers replayed behind it, and its score."""
    suffixes = (count**3 - count) / 6 / count
    blocks = count * (count + 1) / 2 - 1
    tokens = work.windows * work.window + min(128, work.window)
    return tokens * (speeds.layers * (1 + suffixes) + blocks * speeds.head)


def _repair_seconds(stack: LayerStack, hidden: int, tokens: int, speeds: Speeds) -> float:
    """Return the seconds of one seam refit: both models once over the rows, moments, and a solution for each ridge."""
    linears = [m for m in stack.layers[0].modules() if isinstance(m, nn.Linear) and m.out_features == hidden]
    features = max((m.in_features for m in linears), default=hidden)
    moments = tokens * features * (features + hidden)
    solutions = 8 * (features**3 / 3 + features * features * hidden)
    return 1.5 * tokens * speeds.layers + tokens / 8 * 2 * speeds.head + (moments + solutions) * speeds.double


def prediction_json(found: Prediction) -> dict[str, object]:
    """Return a prediction as one flat JSON object."""
    named = {field.name: getattr(found, field.name) for field in fields(found) if field.name not in ("size", "work")}
    size = {f"size_{name}": getattr(found.size, name) for name in ("id", "parameters", "memory_bytes", "fits", "dtype")}
    return size | named | {"work": {field.name: getattr(found.work, field.name) for field in fields(found.work)}}
