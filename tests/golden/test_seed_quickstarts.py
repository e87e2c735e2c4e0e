"""The quickstarts of short-transformers 1.0.0, line for line, on the demo model; only imports, model and data differ.

The model is `demo` where the seed's README has Llama 3, and the data set is a local file read by `load_dataset` with
streaming, where it has C4.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from shortviz import ModelRef, ShortTransformer, load
from shortviz.compat import draw_diagram, get_angular_distance_ith_token, get_best_pruning_start, get_scored_blocks
from shortviz.text.sources import read_rows
from shortviz.text.tokens import DEFAULT_CALIBRATION

pytestmark = pytest.mark.demo
LAYERS = 30


@pytest.fixture
def streamed(tmp_path: Path):
    """Six rows as a streamed data set, what `load_dataset("allenai/c4", ..., streaming=True)` gives."""
    file = tmp_path / "rows.jsonl"
    rows = read_rows(DEFAULT_CALIBRATION).rows[:6]
    file.write_text("".join(json.dumps({"text": row[:300], "url": "local"}) + "\n" for row in rows))
    cache = tmp_path / "cache"
    return load_dataset("json", data_files=str(file), split="train", streaming=True, cache_dir=str(cache))


def test_the_first_quickstart_saves_a_stock_model(streamed, tmp_path):
    model_name, output_path, dataset = "demo", tmp_path / "short", streamed

    # load from path/hf_hub
    model = ShortTransformer.from_pretrained(model_name)

    # remove 5 layers, use the dataset to find the least important layers to remove
    short_model = model.remove_layers(block_size=5, dataset=dataset, limit=1000)

    # save as hf model
    short_model.save_pretrained(output_path)

    loaded = AutoModelForCausalLM.from_pretrained(output_path)
    tokenizer = AutoTokenizer.from_pretrained(output_path)
    tokens = tokenizer("The least important layers are", return_tensors="pt")
    with torch.inference_mode():
        assert torch.equal(loaded(**tokens).logits, short_model(**tokens).logits)
    assert loaded.config.num_hidden_layers == LAYERS - 5
    assert json.loads((output_path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    kept = loaded.generate(**tokens, max_new_tokens=4, do_sample=False)
    assert kept.shape[1] == tokens["input_ids"].shape[1] + 4


def test_the_second_quickstart_prunes_in_steps(streamed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    handle = load(ModelRef(id="demo"))
    dataset, tokenizer = streamed, handle.tokenizer

    model = ShortTransformer.from_model(handle.model)

    results = model.analyse_layers(
        dataset=dataset,
        tokenizer=tokenizer,
        use_chat_template=False,
        key="text",
        limit=3,
        max_length=1000,
    )
    draw_diagram(results, "results.png", title="demo", normalized=True)

    start_layer = get_best_pruning_start(results, block_size=5)
    block_score = get_scored_blocks(results, return_md=True, threshold=0.3)

    model.prune(start_layer=start_layer, block_size=5)
    model.save_pretrained("model_output_dir")

    assert results.shape == (LAYERS, LAYERS)
    assert start_layer == int(np.argmin(results[4, : LAYERS - 4]))
    assert Path("results.png").stat().st_size > 1000
    assert re.search(rf"^\| 5 \| {start_layer}-{start_layer + 4} \| 0\.\d+\|$", block_score, flags=re.M)
    assert AutoModelForCausalLM.from_pretrained("model_output_dir").config.num_hidden_layers == LAYERS - 5
    assert handle.model.config.num_hidden_layers == LAYERS


def test_a_metric_of_the_seed_can_be_set_before_the_analysis(streamed):
    model = ShortTransformer.from_pretrained("demo", device_map="auto")

    # choose metric
    # calculate distances based on the angular distance of the i=0 token
    model.set_metric(get_angular_distance_ith_token(i=0))

    results = model.analyse_layers(dataset=streamed, key="text", limit=1, max_length=1000)

    # Position 0 sees only itself: the attention sink is written in layer 11, and that turns it.
    assert results[0, 11] == results[0, 1:].max() > 0.3
    assert results[0, 12] < 0.001
