"""The export that copies tensors from file to file: shards, dtypes, quantised weights, and what is refused."""

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shortviz.errors import ExportError, ModelError, PlanError, ResourceError, Stopped
from shortviz.export.export import write_checkpoint
from shortviz.export.folder import fingerprints
from shortviz.model.headers import Entry, read_shards
from shortviz.model.load import load
from shortviz.model.prune import prune
from shortviz.progress import Watch
from shortviz.records.model import ModelRef
from shortviz.records.plan import PrunePlan
from shortviz.streaming.export import export_streamed, kept_tensors, prune_quantization, write_shard
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


def test_files_are_laid_out_as_the_safetensors_library_lays_them_out(tmp_path):
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.float64]
    dtypes += [torch.float8_e4m3fn, torch.float8_e5m2, torch.int32, torch.int16, torch.int8]
    tensors = {f"{'zyxabcdefghij'[i]}.é": torch.ones(3, i + 1).to(dtype) for i, dtype in enumerate(dtypes)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    written = []
    write_shard(tmp_path / "copy", read_shards(tmp_path, "it"), written.append)
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    assert sum(written) == sum(t.numel() * t.element_size() for t in tensors.values())


def test_what_the_config_does_not_describe_is_refused_and_prediction_heads_are_left_out_and_told(folder, tmp_path):
    add(folder, {"model.layers.6.eh_proj.weight": torch.ones(2)})
    with pytest.raises(ModelError, match=r"hold model\.layers\.6\.eh_proj"):
        export(folder, tmp_path / "out")
    # Families with such heads tell transformers to pass them over, so that the checkpoint opens.
    kept = kept_tensors(build_tiny("llama"), "it", read_shards(folder, "it"), PLAN)
    assert "beyond the config's count (6; prediction heads) are left out" in kept.notes[0]
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


def test_a_file_that_is_cut_short_while_it_is_copied_ends_the_copy_with_its_name(tmp_path):
    (tmp_path / "source").write_bytes(b"\0" * 10)
    entry = Entry(file=tmp_path / "source", dtype="U8", shape=(20,), start=0, num_bytes=20)
    seen: list[int] = []

    def written(count: int) -> None:
        seen.append(count)
        assert len(seen) < 9, "it would go on for ever"

    with pytest.raises(ModelError, match="source ends before its last tensor"):
        write_shard(tmp_path / "out", {"w": entry}, written)


def test_a_stop_and_a_full_disk_leave_nothing_behind(saved, tmp_path, monkeypatch):
    stop = threading.Event()
    with pytest.raises(Stopped):
        export(saved, tmp_path / "a" / "out", watch=Watch(lambda _: stop.set(), stop))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shortviz.export.folder.shutil.disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ResourceError, match=r"needs .* MB and the disk of .* has 1\.0 KB free"):
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
