"""load and estimate on checkpoint folders, good and bad; tiny random models."""

import json
import shutil
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shortviz.errors import ModelError, NumericsError, ResourceError, Stopped
from shortviz.model.load import estimate, load
from shortviz.progress import Progress, Watch
from shortviz.records.model import ModelRef
from tests.support.families import build_tiny, tiny_config, tiny_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    build_tiny("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the good checkpoint, to be damaged."""
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


def change_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    weights = {name: weight.clone() for name, weight in load_file(path).items()}
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def refusal(folder: Path) -> str:
    """What load says of the folder; estimate may say it too, but never anything else."""
    with pytest.raises(ModelError) as error:
        load(ModelRef(id=str(folder)))
    return str(error.value).replace(str(folder), "FOLDER")


def test_a_folder_loads_in_eval_mode_without_gradients_and_with_its_tokenizer(checkpoint: Path) -> None:
    seen: list[Progress] = []
    handle = load(ModelRef(id=str(checkpoint)), watch=Watch(seen.append))
    original = build_tiny("llama")
    state = handle.model.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in original.state_dict().items())
    assert not handle.model.training
    assert not any(weight.requires_grad for weight in handle.model.parameters())
    assert handle.tokenizer("héllo").input_ids == tiny_tokenizer()("héllo").input_ids
    assert handle.plan is None
    assert (handle.info.num_layers, handle.info.dtype, handle.info.device) == (6, "float32", "cpu")
    assert handle.info.revision is None
    assert handle.info.id == str(checkpoint)
    assert seen[0].done == 0
    assert seen[-1].done == seen[-1].total == handle.info.bytes


def test_the_estimate_of_a_folder_is_what_loading_then_takes(checkpoint: Path) -> None:
    size = estimate(ModelRef(id=str(checkpoint), dtype="bfloat16", device="cpu"))
    handle = load(ModelRef(id=str(checkpoint), dtype="bfloat16", device="cpu"))
    assert size.parameters == handle.info.parameters
    assert size.memory_bytes == handle.info.bytes
    assert (size.architecture, size.num_layers) == (handle.info.architecture, handle.info.num_layers)
    assert size.reason == handle.info.reason == "bfloat16 on the CPU, as asked for."
    assert size.download_bytes == 0
    assert size.fits


def test_sharded_weights_load_like_whole_ones_and_a_missing_shard_is_named(checkpoint: Path, tmp_path: Path) -> None:
    build_tiny("llama").save_pretrained(tmp_path, max_shard_size="60KB")
    tiny_tokenizer().save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert estimate(ModelRef(id=str(tmp_path))).parameters == estimate(ModelRef(id=str(checkpoint))).parameters
    assert load(ModelRef(id=str(tmp_path))).info.num_layers == 6
    shards[0].unlink()
    assert refusal(tmp_path) == f"The model FOLDER lacks 1 of {len(shards)} weight files: {shards[0].name} first."


def test_a_model_larger_than_memory_is_refused_before_it_is_read(copy: Path) -> None:
    rows, columns = 10**7, 10**6  # 40 TB in float32, in a file that has holes instead of bytes
    entry = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [0, rows * columns * 4]}
    header = json.dumps({"model.embed_tokens.weight": entry}).encode()
    with (copy / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        try:
            file.truncate(8 + len(header) + rows * columns * 4)
        except OSError:  # ext4 allows 16 TB
            entry |= {"shape": [rows, 10**5], "data_offsets": [0, rows * 10**5 * 4]}
            header = json.dumps({"model.embed_tokens.weight": entry}).encode()
            file.seek(0)
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + rows * 10**5 * 4)
    assert not estimate(ModelRef(id=str(copy))).fits
    with pytest.raises(
        ResourceError, match=r"needs [\d.]+ [GT]B of memory in float32 .* is free on cpu; choose a smaller"
    ):
        load(ModelRef(id=str(copy)))


def test_stop_before_loading_raises_stopped(checkpoint: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        load(ModelRef(id=str(checkpoint)), watch=Watch(stop=stop))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/folder", "There is no file or folder /no/such/folder; check the path."),
        ("./nothing", "There is no file or folder ./nothing; check the path."),
        ("model.gguf", "There is no file or folder model.gguf; check the path."),
        ("  ", "No model was named; give a hub id, a checkpoint folder, a .gguf file, or demo."),
        (
            "not a model!",
            "'not a model!' is neither a file or folder here nor a model id of the hub; check the spelling.",
        ),
    ],
)
def test_a_name_that_is_nothing_is_refused(name: str, message: str) -> None:
    with pytest.raises(ModelError) as error:
        estimate(ModelRef(id=name))
    assert str(error.value) == message


def test_a_single_file_that_is_not_gguf_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match=r"is a single file, but not a .gguf file; give the folder of the checkpoint"):
        estimate(ModelRef(id=str(checkpoint / "model.safetensors")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "There is no dtype 'int8'; choose one of auto, float32, bfloat16, float16, float64."),
        ({"device": "tpu"}, "There is no device 'tpu'; choose one of auto, cpu, cuda, cuda:0, spread."),
        ({"device": "cuda:x"}, "There is no device 'cuda:x'; choose one of auto, cpu, cuda, cuda:0, spread."),
        ({"device": "mps"}, "The device mps has no float64, in which everything is summed here; choose auto or cpu."),
        ({"device": "cuda:99"}, "The device cuda:99 was asked for, but this machine has"),
    ],
)
def test_a_wrong_dtype_or_device_is_refused_with_the_choices(
    checkpoint: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ModelError) as error:
        estimate(ModelRef(id=str(checkpoint), **options))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"auto_map": {"AutoModel": "m.M"}}, "The model FOLDER asks to run its own code (auto_map in config.json)"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "The weights of FOLDER are quantised (gptq)"),
        ({"model_type": "nonesuch"}, "The config.json of FOLDER has model type 'nonesuch', which this version of"),
        ({"model_type": None}, "The config.json of FOLDER has model type None"),
        ({"num_hidden_layers": "six"}, "The config.json of FOLDER is not valid for llama:"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "BertForMaskedLM is an encoder-only model"),
        ({"model_type": "t5", "is_encoder_decoder": True, "architectures": None}, "t5 is an encoder-decoder model"),
        ({"num_hidden_layers": 1}, "LlamaForCausalLM has 1 layer; choose a model of at least 2."),
        ({"num_hidden_layers": 7}, "The weights of FOLDER do not fit its config.json: they lack model.layers.6."),
        ({"text_config": "llama"}, "The config of model type 'llama' states no number of layers"),
        ({"num_hidden_layers": 5}, "The weights of FOLDER do not fit its config.json: they hold model.layers.5."),
        ({"intermediate_size": 40}, "The weights of FOLDER do not fit its config.json: they have another shape of"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(copy: Path, fields: dict[str, Any], message: str) -> None:
    change_json(copy / "config.json", **fields)
    assert refusal(copy).startswith(message)


def test_broken_json_is_refused(copy: Path) -> None:
    (copy / "config.json").write_text('{"model_type": ')
    assert refusal(copy).startswith("The file FOLDER/config.json cannot be read as JSON")
    (copy / "config.json").write_text("[" * 100_000)
    assert refusal(copy).startswith("The file FOLDER/config.json cannot be read as JSON (maximum recursion depth")
    (copy / "config.json").write_text("[]")
    assert refusal(copy) == "The config.json of FOLDER is not a JSON object."


def test_pickled_weights_alone_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert refusal(copy) == (
        "The model FOLDER has only pickled weights (pytorch_model.bin), and unpickling can run any code; shortviz "
        "loads safetensors and GGUF only: convert it, or choose a model with safetensors."
    )


def test_a_folder_without_weights_or_config_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert refusal(copy).startswith("The model FOLDER has no file model.safetensors or model.safetensors.index.json")
    (copy / "config.json").unlink()
    assert refusal(copy).startswith("FOLDER is a checkpoint without config.json")
    (copy / "adapter_config.json").write_text("{}")
    assert refusal(copy).startswith("FOLDER is a LoRA adapter, not a whole model")


def test_a_truncated_or_corrupt_safetensors_file_is_refused(copy: Path) -> None:
    path = copy / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1000])
    size = len(data)
    assert refusal(copy) == (
        f"The file FOLDER/model.safetensors is cut short: {size - 1000} of {size} bytes; fetch it again."
    )
    path.write_bytes(data + b"more")
    assert "is longer than it should be" in refusal(copy)
    path.write_bytes(data[:100])
    assert (
        refusal(copy)
        == "The file FOLDER/model.safetensors is not a whole safetensors file (100 bytes); fetch it again."
    )
    path.write_bytes(b"")
    assert "is not a whole safetensors file (0 bytes)" in refusal(copy)
    path.write_bytes(data[:20] + b"\xff\xfe" + data[22:])
    assert refusal(copy).startswith("The header of FOLDER/model.safetensors is corrupt")
    path.write_bytes(data.replace(b'"F32"', b'"X32"', 1))
    assert refusal(copy).startswith("The header of FOLDER/model.safetensors is corrupt")
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    first, second = sorted(n for n in header if ".layernorm" in n or "norm.weight" in n)[:2]
    header[second]["data_offsets"] = header[first]["data_offsets"]  # two tensors on the same bytes
    path.write_bytes(data[:8] + json.dumps(header, separators=(",", ":")).encode().ljust(length) + data[8 + length :])
    assert "is corrupt (the place of" in refusal(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused_naming_its_layer(copy: Path, value: float) -> None:
    change_weights(copy, lambda weights: weights["model.layers.3.mlp.up_proj.weight"][2].fill_(value))
    with pytest.raises(NumericsError) as error:
        load(ModelRef(id=str(copy)))
    assert str(error.value) == (
        "Layer 3 has NaN or Inf among its weights (model.layers.3.mlp.up_proj.weight); get a sound copy of the model."
    )


def test_a_weight_outside_the_layers_that_is_not_finite_is_refused(copy: Path) -> None:
    change_weights(copy, lambda weights: weights["model.norm.weight"].fill_(float("nan")))
    with pytest.raises(NumericsError, match=r"A part outside the layers has NaN or Inf .*\(model.norm.weight\)"):
        load(ModelRef(id=str(copy)))


def test_large_finite_weights_whose_sum_overflows_are_accepted(copy: Path) -> None:
    change_weights(copy, lambda weights: weights["model.layers.0.mlp.up_proj.weight"].fill_(3e38))
    assert load(ModelRef(id=str(copy))).info.num_layers == 6


def test_buffers_of_old_checkpoints_do_not_count_as_unexpected(copy: Path) -> None:
    change_weights(copy, lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    assert load(ModelRef(id=str(copy))).info.num_layers == 6


def test_a_tokenizer_that_is_missing_broken_or_too_large_is_refused(copy: Path) -> None:
    config = tiny_config("llama", vocab_size=200, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    build_tiny("llama", config=config).save_pretrained(copy)
    assert refusal(copy) == (
        "The tokenizer of FOLDER has token ids up to 259 and the model embeddings for 0-199; get both from the same "
        "place."
    )
    change_json(copy / "tokenizer_config.json", auto_map={"AutoTokenizer": ["t.T", None]})
    assert "asks to run its own code (auto_map in tokenizer_config.json)" in refusal(copy)
    (copy / "tokenizer_config.json").unlink()
    (copy / "tokenizer.json").write_text('{"version": "1.0"}')
    assert refusal(copy).startswith("The tokenizer of FOLDER cannot be read")
    (copy / "tokenizer.json").unlink()
    assert refusal(copy).startswith("The model FOLDER has no tokenizer")
