"""The real demo model: it comes from a GGUF file and leaves as ordinary safetensors that stock transformers loads."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from shortviz.export.export import export_checkpoint
from shortviz.model.handle import ModelHandle
from shortviz.model.prune import prune
from shortviz.records.plan import Block, PrunePlan

pytestmark = pytest.mark.demo


def test_the_demo_model_exports_as_ordinary_safetensors_proved_equal(demo_handle: ModelHandle, tmp_path: Path) -> None:
    kept = {name: weight.data_ptr() for name, weight in demo_handle.model.named_parameters()}
    pruned = prune(demo_handle, PrunePlan.of_blocks(30, Block(start=12, n=3)))
    report = export_checkpoint(pruned, tmp_path / "short", base_info=demo_handle.info)
    assert report.max_logit_diff == 0.0
    assert report.generation_equal
    assert (len(report.kept), report.parameters) == (27, pruned.info.parameters)
    assert {"README.md", "config.json", "mergekit.yml", "model.safetensors", "shortviz.json"} <= report.files.keys()
    assert {"chat_template.jinja", "generation_config.json", "tokenizer.json"} <= report.files.keys()
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        text = (tmp_path / "short" / name).read_text(encoding="utf-8")
        assert "gguf" not in text.lower()
        assert "quantization" not in text
    assert json.loads((tmp_path / "short" / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"] == 27
    with safe_open(tmp_path / "short" / "model.safetensors", "pt") as weights:
        layers = {int(name.split(".")[2]) for name in weights.keys() if name.startswith("model.layers.")}  # noqa: SIM118 (safe_open is not a dict)
    assert layers == set(range(27))
    ids = demo_handle.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        ours, theirs = (
            model(input_ids=ids).logits
            for model in (pruned.model, AutoModelForCausalLM.from_pretrained(tmp_path / "short"))
        )
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-3)
    assert {name: weight.data_ptr() for name, weight in demo_handle.model.named_parameters()} == kept
