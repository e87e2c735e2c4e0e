"""The numbers behind an estimate: what fits, how much memory is free, which file headers say what."""

import json
import struct
from pathlib import Path

import psutil
import pytest
import torch

from shortviz.errors import ModelError, ResourceError
from shortviz.model.headers import safetensors_parameters
from shortviz.model.load import parse_config, refuse_too_large
from shortviz.model.placement import choose_placement, free_memory
from shortviz.records.model import ModelEstimate, ModelRef


def estimate_of(memory_bytes: int, available_bytes: int) -> ModelEstimate:
    return ModelEstimate(
        id="org/big",
        revision=None,
        architecture="LlamaForCausalLM",
        num_layers=32,
        parameters=memory_bytes // 4,
        download_bytes=0,
        memory_bytes=memory_bytes,
        available_bytes=available_bytes,
        dtype="float32",
        device="cpu",
        reason="",
    )


def test_a_model_needs_a_fifth_more_memory_than_its_weights() -> None:
    assert refuse_too_large(estimate_of(10_000_000_000, 12_000_000_000)) is None
    with pytest.raises(ResourceError) as error:
        refuse_too_large(estimate_of(10_000_000_000, 11_900_000_000))
    assert str(error.value) == (
        "org/big needs 12.0 GB of memory in float32 (weights and a fifth more), and 11.9 GB is free on cpu; choose a "
        "smaller model or dtype."
    )


def test_free_memory_of_the_cpu_is_at_most_what_the_system_has() -> None:
    assert 0 < free_memory(torch.device("cpu")) <= psutil.virtual_memory().total


@pytest.mark.skipif(torch.cuda.is_available(), reason="the choice on a machine with a GPU is another one")
def test_the_cpu_is_chosen_with_float32_and_the_reason() -> None:
    placement = choose_placement(ModelRef(id="any"))
    assert placement.device.type == "cpu"
    assert placement.dtype_name == "float32"
    assert placement.reason == (
        "float32 on the CPU: no GPU was found, and CPUs are slow in half precision, which also blurs small distances."
    )
    asked = choose_placement(ModelRef(id="any", device="cpu"))
    assert asked.reason == ("float32 on the CPU: CPUs are slow in half precision, which also blurs small distances.")
    assert choose_placement(ModelRef(id="any", device="cpu", dtype="float64")).dtype is torch.float64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_chosen_with_bfloat16_where_it_has_it() -> None:
    placement = choose_placement(ModelRef(id="any"))
    assert placement.device == torch.device("cuda", 0)
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    assert placement.dtype is (torch.bfloat16 if native else torch.float32)
    assert free_memory(placement.device) > 0


def write_safetensors(path: Path, header: dict[str, object], data: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_parameters_are_counted_from_the_header(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [5], "data_offsets": [24, 34]},
        "scalar": {"dtype": "I64", "shape": [], "data_offsets": [34, 42]},
    }
    path = write_safetensors(tmp_path / "model.safetensors", header, bytes(42))
    assert safetensors_parameters(path) == 12


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2]}},
        {"a": [0, 8]},
    ],
)
def test_a_header_that_makes_no_sense_is_corrupt(tmp_path: Path, header: dict[str, object]) -> None:
    path = write_safetensors(tmp_path / "model.safetensors", header, bytes(8))
    with pytest.raises(ModelError, match=r"The header of .* is corrupt \(.*\); fetch the file again\."):
        safetensors_parameters(path)


def test_a_config_without_a_known_model_type_is_refused() -> None:
    with pytest.raises(ModelError, match=r"has model type 'zzz', which this version of transformers does not know"):
        parse_config("org/model", {"model_type": "zzz"})
