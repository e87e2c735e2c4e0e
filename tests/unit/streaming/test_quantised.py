"""A checkpoint that bitsandbytes really quantised, cut file to file: stock transformers runs what comes out."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from shortviz.records.model import ModelRef
from shortviz.records.plan import PrunePlan
from shortviz.streaming.export import export_streamed
from tests.support.families import build_tiny, tiny_config, tiny_tokenizer, tiny_tokens


def test_a_cut_4_bit_checkpoint_computes_what_bypassing_its_layers_computes(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed; pip install bitsandbytes runs this")
    widths = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "num_attention_heads": 2}
    config = tiny_config("llama", **widths, num_key_value_heads=1)  # multiples of 32, for its CPU kernels
    build_tiny("llama", torch.bfloat16, config=config).save_pretrained(tmp_path / "plain")
    quantisation = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=quantisation, device_map="cpu", dtype=torch.bfloat16
    )
    model.save_pretrained(tmp_path / "quantised")
    tiny_tokenizer().save_pretrained(tmp_path / "quantised")
    plan = PrunePlan(num_layers=6, removed=(1, 3, 4))
    report = export_streamed(ModelRef(id=str(tmp_path / "quantised")), lambda _: plan, tmp_path / "cut")
    assert report.proof == "bytes"
    cut = AutoModelForCausalLM.from_pretrained(tmp_path / "cut", device_map="cpu")
    assert type(cut.model.layers[2].mlp.up_proj).__name__ == "Linear4bit"
    for layer in plan.removed:
        model.model.layers[layer].register_forward_hook(lambda _module, args, _output: args[0])
    with torch.no_grad():
        assert torch.equal(cut(tiny_tokens()).logits, model(tiny_tokens()).logits)
