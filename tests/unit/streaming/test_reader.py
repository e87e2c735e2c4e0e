"""Reading tensors out of weight files: their bits, their addresses, memory that is used again, damaged files."""

import gc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shortviz.errors import ModelError, NumericsError
from shortviz.model.headers import Entry, read_shards
from shortviz.model.load import load
from shortviz.records.model import ModelRef
from shortviz.streaming import reader as weight_reader
from shortviz.streaming.model import open_streamed
from shortviz.streaming.reader import WeightReader
from tests.support.families import build_tiny, tiny_tokenizer

CPU = torch.device("cpu")
MEBIBYTE = 2**20


def folder_with(folder: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Entry]:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return read_shards(folder, "model")


def large(dtype: torch.dtype, numel: int = MEBIBYTE) -> torch.Tensor:
    return torch.randn(numel + 3, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("numel", [5, MEBIBYTE])
def test_floats_are_widened_to_the_bits_that_torch_gives_and_never_narrowed(tmp_path, dtype, numel):
    tensor = large(dtype, numel)
    reader = WeightReader(folder_with(tmp_path, {"w": tensor}), torch.float32, CPU)
    found = reader.read("w", aligned=False)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(found, tensor.to(found.dtype))
    assert not reader.suspicious


def test_other_dtypes_and_empty_tensors_come_as_they_are(tmp_path):
    tensors = {
        "i": torch.arange(7), "b": torch.tensor([True, False]), "s": torch.tensor(2.5), "e": torch.empty(0, 4),
        "f": torch.ones(9).to(torch.float8_e4m3fn),
    }  # fmt: skip
    reader = WeightReader(folder_with(tmp_path, tensors), torch.float32, CPU)
    for name, tensor in tensors.items():
        found = reader.read(name, aligned=False)
        assert found.dtype == tensor.dtype
        assert found.shape == tensor.shape
        assert torch.equal(found.float(), tensor.float())


def test_addresses_are_those_of_a_mapped_file_or_aligned(tmp_path):
    tensors = {"a": torch.ones(3), "b": large(torch.float32), "c": large(torch.float32), "d": torch.ones(5)}
    entries = folder_with(tmp_path, tensors)
    mapped = load_file(tmp_path / "model.safetensors")
    reader = WeightReader(entries, torch.float32, CPU)
    for name in tensors:
        there = reader.read(name, aligned=False)
        assert there.data_ptr() % 64 == entries[name].start % 64 == mapped[name].data_ptr() % 64
        assert reader.read(name, aligned=True).data_ptr() % 64 == 0
    assert {entry.start % 64 for entry in entries.values()} != {0}, "else the test shows nothing"


def test_files_of_old_writers_whose_tensors_lie_at_odd_addresses_are_read_too(tmp_path):
    tensors = {"small": torch.randn(7), "large": large(torch.float32), "narrow": large(torch.bfloat16)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    raw = (tmp_path / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = raw[8:end].rstrip() + b" " * (1 + len(raw[8:end].rstrip()) % 2)  # old versions did not pad to 8
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + raw[end:])
    entries = read_shards(tmp_path, "model")
    assert all(entry.start % 2 for entry in entries.values())
    reader = WeightReader(entries, torch.float32, CPU)
    for name, tensor in tensors.items():
        for aligned in (True, False):
            assert torch.equal(reader.read(name, aligned=aligned), tensor.float())


def test_memory_of_a_dropped_tensor_is_used_again_and_that_of_a_held_one_is_not(tmp_path):
    one, two = large(torch.bfloat16), large(torch.bfloat16) * 2
    reader = WeightReader(folder_with(tmp_path, {"one": one, "two": two}), torch.float32, CPU)
    held = reader.read("one", aligned=False)
    other = reader.read("two", aligned=False)
    assert torch.equal(held, one.float())
    address = other.data_ptr()
    view = other[5:]
    del other
    gc.collect()
    assert reader.read("one", aligned=False).data_ptr() != address, "a view still holds it"
    del view
    gc.collect()
    assert reader.read("one", aligned=False).data_ptr() == address
    assert torch.equal(held, one.float())


def test_a_tensor_of_another_size_gets_rid_of_memory_that_waits(tmp_path):
    tensors = {"one": large(torch.float32), "two": large(torch.float32, 2 * MEBIBYTE)}
    reader = WeightReader(folder_with(tmp_path, tensors), torch.float32, CPU)
    reader.read("one", aligned=True)
    assert sum(map(len, reader._free.values())) == 1
    found = reader.read("two", aligned=True)
    assert sum(map(len, reader._free.values())) == 0
    assert torch.equal(found, tensors["two"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_value_that_is_not_finite_is_noticed(tmp_path, bad, dtype):
    tensor = large(dtype)
    tensor[-2] = bad
    reader = WeightReader(folder_with(tmp_path, {"w": tensor}), torch.float32, CPU)
    reader.read("w", aligned=False)
    assert reader.suspicious


def test_a_file_that_is_cut_short_while_it_is_streamed_is_an_error_and_not_a_crash(tmp_path):
    build_tiny("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with open_streamed(ModelRef(id=str(tmp_path))) as model:
        file = tmp_path / "model.safetensors"
        file.write_bytes(file.read_bytes()[: model.entries["model.layers.4.mlp.up_proj.weight"].start + 10])
        turns = model.layers_in_turn(range(6))
        with pytest.raises(ModelError, match=r"model\.safetensors ends within the tensor model\.layers\.\d"):
            list(turns)


def test_a_dtype_that_torch_lacks_is_refused_by_name(tmp_path):
    (tmp_path / "w").write_bytes(b"\0" * 8)
    entry = Entry(file=tmp_path / "w", dtype="F6_E2M3", shape=(4,), start=0, num_bytes=3)
    with pytest.raises(ModelError, match="The tensor w is of dtype F6_E2M3, which cannot be run"):
        WeightReader({"w": entry}, torch.float32, CPU).read("w", aligned=False)


def test_infinite_weights_are_named_when_streamed(tmp_path):
    model = build_tiny("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[1, 1] = float("inf")
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with (
        open_streamed(ModelRef(id=str(tmp_path))) as model,
        pytest.raises(NumericsError, match="Layer 2 has NaN or Inf"),
    ):
        list(model.layers_in_turn(range(6)))


def test_weights_that_overflow_in_the_asked_dtype_are_named_as_when_loaded_whole(tmp_path):
    model = build_tiny("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[1, 1] = 1e6
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    ref = ModelRef(id=str(tmp_path), dtype="float16")
    said = r"Layer 2 has NaN or Inf among its weights \(model\.layers\.2\.mlp\.down_proj\.weight"
    with pytest.raises(NumericsError, match=said):
        load(ref)
    with open_streamed(ref) as streamed, pytest.raises(NumericsError, match=said):
        list(streamed.layers_in_turn(range(6)))


def test_no_sum_of_large_finite_weights_is_taken_for_an_infinite_one(tmp_path):
    tensor = torch.full((weight_reader._PIECE,), 60000.0, dtype=torch.float16)
    build = folder_with(tmp_path, {"w": tensor})
    reader = WeightReader(build, torch.float16, CPU)
    assert torch.equal(reader.read("w", aligned=False), tensor)
    assert reader.suspicious, "its sum overflows: all weights are then looked at one by one"
