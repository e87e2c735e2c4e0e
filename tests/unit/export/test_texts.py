"""What stands beside the weights: the source's files as they are, and a config.json that old and new readers read."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from shortviz.export.export import write_checkpoint
from shortviz.export.texts import savable
from shortviz.model.load import load
from shortviz.model.prune import prune
from shortviz.records.model import ModelRef
from shortviz.records.plan import PrunePlan
from shortviz.streaming.export import export_streamed
from tests.support.families import build_tiny, tiny_config, tiny_tokenizer

PLAN = PrunePlan(num_layers=6, removed=(1, 2, 4))
ROPE: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
}
THETA = 500_000.0


def saved(folder: Path, family: str = "llama", indent: int = 2, **fields: Any) -> Path:
    """Write a tiny checkpoint whose config.json has some other fields; those that are None are taken out of it."""
    build_tiny(family).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | fields
    text = json.dumps({name: value for name, value in config.items() if value is not None}, indent=indent)
    (folder / "config.json").write_text(text)
    return folder


def cut(source: Path, out: Path, plan: PrunePlan = PLAN) -> dict[str, Any]:
    """Write a cut of a checkpoint, and return its config.json."""
    write_checkpoint(prune(load(ModelRef(id=str(source), device="cpu")), plan), out)
    fields: dict[str, Any] = json.loads((out / "config.json").read_text())
    return fields


def read_by_transformers_4(fields: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Return base and scaling of RoPE as LlamaConfig and `ROPE_INIT_FUNCTIONS` of transformers 4.57 read them."""
    scaling = copy.deepcopy(fields.get("rope_scaling")) or {"rope_type": "default"}
    if "type" in scaling and "rope_type" not in scaling:
        scaling["rope_type"] = scaling.pop("type")
    return fields.get("rope_theta", 10_000.0), scaling


@pytest.mark.parametrize("spelling", ["old", "new"])
@pytest.mark.parametrize("kind", ROPE)
def test_rope_is_read_alike_by_transformers_4_and_5(kind: str, spelling: str, tmp_path: Path) -> None:
    scaling = ROPE[kind]
    if spelling == "new":
        rope: dict[str, Any] = {"rope_parameters": {**scaling, "rope_theta": THETA}}
    else:
        rope = {"rope_parameters": None, "rope_theta": THETA, "rope_scaling": scaling if kind != "default" else None}
    source = saved(tmp_path / "model", **rope)
    before = json.loads((source / "config.json").read_text())
    after = cut(source, tmp_path / "out")

    assert read_by_transformers_4(after) == (THETA, scaling)
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (source, tmp_path / "out")]
    assert models[1].config.rope_parameters == models[0].config.rope_parameters == {**scaling, "rope_theta": THETA}
    assert torch.equal(*(model.model.rotary_emb.inv_freq for model in models))
    assert list(after)[: len(before)] == list(before), "order"
    assert after | {"num_hidden_layers": 6} | before == after | {"num_hidden_layers": 6}, "nothing else changed"
    added = {"old": set(), "new": {"rope_theta"} | ({"rope_scaling"} if kind != "default" else set())}
    assert after.keys() - before.keys() == added[spelling]


def test_rope_parameters_by_layer_type_are_left_alone(tmp_path: Path) -> None:
    source = saved(tmp_path / "model", "gemma3_text")
    before = json.loads((source / "config.json").read_text())
    assert isinstance(before["rope_parameters"]["full_attention"], dict)
    after = cut(source, tmp_path / "out")
    assert after == before | {"num_hidden_layers": 3, "layer_types": [before["layer_types"][i] for i in (0, 3, 5)]}


def test_a_part_that_is_rotated_stands_at_the_top_level_too(tmp_path: Path) -> None:
    source = saved(tmp_path / "model", "stablelm")
    rope = json.loads((source / "config.json").read_text())["rope_parameters"]
    after = cut(source, tmp_path / "out")
    assert after["partial_rotary_factor"] == rope["partial_rotary_factor"] < 1
    assert after["rope_theta"] == rope["rope_theta"]


def test_a_config_inside_a_config_is_changed_where_it_stands(tmp_path: Path) -> None:
    text = tiny_config("persimmon").to_dict() | {"rope_parameters": {"rope_type": "default", "rope_theta": THETA}}
    config = AutoConfig.for_model("fuyu", text_config=text, patch_size=2, num_channels=1, hidden_size=32)
    build_tiny("", config=config).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text('{"size":  1}')
    before = json.loads((tmp_path / "model" / "config.json").read_text())
    after = cut(tmp_path / "model", tmp_path / "out")
    changed = {"num_hidden_layers": 3, "rope_theta": THETA, "partial_rotary_factor": 0.5}
    assert after["text_config"] == before["text_config"] | changed
    assert after | {"text_config": 0} == before | {"text_config": 0}
    assert (tmp_path / "out" / "preprocessor_config.json").read_text() == '{"size":  1}'


def test_the_config_keeps_the_form_spelling_and_order_of_the_source(tmp_path: Path) -> None:
    source = saved(tmp_path / "model", "gpt2", indent=4, dtype=None, torch_dtype="float32", author="Zoë", n_layer=None)
    config = json.loads((source / "config.json").read_text())
    text = json.dumps({"num_hidden_layers": 6, **config}, indent=4, ensure_ascii=False) + "\n"  # an alias of n_layer
    (source / "config.json").write_text(text)
    cut(source, tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_text() == text.replace(
        '"num_hidden_layers": 6', '"num_hidden_layers": 3'
    )


def test_a_field_that_the_class_would_derive_otherwise_is_written_out_and_only_then(tmp_path: Path) -> None:
    source = saved(tmp_path / "model", "qwen2", layer_types=None, max_window_layers=3)
    after = cut(source, tmp_path / "tail", PrunePlan(num_layers=6, removed=(4, 5)))
    assert "layer_types" not in after  # the first three are full, as before
    after = cut(source, tmp_path / "head", PrunePlan(num_layers=6, removed=(0, 1)))
    assert after["layer_types"] == ["full_attention", *["sliding_attention"] * 3]
    assert after["max_window_layers"] == 3


def test_the_config_of_an_uncut_model_is_the_source_s_byte_for_byte(tmp_path: Path) -> None:
    source = saved(tmp_path / "model", rope_theta=10_000.0, epsilon=1e-05, text=None)
    odd = (source / "config.json").read_text().replace("1e-05", "1.0E-5") + "\n\n"
    (source / "config.json").write_text(odd)
    cut(source, tmp_path / "out", PrunePlan(num_layers=6, removed=()))
    assert (tmp_path / "out" / "config.json").read_text() == odd


MACHINE = {
    "_attn_implementation": "flash_attention_2",
    "attn_implementation": "flash_attention_2",
    "_name_or_path": "/home/someone/model",
    "_commit_hash": "c0ffee",
    "device_map": "auto",
    "transformers_weights": "other.safetensors",
}


def test_what_belongs_to_a_machine_is_neither_read_nor_written(shortviz, tmp_path: Path) -> None:
    source = saved(tmp_path / "model", **MACHINE)
    for way in ([], ["--stream"]):
        out = tmp_path / f"out{len(way)}"
        code, _, err = shortviz("prune", str(source), "--start", "1", "--n", "2", "--out", str(out), *way)
        assert code == 0, err
        fields = json.loads((out / "config.json").read_text())
        assert not MACHINE.keys() & fields.keys()
        assert fields["num_hidden_layers"] == 4
        assert "`config.json` leaves out _attn_implementation, " in (out / "README.md").read_text()
    model = load(ModelRef(id=str(source), device="cpu")).model
    assert model.config._attn_implementation == "sdpa"


def odd_files(folder: Path) -> dict[str, bytes]:
    """Put files beside a checkpoint as transformers 4 wrote them, and others; return those that an export keeps."""
    path = folder / "tokenizer_config.json"
    fields = json.loads(path.read_text()) | {"additional_special_tokens": ["<s>"]}
    fields |= {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{{ messages[0]['content'] }}"}
    fields.pop("extra_special_tokens", None)
    path.write_text(json.dumps(fields, indent=1))
    (folder / "special_tokens_map.json").write_text('{"bos_token":   "<s>"}')
    (folder / "generation_config.json").write_text('{"do_sample": false,  "temperature": 0.6, "eos_token_id": 258}')
    (folder / "merges.txt").write_bytes(b"#version: 0.2\r\n")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name in ("preprocessor_config.json", "notes.txt", "adapter_model.bin", "optimizer.json", "README.md"):
        (folder / name).write_text("{}")
    return {
        path.relative_to(folder).as_posix(): content
        for path, content in kept.items()
        if path.name != "config.json" and path.suffix != ".safetensors"
    }


def test_tokenizer_files_and_generation_config_are_the_source_s_byte_for_byte(tmp_path: Path) -> None:
    source = saved(tmp_path / "model")
    kept = odd_files(source)
    assert {"tokenizer.json", "generation_config.json", "additional_chat_templates/tools.jinja"} <= kept.keys()
    cut(source, tmp_path / "memory")
    export_streamed(ModelRef(id=str(source)), lambda _: PLAN, tmp_path / "streamed")
    ours = {"README.md", "mergekit.yml", "shortviz.json", "config.json", "model.safetensors"}
    for way in ("memory", "streamed"):
        out = tmp_path / way
        found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
        assert found - ours == kept.keys()
        assert {name: (out / name).read_bytes() for name in kept} == kept


def test_a_tokenizer_without_files_is_written_for_older_readers_too(tmp_path: Path) -> None:
    from shortviz.model.gguf.dequantise import save_tokenizer

    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    save_tokenizer(tokenizer, tmp_path)
    fields = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert fields["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert fields["additional_special_tokens"] == ["<tool>"]
    assert "extra_special_tokens" not in fields
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("a <tool>\n")["input_ids"] == tokenizer("a <tool>\n")["input_ids"]
    assert loaded.all_special_tokens == tokenizer.all_special_tokens


def test_a_generation_config_that_transformers_refuses_loses_only_what_has_no_effect(tmp_path: Path) -> None:
    config = GenerationConfig(do_sample=False, temperature=0.6, top_p=0.9, eos_token_id=2, max_new_tokens=50)
    with pytest.raises(ValueError, match="temperature"):
        config.save_pretrained(tmp_path)
    valid, notes = savable(config)
    valid.save_pretrained(tmp_path)
    assert notes == (
        "`generation_config.json` leaves out temperature=0.6, top_p=0.9: "
        "without effect there, and refused by transformers.",
    )
    assert (valid.max_new_tokens, valid.eos_token_id) == (50, 2)
    assert config.temperature == 0.6


def test_a_generation_config_beyond_repair_keeps_its_token_ids(tmp_path: Path) -> None:
    config = GenerationConfig(eos_token_id=[2, 5], suppress_tokens=[7])
    config.forced_eos_token_id = 7
    valid, notes = savable(config)
    valid.save_pretrained(tmp_path)
    assert valid.eos_token_id == [2, 5]
    assert notes[0].startswith(
        "`generation_config.json` holds only the token ids; the original is invalid (Every token"
    )


def test_a_valid_generation_config_is_kept_as_it_is() -> None:
    config = GenerationConfig(do_sample=True, temperature=0.6)
    assert savable(config) == (config, ())
