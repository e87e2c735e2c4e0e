"""The export that copies tensors from file to file: shards, dtypes, quantised weights, and what is refused."""

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma4Config, Gemma4ForConditionalGeneration
from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig

from shortviz.errors import ExportError, ModelError, PlanError, ResourceError, Stopped
from shortviz.export.export import write_checkpoint
from shortviz.export.folder import fingerprints
from shortviz.export.weights import kept_tensors
from shortviz.model.headers import read_shards
from shortviz.model.load import load
from shortviz.model.prune import prune
from shortviz.progress import Watch
from shortviz.records.model import ModelRef
from shortviz.records.plan import PrunePlan
from shortviz.streaming.export import export_streamed, prune_quantization
from shortviz.streaming.model import open_streamed
from shortviz.streaming.proof import prove_bytes
from tests.support.checkpoint_files import mix_up
from tests.support.families import build_tiny, tiny_config, tiny_tokenizer

PLAN = PrunePlan(num_layers=6, removed=(1, 2, 4))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama-bf16")
    build_tiny("llama", torch.bfloat16).save_pretrained(folder, max_shard_size="10KB")
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def export(folder: Path, out: Path, **options):
    return export_streamed(ModelRef(id=str(folder)), lambda _: PLAN, out, **options)


def add(folder: Path, tensors: dict[str, torch.Tensor], **config) -> None:
    """Put more tensors into a file of their own, and fields into the config."""
    save_file(tensors, folder / "more.safetensors", metadata={"format": "pt"})
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"] |= dict.fromkeys(tensors, "more.safetensors")
    file.write_text(json.dumps(index))
    fields = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(fields))


def test_a_sharded_bfloat16_checkpoint_is_cut_into_the_same_files_and_proved_in_a_fresh_process(saved, tmp_path):
    handle = load(ModelRef(id=str(saved), dtype="bfloat16"))
    write_checkpoint(prune(handle, PLAN), tmp_path / "in-memory", shard_bytes=20_000)
    report = export(saved, tmp_path / "streamed", shard_bytes=20_000)
    expected = fingerprints(tmp_path / "in-memory")
    assert len([name for name in expected if name.endswith(".safetensors")]) > 2
    assert {name: report.files[name] for name in expected} == expected
    assert (report.proof, report.max_logit_diff, report.generation_equal) == ("fresh process", 0.0, True)
    assert report.bytes == prune(handle, PLAN).info.bytes


def test_what_the_config_does_not_describe_is_refused_and_prediction_heads_are_left_out(folder, tmp_path):
    add(folder, {"model.layers.6.eh_proj.weight": torch.ones(2)})
    with pytest.raises(ModelError, match=r"hold model\.layers\.6\.eh_proj"):
        export(folder, tmp_path / "out")
    described = build_tiny("llama")
    described.config.num_nextn_predict_layers = 1
    kept = kept_tensors(described, "it", read_shards(folder, "it"), PLAN)
    assert sorted({name.split(".")[2] for name in kept.tensors if name.startswith("model.layers.")}) == ["0", "1", "2"]


QUANTISED = {
    "quant_method": "gptq",
    "bits": 4,
    "modules_to_not_convert": ["lm_head", "model.layers.0.mlp", "model.layers.2.mlp", "model.layers.5.mlp"],
    "dynamic": {"model.layers.3.self_attn": {"bits": 8}, "model.layers.4.self_attn": {"bits": 8}},
}


def test_quantised_weights_are_cut_unread_with_the_layer_numbers_of_their_config(folder, tmp_path):
    packed = {f"model.layers.{i}.mlp.up_proj.qweight": torch.full((2, 2), i, dtype=torch.int32) for i in range(6)}
    add(folder, packed, quantization_config=QUANTISED)
    report = export(folder, tmp_path / "out")
    assert (report.proof, report.max_logit_diff, report.generation_equal) == ("bytes", None, None)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 3
    assert config["quantization_config"] == QUANTISED | {
        "modules_to_not_convert": ["lm_head", "model.layers.0.mlp", "model.layers.2.mlp"],
        "dynamic": {"model.layers.1.self_attn": {"bits": 8}},
    }
    written = load_file(tmp_path / "out" / "model.safetensors")
    kept = [int(written[f"model.layers.{i}.mlp.up_proj.qweight"][0, 0]) for i in range(3)]
    assert kept == [0, 3, 5]
    assert "quantised and were not run" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"quant_method": "torchao"}, "quantised by 'torchao', whose files cannot be cut by name"),
        (
            {"quant_method": "fp8", "ignore": ["re:.*layers\\.(0|1)\\..*"]},
            r"quantization_config.ignore names layers by",
        ),
        ({"quant_method": "fp8", "layers_kept": [0, 1, 5]}, "quantization_config.layers_kept is a list of numbers"),
    ],
)
def test_a_quantisation_config_that_cannot_be_rewritten_is_refused_by_the_field_s_name(config, match):
    with pytest.raises(PlanError, match=match):
        prune_quantization(config, PLAN, "model.layers")


@pytest.mark.parametrize("factor", [1, 2])
def test_a_head_that_repeats_the_embeddings_it_is_tied_to_is_left_out_and_one_that_differs_is_refused(tmp_path, factor):
    model = build_tiny("llama", config=tiny_config("llama", tie_word_embeddings=True))
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    file, ref = tmp_path / "model" / "model.safetensors", ModelRef(id=str(tmp_path / "model"))
    weights = load_file(file)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * factor
    save_file(weights, file, metadata={"format": "pt"})
    if factor == 1:
        write_checkpoint(prune(load(ref), PLAN), tmp_path / "in-memory")
        files = export(tmp_path / "model", tmp_path / "out").files
        assert files["model.safetensors"] == fingerprints(tmp_path / "in-memory")["model.safetensors"]
        return
    told = "hold lm_head.weight and model.embed_tokens.weight with different values, and its config ties them"
    with pytest.raises(ModelError, match=told):
        load(ref)
    with pytest.raises(ModelError, match=told):
        export(tmp_path / "model", tmp_path / "out")


def test_a_regex_without_layer_numbers_and_block_sizes_stay():
    config = {"quant_method": "fp8", "ignore": ["re:.*lm_head", "lm_head"], "weight_block_size": [128, 128]}
    assert prune_quantization(config, PLAN, "model.layers") == config


def test_a_byte_that_differs_from_the_original_fails_the_proof(saved, tmp_path):
    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    assert prove_bytes(read_shards(saved, "it"), copy).kind == "bytes"
    shard = sorted(copy.glob("*.safetensors"))[1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ExportError, match="were not written as they are"):
        prove_bytes(read_shards(saved, "it"), copy)


def test_a_stop_and_a_full_disk_leave_nothing_behind(saved, tmp_path, monkeypatch):
    stop = threading.Event()
    with pytest.raises(Stopped):
        export(saved, tmp_path / "a" / "out", watch=Watch(lambda _: stop.set(), stop))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shortviz.export.folder.shutil.disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ResourceError, match=r"needs .* MB of disk, and the disk of .* has 1\.0 KB free"):
        export(saved, tmp_path / "a" / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spoil", ["missing", "short", "twice"])
def test_a_file_that_is_missing_cut_short_or_there_twice_is_named_and_nothing_is_written(folder, tmp_path, spoil):
    shards = sorted(folder.glob("model-*.safetensors"))
    if spoil == "missing":
        shards[2].unlink()
    elif spoil == "short":
        shards[2].write_bytes(shards[2].read_bytes()[:-10])
    else:
        save_file(load_file(shards[1]) | load_file(shards[2]), shards[2], metadata={"format": "pt"})
    said = {"missing": "lacks 1 of .* weight files: model-00003", "short": "model-00003.*cut short"}
    with pytest.raises(ModelError, match=said.get(spoil, "is in two weight files, model-00002.* and model-00003")):
        export(folder, tmp_path / "a" / "out")
    assert not (tmp_path / "a").exists()


def test_a_checkpoint_whose_layers_are_not_in_order_across_its_files_is_cut_into_the_same_files(folder, tmp_path):
    export(folder, tmp_path / "in-order")
    mix_up(folder)
    export(folder, tmp_path / "mixed")
    for name in ("in-order", "mixed"):
        assert (tmp_path / name / "model.safetensors").is_file()
    ordered, mixed = (load_file(tmp_path / name / "model.safetensors") for name in ("in-order", "mixed"))
    assert ordered.keys() == mixed.keys()
    assert all(torch.equal(ordered[name], mixed[name]) for name in ordered)


def test_a_gguf_file_not_used_before_is_refused(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="GGUF"):
        export(tmp_path / "m.gguf", tmp_path / "out")


def with_unused(family: str, folder: Path) -> dict[str, torch.Tensor]:
    """A checkpoint whose layers 4 and 5, which read keys and values of layers 1 and 3, have matrices for their own."""
    build_tiny(family).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for reader, producer in ((4, 1), (5, 3)):
        for name in ("k_proj", "v_proj", "k_norm"):
            theirs = tensors[f"model.layers.{producer}.self_attn.{name}.weight"]
            tensors[f"model.layers.{reader}.self_attn.{name}.weight"] = theirs + reader
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


@pytest.mark.parametrize("family", ["gemma3n_text", "gemma4_text"])
def test_what_a_layer_has_and_does_not_use_stays_with_it_and_tables_of_all_layers_lose_the_parts_of_the_removed(
    family: str, tmp_path: Path
) -> None:
    before = with_unused(family, tmp_path / "model")
    report = export_streamed(ModelRef(id=str(tmp_path / "model")), lambda _: PLAN, tmp_path / "out")
    assert (report.proof, report.max_logit_diff, report.generation_equal) == ("fresh process", 0.0, True)
    after = load_file(tmp_path / "out" / "model.safetensors")
    kept, width = (0, 3, 5), 6
    for name, tensor in after.items():
        number = name.split(".")[2] if name.startswith("model.layers.") else ""
        source = before[name.replace(f".{number}.", f".{kept[int(number)]}.", 1) if number else name]
        columns = [layer * width + i for layer in kept for i in range(width)]
        if "embed_tokens_per_layer" in name:
            source = source[:, columns]
        if "per_layer_model_projection" in name:
            source = source[columns]
        assert torch.equal(tensor, source), name
    unused = {f"model.layers.2.self_attn.{name}.weight" for name in ("k_proj", "v_proj", "k_norm")}
    assert unused <= after.keys()
    removed = [name for name in before if name.startswith(("model.layers.1.", "model.layers.2.", "model.layers.4."))]
    assert len(after) == len(before) - len(removed)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_kv_shared_layers"] == 1


def test_a_quantised_model_keeps_its_plain_tables_cut_and_is_refused_where_they_are_quantised(tmp_path: Path) -> None:
    tensors = with_unused("gemma4_text", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    report = export_streamed(ModelRef(id=str(tmp_path / "model")), lambda _: PLAN, tmp_path / "out")
    assert report.proof == "bytes"
    assert load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens_per_layer.weight"].shape[1] == 18
    tensors["model.per_layer_model_projection.weight_scale_inv"] = torch.ones(36, 1)
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PlanError, match="weight_scale_inv belongs to a quantised table of all layers"):
        export_streamed(ModelRef(id=str(tmp_path / "model")), lambda _: PLAN, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.fixture(scope="module")
def with_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole Gemma 4: layers that share keys and values, tables of all layers, and a part for pictures."""
    sight = Gemma4VisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    text, ids = tiny_config("gemma4_text").to_dict(), dict(image_token_id=5, video_token_id=6, audio_token_id=7)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pictures")
    Gemma4ForConditionalGeneration(
        Gemma4Config(text_config=text, vision_config=sight.to_dict(), **ids)
    ).save_pretrained(folder)
    tiny_tokenizer(bos=True).save_pretrained(folder)
    return folder


def test_a_model_for_pictures_is_cut_alike_from_files_and_from_memory_and_keeps_that_part(with_pictures, tmp_path):
    plan = PrunePlan(num_layers=6, removed=(0,))
    report = export_streamed(ModelRef(id=str(with_pictures)), lambda _: plan, tmp_path / "streamed")
    assert (report.proof, report.max_logit_diff, report.generation_equal) == ("fresh process", 0.0, True)
    write_checkpoint(prune(load(ModelRef(id=str(with_pictures))), plan), tmp_path / "memory")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("streamed", "memory"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert sum("vision" in name for name in one) > 10
    config = json.loads((tmp_path / "streamed" / "config.json").read_text())
    assert config["model_type"] == "gemma4"
    assert (config["text_config"]["num_hidden_layers"], config["text_config"]["num_kv_shared_layers"]) == (5, 2)
    assert one["model.language_model.embed_tokens_per_layer.weight"].shape == (260, 5 * 6)


def test_text_with_a_token_that_stands_for_a_picture_is_refused_where_it_is_streamed(with_pictures):
    with open_streamed(ModelRef(id=str(with_pictures))) as model:
        model.load_non_layer_modules()
        model.calls(torch.tensor([[3, 4, 8]]))
        with pytest.raises(ModelError, match=r"token 5\), which stands for a picture .* remove it from the text"):
            model.calls(torch.tensor([[3, 5, 8]]))
