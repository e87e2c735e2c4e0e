"""The seed library's calls on tiny models: results, pruning in place, saving, and what each refuses."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from shortviz.compat import (
    ShortTransformer,
    draw_diagram,
    get_angular_distance_ith_token,
    get_best_pruning_start,
    get_scored_blocks,
)
from shortviz.errors import ModelError, NumericsError, PlanError, ShortvizError, TextError
from tests.support.families import NUM_LAYERS, build_tiny, tiny_tokenizer, tiny_tokens

ROWS = ["A first row of text.", "And a second one, a little longer.", "Third."]


@pytest.fixture
def model() -> ShortTransformer:
    return ShortTransformer.from_model(build_tiny("llama"), tokenizer=tiny_tokenizer())


def test_the_model_is_a_stock_model_that_generates(model):
    assert isinstance(model, PreTrainedModel)
    assert isinstance(model, ShortTransformer)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.generate(tiny_tokens(4), max_new_tokens=3, do_sample=False).shape == (1, 7)


def test_analyse_layers_returns_blocks_of_n_layers_in_row_n_minus_1(model):
    result = model.analyse_layers(ROWS)
    assert result.shape == (NUM_LAYERS, NUM_LAYERS)
    triangle = np.array([[start + n <= NUM_LAYERS for start in range(NUM_LAYERS)] for n in range(1, NUM_LAYERS + 1)])
    assert (result[triangle] > 0).all()
    assert (result[~triangle] == 0).all()
    # The whole stack is one block; by the seed's reading this cell did not exist.
    whole = model.analyse_layers(ROWS, distance=lambda before, after: float((after - before).norm() > 0))
    assert whole[NUM_LAYERS - 1, 0] == 1.0


def test_a_callable_is_the_same_as_the_criterion_of_that_formula(model):
    by_name = model.analyse_layers(ROWS, distance="angular_last")
    model.set_metric(get_angular_distance_ith_token(-1))
    np.testing.assert_allclose(model.analyse_layers(ROWS), by_name, atol=1e-6)


def test_rows_in_batches_give_the_result_of_single_rows(model):
    np.testing.assert_allclose(model.analyse_layers(ROWS, batch_size=3), model.analyse_layers(ROWS), atol=1e-6)


@pytest.mark.parametrize("key", [None, "text", "content"])
def test_every_kind_of_dataset_gives_the_same_result(model, key):
    column = key or "text"
    table = [{column: row, "other": 1} for row in ROWS]
    expected = model.analyse_layers(ROWS)
    kinds = [table, datasets.Dataset.from_list(table), datasets.Dataset.from_list(table).to_iterable_dataset()]
    for kind in kinds:
        np.testing.assert_array_equal(model.analyse_layers(kind, key=key), expected)
    np.testing.assert_array_equal(model.analyse_layers({"content": row} for row in ROWS), expected)


def test_a_streamed_dataset_is_read_no_further_than_the_limit(model):
    def stream():
        yield from ROWS[:2]
        raise AssertionError("read past the limit")

    np.testing.assert_array_equal(model.analyse_layers(stream(), limit=2), model.analyse_layers(ROWS[:2]))


def test_chat_rows_are_written_by_the_template(model):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    chats = [[{"role": "user", "content": row}] for row in ROWS]
    expected = model.analyse_layers([f"user: {row}\n" for row in ROWS])
    found = model.analyse_layers([{"text": chat} for chat in chats], tokenizer=tokenizer, use_chat_template=True)
    tokenizer.chat_template = None
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [{"n": 2}, {"block_size": 2}])
def test_remove_layers_cuts_the_best_block_and_returns_the_same_object(model, size):
    start = get_best_pruning_start(model.analyse_layers(ROWS), 2)
    expected = [layer for i, layer in enumerate(model.model.layers) if i not in (start, start + 1)]
    short = model.remove_layers(dataset=ROWS, **size)
    assert short is model
    assert short.config.num_hidden_layers == len(short.model.layers) == NUM_LAYERS - 2
    for kept, layer in zip(expected, short.model.layers, strict=True):
        assert torch.equal(kept.mlp.down_proj.weight, layer.mlp.down_proj.weight)


def test_remove_layers_can_return_the_array_beside_the_model(model):
    expected = model.analyse_layers(ROWS, distance="block_influence")
    short, result = model.remove_layers(n=1, dataset=ROWS, distance="block_influence", return_outputs=True)
    np.testing.assert_array_equal(result, expected)
    assert short.config.num_hidden_layers == NUM_LAYERS - 1


def test_without_a_dataset_the_built_in_text_is_used(model):
    assert model.remove_layers(n=1).config.num_hidden_layers == NUM_LAYERS - 1


def test_the_given_model_stays_as_it_is():
    stock = build_tiny("gemma2")
    before = stock(tiny_tokens()).logits
    model = ShortTransformer.from_model(stock, tokenizer=tiny_tokenizer())
    model.prune(start_layer=1, block_size=3)
    assert type(stock).__mro__[0] is not type(model)
    assert stock.config.num_hidden_layers == NUM_LAYERS
    assert torch.equal(stock(tiny_tokens()).logits, before)
    assert not any(p.requires_grad for p in stock.parameters())


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "gpt2"])
def test_a_model_pruned_twice_is_saved_as_a_stock_model_with_its_tokenizer(family, tmp_path):
    model = ShortTransformer.from_model(build_tiny(family), tokenizer=tiny_tokenizer())
    model.prune(start_layer=1, block_size=1)
    model.prune(1, 2)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [type(build_tiny(family)).__name__]
    assert torch.equal(loaded(tiny_tokens()).logits, model(tiny_tokens()).logits)
    assert AutoTokenizer.from_pretrained(tmp_path)("a row")["input_ids"] == tiny_tokenizer()("a row")["input_ids"]


def test_the_pruned_model_can_be_trained(model):
    model.prune(2, 2)
    model(tiny_tokens(), labels=tiny_tokens()).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_no_hook_stays_behind(model):
    model.analyse_layers(ROWS, distance=get_angular_distance_ith_token(0))
    with pytest.raises(ZeroDivisionError):
        model.analyse_layers(ROWS, distance=lambda before, after: 1 / 0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_from_pretrained_takes_a_folder_and_the_seeds_arguments(tmp_path):
    build_tiny("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = ShortTransformer.from_pretrained(str(tmp_path), device_map="auto", torch_dtype=torch.float32)
    assert model.remove_layers(n=2, dataset=ROWS).config.num_hidden_layers == NUM_LAYERS - 2


def test_a_tokenizer_is_found_by_the_models_name(tmp_path):
    build_tiny("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = ShortTransformer.from_model(AutoModelForCausalLM.from_pretrained(tmp_path))
    assert model.analyse_layers(ROWS).shape == (NUM_LAYERS, NUM_LAYERS)


def test_scored_blocks_are_a_dict_or_a_markdown_table():
    result = np.array([[0.3, 0.1, 0.2], [0.5, 0.4, 0.0], [0.9, 0.0, 0.0]])
    assert get_best_pruning_start(result, block_size=1) == 1
    assert get_best_pruning_start(result, block_size=2) == 1
    assert get_scored_blocks(result, return_md=False) == {
        1: {"start_layer": 1, "score": 0.1},
        2: {"start_layer": 1, "score": 0.4},
    }
    assert get_scored_blocks(result, threshold=0.3) == (
        "| Block_size | Removed_layers | Score (avg dist)|\n| -------- | ------- | -------- |\n| 1 | 1-1 | 0.100|\n"
    )


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("name", ["map.png", "map.html", "map.json"])
def test_a_diagram_is_written_without_a_browser(tmp_path: Path, name: str, normalized: bool):
    result = np.array([[0.3, 0.1, 0.2], [0.5, 0.4, 0.0], [0.9, 0.0, 0.0]])
    figure = draw_diagram(result, tmp_path / name, title="tiny", normalized=normalized)
    shown = np.asarray(figure.data[0].z, dtype=float)
    assert np.isnan(shown[1, 2])
    assert shown[0, 1] == (0.0 if normalized else 0.1)
    assert shown[2, 0] == (0.5 if normalized else 0.9), "a row of one cell is neutral"
    assert (tmp_path / name).stat().st_size > 500


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda m: m.remove_layers(dataset=ROWS), PlanError, "n=5, or block_size=5, not both"),
        (lambda m: m.remove_layers(n=1, block_size=1, dataset=ROWS), PlanError, "not both"),
        (lambda m: m.remove_layers(n=6, dataset=ROWS), PlanError, "n is 6; remove 1 to 5 of 6 layers."),
        (lambda m: m.prune(5, 2), PlanError, "start 5, n 2 does not fit"),
        (lambda m: m.set_metric("cosine"), ShortvizError, "There is no criterion 'cosine'"),
        (lambda m: m.set_metric(3), ShortvizError, "neither a criterion's name nor a callable"),
        (lambda m: m.analyse_layers("one string"), TextError, "is one string"),
        (lambda m: m.analyse_layers({"train": ROWS}), TextError, 'choose one part of it, such as dataset["train"]'),
        (lambda m: m.analyse_layers([{"body": "x"}]), TextError, "Row 0 has no column 'text'; give key= one of body."),
        (lambda m: m.analyse_layers(["a b", {"text": 3}]), TextError, "Row 1 holds a int, not text"),
        (lambda m: m.analyse_layers([{"text": [{"role": "user"}]}]), TextError, "use_chat_template=True"),
        (lambda m: m.analyse_layers(ROWS, limit=0), TextError, "The row limit is 0"),
        (lambda m: m.analyse_layers([]), TextError, "is empty"),
        (
            lambda m: m.analyse_layers(ROWS, distance=lambda a, b: float("nan")),
            NumericsError,
            "returned nan for layers",
        ),
        (lambda m: get_best_pruning_start(np.zeros((6, 6)), 6), PlanError, "block_size is 6; it must be 1 to 5"),
        (lambda m: draw_diagram(np.zeros((6, 6)), "no/such/folder/map.png"), ShortvizError, "cannot be written"),
        (lambda m: draw_diagram(np.zeros((6, 6)), "map.docx"), ShortvizError, "ends in .png or .html"),
        (lambda m: ShortTransformer.from_model(torch.nn.Linear(2, 2)), ModelError, "A Linear is no transformers model"),
        (
            lambda m: ShortTransformer.from_model(build_tiny("llama")).analyse_layers(ROWS),
            ModelError,
            "no name to find one by; give tokenizer=.",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(model, tmp_path, monkeypatch, call, error, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as caught:
        call(model)
    assert sentence in str(caught.value)
    assert model.config.num_hidden_layers == NUM_LAYERS
    assert list(tmp_path.iterdir()) == []
