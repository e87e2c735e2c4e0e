"""Losses of chosen cuts of a streamed model: what is read, what is refused, and the commands."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from shortviz.errors import ModelError, NumericsError, PlanError, ResourceError, Stopped
from shortviz.measure.losses import evaluate
from shortviz.model.layers import LayerCall
from shortviz.model.load import load
from shortviz.model.prune import prune
from shortviz.progress import Watch
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.text import TextInfo, WindowSet
from shortviz.streaming import losses
from shortviz.streaming.losses import evaluate_streamed
from shortviz.streaming.model import open_streamed
from shortviz.streaming.reader import WeightReader
from tests.support.families import NUM_LAYERS, build_tiny, tiny_config, tiny_tokenizer

TEXT = ("--builtin", "passages/prose", "--window", "24", "--windows", "3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    build_tiny("llama", config=tiny_config("llama", tie_word_embeddings=False)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def windows(high: int = 256) -> WindowSet:
    tokens = np.random.default_rng(1).integers(0, high, (3, 20)).astype(np.int64)
    return WindowSet(tokens=tokens, info=TextInfo(source="random", rows=3, tokens=60, fingerprint="w"))


def plans(*blocks: tuple[int, int]) -> list[PrunePlan]:
    return [PrunePlan.of_blocks(NUM_LAYERS, Block(start=s, n=n)) for s, n in blocks]


def test_every_layer_is_read_once_whatever_the_number_of_cuts_and_windows(folder, monkeypatch):
    read: list[str] = []
    real = WeightReader.read

    def note(self, name, *, aligned):
        read.append(name)
        return real(self, name, aligned=aligned)

    monkeypatch.setattr(WeightReader, "read", note)
    with open_streamed(ModelRef(id=str(folder))) as model:
        evaluate_streamed(model, windows(), plans((0, 1), (2, 2), (5, 1), (1, 4)))
        layers = [name for name in read if ".layers." in name]
        assert sorted(layers) == sorted(name for name in model.entries if ".layers." in name)


def test_scattered_layers_can_be_left_out_too(folder):
    scattered = PrunePlan(num_layers=NUM_LAYERS, removed=(1, 3))
    with open_streamed(ModelRef(id=str(folder))) as model:
        both, one = evaluate_streamed(model, windows(), [scattered, *plans((1, 1))])
    assert (both.removed, one.removed) == ((1, 3), (1,))
    assert both.score.parameters < one.score.parameters
    assert both.score.window_nll != one.score.window_nll


def test_a_stop_is_heard_between_layers(folder):
    stop = threading.Event()
    with open_streamed(ModelRef(id=str(folder))) as model, pytest.raises(Stopped, match="Stopped in layer 3 of 6"):
        evaluate_streamed(
            model, windows(), plans((1, 1)), watch=Watch(lambda p: stop.set() if p.done == 3 else None, stop)
        )


def test_a_stop_is_heard_between_the_windows_of_a_layer(folder, monkeypatch):
    stop, ran = threading.Event(), []
    real = LayerCall.run

    def note(self, layer, hidden):
        ran.append(layer)
        if len(ran) == 4:  # the first window of layer 1
            stop.set()
        return real(self, layer, hidden)

    with open_streamed(ModelRef(id=str(folder))) as model:
        monkeypatch.setattr(LayerCall, "run", note)
        with pytest.raises(Stopped, match="Stopped in layer 1 of 6"):
            evaluate_streamed(model, windows(), plans((1, 1)), watch=Watch(stop=stop))
    assert len(ran) == 4


@pytest.mark.parametrize("only", [None, "lm_head.weight", "model.embed_tokens.weight"])
def test_a_tied_head_with_a_bias_of_its_own_gets_it(tmp_path, only):
    tiny = build_tiny("phi", config=tiny_config("phi", tie_word_embeddings=True))
    with torch.no_grad():
        tiny.lm_head.bias.normal_()
    tiny.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    if only is not None:
        file = tmp_path / "model.safetensors"
        tensors = load_file(file)
        tied = [tensors.pop(name) for name in ("lm_head.weight", "model.embed_tokens.weight") if name in tensors]
        save_file(tensors | {only: tied[0]}, file, metadata={"format": "pt"})
    ref = ModelRef(id=str(tmp_path))
    with open_streamed(ref) as model:
        found = evaluate_streamed(model, windows(), [])[0]
        assert all(weight.is_meta for weight in model.model.parameters())
    assert found.score.window_nll == pytest.approx(evaluate(load(ref), windows()).score.window_nll, abs=1e-6)


def test_a_head_that_is_in_no_file_is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    del tensors["lm_head.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with (
        open_streamed(ModelRef(id=str(tmp_path / "model"))) as model,
        pytest.raises(ModelError, match=r"they lack lm_head\.weight, which it describes"),
    ):
        evaluate_streamed(model, windows(), [])


def test_streams_that_do_not_fit_are_refused_with_what_they_need(folder, monkeypatch):
    monkeypatch.setattr(losses, "free_memory", lambda _: 50_000)
    with open_streamed(ModelRef(id=str(folder))) as model, pytest.raises(ResourceError, match=r"2 cuts over 3 windows"):
        evaluate_streamed(model, windows(), plans((1, 1), (2, 1)))


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_is_counted_where_it_is_not_the_embeddings(tmp_path, monkeypatch, tied):
    config = tiny_config("llama", vocab_size=2000, tie_word_embeddings=tied)
    build_tiny("llama", config=config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr(losses, "free_memory", lambda _: 2000 * 32 * 4 * 1.5)
    with open_streamed(ModelRef(id=str(tmp_path))) as model:
        if tied:
            assert evaluate_streamed(model, windows(), [])[0].score.windows == 3
        else:
            with pytest.raises(ResourceError, match=r"beside 512 KB of weights"):
                evaluate_streamed(model, windows(), [])


def test_a_layer_that_overflows_in_a_cut_is_named_with_the_cut(tmp_path):
    tiny = build_tiny("llama")
    with torch.no_grad():
        tiny.model.layers[4].mlp.down_proj.weight.mul_(1e38)
    tiny.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with (
        open_streamed(ModelRef(id=str(tmp_path))) as model,
        pytest.raises(NumericsError, match=r"Layer 4 of .* gives NaN or Inf in float32"),
    ):
        evaluate_streamed(model, windows(), plans((1, 1)))


def test_a_cut_whose_layers_would_be_called_with_something_else_is_refused(folder, monkeypatch):
    monkeypatch.setattr(
        losses, "difference", lambda left, right, **_: "position_embeddings" if left is not right else None
    )
    with (
        open_streamed(ModelRef(id=str(folder))) as model,
        pytest.raises(ModelError, match="Without layers 2-3, layer 0 of .* is given another position_embeddings"),
    ):
        evaluate_streamed(model, windows(), plans((2, 2)))


def test_a_cut_that_the_config_cannot_express_is_refused(tmp_path):
    build_tiny("lfm2").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    none = PrunePlan(num_layers=NUM_LAYERS, removed=(2, 4, 5))
    with (
        open_streamed(ModelRef(id=str(tmp_path))) as model,
        pytest.raises(PlanError, match="layer_types would name no attention layer"),
    ):
        evaluate_streamed(model, windows(), [none])


def test_map_stream_prints_the_chosen_blocks_like_evaluate(shortviz, checkpoint):
    code, out, err = shortviz("map", checkpoint, *TEXT, "--stream", "--blocks", "2,2", "--blocks", "0,1", "--json")
    assert code == 0, err
    found = json.loads(out)["blocks"]
    assert [(one["start"], one["n"]) for one in found] == [(2, 2), (0, 1)]
    for one in found:
        cut = ("--start", str(one["start"]), "--n", str(one["n"]))
        for way in ("--no-stream", "--stream"):
            code, out, err = shortviz("evaluate", checkpoint, *TEXT, *cut, way, "--json")
            assert code == 0, err
            alone = json.loads(out)
            assert one["nll"] == pytest.approx(alone["nll"], abs=1e-6)
            assert one["kl"] == pytest.approx(alone["kl"], abs=1e-6)
            assert one["base"]["nll"] == pytest.approx(alone["base"]["nll"], abs=1e-6)
    text = shortviz("map", checkpoint, *TEXT, "--stream", "--blocks", "2,2", "--blocks", "0,1")[1]
    assert "Streamed in one sweep over the layers" in text


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--stream",), "measures chosen blocks only; name them"),
        (("--blocks", "1,2"), "--blocks belongs to --stream"),
        (("--stream", "--blocks", "1"), "--blocks is '1'; give start,n"),
        (("--stream", "--blocks", "-1,2"), "--blocks is '-1,2'; give start,n"),
        (("--stream", "--blocks", "4,9"), "Block start 4, n 9 does not fit"),
        (("--stream", "--blocks", "0,6"), "layer"),
        (("--stream", "--blocks", "1,2", "--search"), "leave --search and --out out"),
    ],
)
def test_what_map_stream_refuses(shortviz, checkpoint, options, match):
    code, out, err = shortviz("map", checkpoint, *TEXT, *options)
    assert (code, out) == (2, "")
    assert match in err


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_in_half_precision_a_cut_has_the_loss_and_the_size_of_the_one_in_memory(stored, tmp_path):
    build_tiny("llama", stored).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    ref = ModelRef(id=str(tmp_path), dtype="bfloat16")
    handle, plan = load(ref), plans((2, 2))[0]
    expected = evaluate(prune(handle, plan), windows(), base=handle)
    with open_streamed(ref) as model:
        found = evaluate_streamed(model, windows(), [plan])[0]
    assert (found.nll_increase, found.kl) == pytest.approx((expected.nll_increase, expected.kl), abs=1e-6)
    assert found.base is not None
    assert expected.base is not None
    assert (found.score.bytes, found.base.bytes) == (expected.score.bytes, expected.base.bytes)
    assert found.score.bytes < found.base.bytes == 2 * found.base.parameters
