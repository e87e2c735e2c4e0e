"""Streaming a model from its files: what is refused before and during it, and where the states go."""

import json
import shutil
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, NemotronHConfig, xLSTMConfig

from shortviz.errors import ModelError, NumericsError, ResourceError, RunError, ShortvizError, Stopped
from shortviz.measure.distances import measure_distances
from shortviz.model.layers import LayerStack
from shortviz.model.load import load
from shortviz.progress import Watch
from shortviz.records.model import ModelRef
from shortviz.settings import settings
from shortviz.streaming import states as state_plan
from shortviz.streaming.calls import check_independent
from shortviz.streaming.distances import measure_streamed
from shortviz.streaming.model import estimate_streaming, open_streamed
from shortviz.streaming.states import batch_shapes, planned_states
from tests.support.checkpoint_files import mix_up
from tests.support.families import build_tiny, tiny_config, tiny_tokenizer
from tests.support.streams import rows

ANGLES = ("angular_last", "angular_mean")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in many small shards, so that one layer is in several files."""
    folder = tmp_path_factory.mktemp("llama")
    build_tiny("llama").save_pretrained(folder, max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 6
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def streamed(folder: Path, **options):
    with open_streamed(ModelRef(id=str(folder))) as model:
        return measure_streamed(model, rows(), batch_size=2, criteria=ANGLES, **options)


def assert_equal(found, expected) -> None:
    for name in ANGLES:
        np.testing.assert_array_equal(found.criteria[name].mean, expected.criteria[name].mean)


def test_a_checkpoint_whose_layers_are_not_in_order_across_its_files_gives_the_same_numbers(folder):
    expected = streamed(folder)
    mix_up(folder)
    assert_equal(streamed(folder), expected)


def test_a_missing_file_is_named(folder):
    shards(folder)[2].unlink()
    with pytest.raises(ModelError, match=r"lacks 1 of \d+ weight files: model-00003"):
        streamed(folder)


def test_a_file_cut_short_is_named_before_anything_runs(folder):
    whole = shards(folder)[3].read_bytes()
    shards(folder)[3].write_bytes(whole[:-10])
    with pytest.raises(ModelError, match="model-00004.*cut short"):
        streamed(folder)


def test_a_tensor_in_two_files_is_refused(folder):
    first, second = shards(folder)[:2]
    save_file(load_file(first) | load_file(second), second, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="is in two weight files"):
        streamed(folder)


def test_an_index_that_promises_what_its_file_does_not_hold_is_refused(folder):
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    name = next(n for n in index["weight_map"] if ".3." in n)
    index["weight_map"][name] = shards(folder)[0].name
    file.write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"says that .* holds model\.layers\.3\..*, and it does not"):
        streamed(folder)


def test_a_weight_that_is_in_no_file_is_named(folder):
    shard = next(s for s in shards(folder) if "model.layers.4.mlp.up_proj.weight" in load_file(s))
    kept = {n: t for n, t in load_file(shard).items() if n != "model.layers.4.mlp.up_proj.weight"}
    save_file(kept, shard, metadata={"format": "pt"})
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    del index["weight_map"]["model.layers.4.mlp.up_proj.weight"]
    file.write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"lack model\.layers\.4\.mlp\.up_proj\.weight"):
        streamed(folder)


def test_a_weight_that_is_nan_is_named_with_its_layer(folder):
    shard = next(s for s in shards(folder) if "model.layers.4.mlp.up_proj.weight" in load_file(s))
    weights = load_file(shard)
    weights["model.layers.4.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, shard, metadata={"format": "pt"})
    with pytest.raises(NumericsError, match="Layer 4 has NaN or Inf among its weights"):
        streamed(folder)


def test_tied_embeddings_may_be_in_the_file_under_the_name_of_the_head_only(tmp_path):
    model = build_tiny("llama", config=tiny_config("llama", tie_word_embeddings=True))
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    expected = streamed(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in weights
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_equal(streamed(tmp_path), expected)


def test_states_in_a_file_and_sampled_tokens_give_the_last_token_exactly(saved, tmp_path):
    expected = measure_distances(load(ModelRef(id=str(saved))), rows(), batch_size=2, criteria=ANGLES)
    in_file = streamed(saved, checkpoint=tmp_path / "s.npz")
    padded = 2 * 34 + 2 * 11 + 1 * 2  # rows of 34 and 14, of 11 and 9, and of 2
    assert (tmp_path / "s.states").stat().st_size == 7 * padded * 32 * 4
    assert_equal(in_file, expected)
    sampled = streamed(saved, tokens_per_row=4, checkpoint=tmp_path / "t.npz")
    assert sampled.tokens_per_row == 4
    np.testing.assert_array_equal(sampled.criteria["angular_last"].mean, expected.criteria["angular_last"].mean)
    near = np.nanmax(np.abs(sampled.criteria["angular_mean"].mean - expected.criteria["angular_mean"].mean))
    assert 0 < near < 0.05


def test_states_too_large_for_the_memory_go_to_a_file_and_for_the_disk_are_sampled_then_refused(saved, monkeypatch):
    usage = shutil.disk_usage("/")
    expected = streamed(saved)
    assert_equal(streamed(saved, memory_bytes=0), expected)
    sampled_bytes = 40_000
    monkeypatch.setattr(state_plan.shutil, "disk_usage", lambda _: usage._replace(free=sampled_bytes))
    monkeypatch.setattr(state_plan, "TOKENS_PER_ROW", 2)
    assert streamed(saved, memory_bytes=0).tokens_per_row == 2
    monkeypatch.setattr(state_plan.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ResourceError, match=r"The states between layers need .* KB, and the disk of .* has 1\.0 KB"):
        streamed(saved, memory_bytes=0)


def test_a_disk_too_small_for_the_states_is_told_before_a_layer_is_run_and_holds_nothing_afterwards(saved, small_disk):
    disk = small_disk(64 * 1024)
    began = []
    with pytest.raises(ResourceError, match=r"The states between layers need .* KB, and the disk of .*disk has"):
        streamed(saved, checkpoint=disk / "s.npz", watch=Watch(began.append))
    assert not began
    assert not list(disk.iterdir())


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a folder in memory; Linux has one")
def test_temporary_states_are_never_in_a_folder_that_is_memory(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("SHORTVIZ_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", "/dev/shm")
    settings.cache_clear()
    try:
        assert state_plan.disk_folder() == tmp_path / "cache"
        assert_equal(streamed(saved, memory_bytes=0), streamed(saved))
    finally:
        settings.cache_clear()


def test_too_little_memory_for_two_layers_is_told_before_the_start(saved, monkeypatch):
    monkeypatch.setattr(state_plan, "free_memory", lambda _: 10_000)
    with pytest.raises(ResourceError, match=r"Streaming .* needs .* of memory for the weights of two layers"):
        streamed(saved)


def test_processes_of_one_machine_count_on_their_share_of_its_memory_and_disk(saved, monkeypatch, tmp_path):
    def planned(processes, file=None):
        with open_streamed(ModelRef(id=str(saved))) as model:
            shapes = batch_shapes([[np.arange(20)] * 4])
            free = model.working_bytes * 2 + 3 * 7 * 80 * 32 * 4
            monkeypatch.setattr(state_plan, "free_memory", lambda _: free)
            with planned_states(
                model, shapes, None, tokens_per_row=None, memory_bytes=None, file=file, processes=processes
            ) as plan:
                return plan

    assert planned(1).file is None
    assert planned(2).file is not None, "half of it has no room for them beside two layers"
    with pytest.raises(ResourceError, match=r"is free for each of 9 processes; choose the dtype bfloat16"):
        planned(9)
    usage, whole = shutil.disk_usage(tmp_path), 7 * 80 * 32 * 4
    monkeypatch.setattr(state_plan.shutil, "disk_usage", lambda _: usage._replace(free=3 * whole))
    monkeypatch.setattr(state_plan, "TOKENS_PER_ROW", 4)
    assert planned(1, tmp_path / "s").per_row is None
    assert planned(2, tmp_path / "s").per_row == 4, "two files would take more than half of the disk"


def test_memory_that_runs_out_on_the_way_is_told_with_what_was_expected(saved, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    with open_streamed(ModelRef(id=str(saved))) as model:
        monkeypatch.setattr(model, "load_layer", fail)
        with pytest.raises(ResourceError, match="Memory ran out while .* for weights and .* for states were expected"):
            measure_streamed(model, rows(), criteria=ANGLES)


def test_a_stopped_pass_goes_on_with_the_layer_it_was_in_and_other_text_is_refused(saved, tmp_path):
    expected, stop, path = streamed(saved), threading.Event(), tmp_path / "s.npz"

    def watch(progress):
        if progress.done > 3.2:
            stop.set()

    with pytest.raises(Stopped, match="Stopped in layer 3 of 6; the same command goes on there"):
        streamed(saved, checkpoint=path, watch=Watch(watch, stop))
    with pytest.raises(RunError, match="belongs to another measurement"):
        streamed(saved, checkpoint=path, tokens_per_row=3)
    seen = []
    resumed = streamed(saved, checkpoint=path, watch=Watch(lambda p: seen.append((p.stage, p.done))))
    assert seen[0] == ("stream", 3.33), "layer 3 of the three batches again, from its beginning"
    assert_equal(resumed, expected)


def test_states_that_were_cut_short_since_the_stop_are_made_again(saved, tmp_path):
    expected, stop, path = streamed(saved), threading.Event(), tmp_path / "s.npz"
    with pytest.raises(Stopped):
        streamed(saved, checkpoint=path, watch=Watch(lambda p: stop.set() if p.done > 3.2 else None, stop))
    states = tmp_path / "s.states"
    states.write_bytes(states.read_bytes()[:-4096])
    seen = []
    resumed = streamed(saved, checkpoint=path, watch=Watch(lambda p: seen.append(p.done)))
    assert seen[0] < 1, "from the first layer"
    assert_equal(resumed, expected)


class Gossip(torch.nn.Module):
    """A decoder that tells each layer something about what the one before gave."""

    def __init__(self, decoder: torch.nn.Module, told: str) -> None:
        super().__init__()
        self.embed, self.layers, self.told = decoder.embed_tokens, decoder.layers, told

    def forward(self, input_ids, use_cache):
        hidden, extra = self.embed(input_ids), None
        for layer in self.layers:
            hidden = layer(hidden, told=extra)
            extra = hidden.mean() if self.told == "mean" else {"last": hidden} if self.told == "dict" else None
            hidden = hidden * 0.5 if self.told == "scaled" else hidden


@pytest.mark.parametrize(
    ("told", "match"),
    [
        ("mean", "Layer 1 of Gossip is given told, which the layers before it may change"),
        ("dict", "Layer 1 of Gossip is given told, which the layers before it may change"),
        ("scaled", "Gossip changes the residual stream between layers 0 and 1"),
    ],
)
def test_a_family_whose_layers_hear_more_than_the_residual_stream_is_refused(saved, told, match):
    with open_streamed(ModelRef(id=str(saved))) as model:
        decoder = Gossip(model.stack.decoder, told)
        stack = LayerStack(decoder=decoder, layers=decoder.layers, path="layers")
        with pytest.raises(ModelError, match=match):
            check_independent(stack, torch.arange(24).reshape(2, 12), in_tuple=False)


def test_the_options_are_checked(saved):
    with pytest.raises(ShortvizError, match="0 tokens of each row"):
        streamed(saved, tokens_per_row=0)


NEMOTRON_H = {
    "layers_block_type": ["mamba", "attention", "mlp", "mamba"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "ssm_state_size": 8,
    "n_groups": 2,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24,
    "n_routed_experts": 2,
    "chunk_size": 8,
}
"""A family that states `residual_in_fp32` and does not heed it."""


@pytest.mark.parametrize(
    ("config", "wide"),
    [
        (tiny_config("mamba"), True),
        (LlamaConfig(**tiny_config("llama").to_dict() | {"residual_in_fp32": True}), False),
        (NemotronHConfig(vocab_size=260, hidden_size=32, residual_in_fp32=True, **NEMOTRON_H), False),
    ],
    ids=["mamba", "llama-stray", "nemotron_h"],
)
def test_the_residual_stream_is_kept_in_the_dtype_that_the_layers_give_whatever_the_config_says(tmp_path, config, wide):
    build_tiny("", torch.bfloat16, config=config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    ref, tokens = ModelRef(id=str(tmp_path), dtype="bfloat16"), rows((11, 11, 11, 7))
    expected = measure_distances(load(ref), tokens, batch_size=2)
    with open_streamed(ref) as model:
        assert model.state_dtypes[1:] == (torch.float32 if wide else torch.bfloat16,) * model.info.num_layers
        found = measure_streamed(model, tokens, batch_size=2)
    for name, grid in expected.criteria.items():
        np.testing.assert_array_equal(found.criteria[name].mean, grid.mean, err_msg=name)


def test_a_layer_that_gives_another_dtype_than_on_meta_is_refused_and_leaves_no_states_behind(tmp_path):
    build_tiny("mamba", torch.bfloat16).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    ref, tokens, path = ModelRef(id=str(tmp_path), dtype="bfloat16"), rows((11,) * 4), tmp_path / "out" / "stream.npz"
    with open_streamed(ref) as model:
        model.state_dtypes = (torch.bfloat16,) * len(model.state_dtypes)
        wrong = r"Layer 0 of MambaForCausalLM gives .* in float32 .* stream it in float32"
        with pytest.raises(ModelError, match=wrong):
            measure_streamed(model, tokens, batch_size=2, checkpoint=path)
    assert not list(path.parent.iterdir())
    with open_streamed(replace(ref, dtype="float32")) as model:
        measure_streamed(model, tokens, batch_size=2, checkpoint=path)


def test_a_decoder_that_does_not_fill_a_cache_layer_by_layer_is_refused_in_words_and_can_be_estimated(tmp_path):
    config = xLSTMConfig(
        vocab_size=260, hidden_size=32, embedding_dim=32, num_heads=4, num_blocks=4, num_hidden_layers=4
    )
    build_tiny("", config=config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    ref = ModelRef(id=str(tmp_path))
    with pytest.raises(ModelError, match="xLSTMModel cannot be streamed: its layers do not fill"), open_streamed(ref):
        pass
    assert estimate_streaming(ref, rows=2, row_tokens=8).states_bytes == 5 * 2 * 8 * 32 * 4


def test_the_estimate_prints_memory_and_disk_and_one_json_object(shortviz, checkpoint):
    code, out, _ = shortviz("estimate", checkpoint, "--rows", "4", "--max-length", "16")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["memory", "disk"]
    assert "(4 rows of 16 tokens)" in out
    code, out, _ = shortviz("estimate", checkpoint, "--json")
    found = json.loads(out)
    assert found["work"] == {"rows": 64, "row_tokens": 256}
    assert found["states_bytes"] == 7 * 64 * 256 * 32 * 4
    assert found["streamed_memory_bytes"] < found["size_memory_bytes"] == found["disk_bytes"]


def test_a_gguf_file_that_was_never_loaded_is_told_so(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="GGUF"):
        estimate_streaming(ModelRef(id=str(tmp_path / "m.gguf")), rows=1, row_tokens=2)


def test_rows_beyond_a_short_context_are_estimated_up_to_it(tmp_path):
    model = build_tiny("gpt2")
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    context = model.config.n_positions
    assert estimate_streaming(ModelRef(id=str(tmp_path)), rows=2, row_tokens=2 * context).row_tokens == context
