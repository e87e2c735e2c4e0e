"""What is predicted before a model is loaded: figures for every kind of work, and no weight read."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shortviz import calibration, prediction
from shortviz import timed_shapes as timed_shapes_module
from shortviz.architectures import layer_stack
from shortviz.calibration import Speeds, Timer
from shortviz.errors import ModelError, ResourceError, Stopped
from shortviz.prediction import predict
from shortviz.prediction_records import Work
from shortviz.progress import Watch
from shortviz.records import ModelRef
from shortviz.timed_shapes import Shape, Shapes, timed_shapes
from shortviz.token_sample import SAMPLE_TOKENS
from tests.families import build_tiny, tiny_tokenizer

SPEEDS = Speeds(
    layers=1.0, fused=1.0, replayed=1.0, trained=1.0, gram=1.0, head=1.0, fits=1.0, opening=1.0, double=1.0,
    read=1.0, read_again=1.0,
)  # fmt: skip


@pytest.mark.parametrize("family", ["mixtral", "falcon_h1"])
def test_every_kind_of_work_is_predicted_and_grows_with_it(family: str, tmp_path: Path) -> None:
    build_tiny(family).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    found = predict(
        ModelRef(id=str(tmp_path), dtype="float32"), Work(rows=8, row_tokens=32, windows=2, window=64, heal_steps=5)
    )
    for kind in ("load", "measure", "streamed", "map", "repair", "heal"):
        assert getattr(found, f"{kind}_seconds") > 0, kind
    assert found.states_bytes == 7 * 8 * 32 * 32 * 4
    assert found.streamed_memory_bytes < found.size.memory_bytes


def test_the_command_prints_figures_and_one_json_object(shortviz, checkpoint) -> None:
    code, out, _ = shortviz("estimate", checkpoint, "--rows", "4", "--max-length", "16")
    assert code == 0
    assert "measure" in out
    assert "(4 rows of 16 tokens)" in out
    code, out, _ = shortviz("estimate", checkpoint, "--json")
    assert json.loads(out)["map_seconds"] > 0


def test_a_layer_too_large_to_be_timed_is_refused_with_its_size(checkpoint, monkeypatch) -> None:
    monkeypatch.setattr(prediction, "free_memory", lambda _: 1000)
    with pytest.raises(ResourceError, match=r"Timing one layer of .* needs .* KB of memory, and 1\.0 KB is free"):
        predict(ModelRef(id=checkpoint))


def test_a_gguf_file_that_was_never_loaded_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="GGUF"):
        predict(ModelRef(id=str(tmp_path / "m.gguf")))


def test_a_prediction_is_stopped_between_two_timings(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, timed = threading.Event(), []
    real = Timer.shortest

    def stopping(self: Timer, work: Callable[[], object], like: Tensor) -> float:
        timed.append(work)
        if len(timed) == 2:
            stop.set()
        return real(self, work, like)

    monkeypatch.setattr(Timer, "shortest", stopping)
    with pytest.raises(Stopped, match="there is no prediction yet"):
        predict(ModelRef(id=checkpoint), watch=Watch(stop=stop))
    assert len(timed) == 2, "nothing is timed after the stop"


def shapes_of(family: str, work: Work, dtype: torch.dtype = torch.float32, context: int | None = None) -> Shapes:
    return timed_shapes(layer_stack(build_tiny(family)), dtype, work, context)


def test_layers_are_timed_in_the_shapes_that_each_kind_of_work_gives_them() -> None:
    found = shapes_of("llama", Work(rows=64, row_tokens=32, batch_size=4, window=256))
    assert found.batch == (4, 32)
    assert found.fused == (16, 32), "while streaming, four batches go together"
    assert found.replayed == (4, 256)
    assert found.trained == (1, 512)
    assert found.all == ((4, 32), (16, 32), (4, 256), (1, 512))


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (Work(rows=1, row_tokens=2), {"batch": (1, 2), "fused": (1, 2)}),
        (Work(rows=6, row_tokens=100, batch_size=2), {"batch": (2, 100), "fused": (4, 100)}),
        (Work(rows=3, row_tokens=32), {"batch": (3, 32), "fused": (3, 32)}),
        (Work(row_tokens=2048), {"batch": (8, 2048), "fused": (8, 2048)}),
        (Work(window=4096), {"replayed": (1, 4096)}),
        (Work(window=2), {"replayed": (512, 2)}),
        (Work(heal_tokens=100), {"trained": (1, 100)}),
        (Work(heal_tokens=1), {"trained": (1, 2)}),
        (Work(heal_tokens=2048), {"trained": (4, 512)}),
    ],
)
def test_shapes_of_odd_work_are_whole_rows(work: Work, expected: dict[str, Shape]) -> None:
    found = shapes_of("llama", work)
    assert {name: getattr(found, name) for name in expected} == expected


def test_batches_that_streaming_runs_one_by_one_are_timed_so() -> None:
    work = Work(row_tokens=16)
    assert shapes_of("llama", work, torch.bfloat16).fused == (8, 16)
    assert shapes_of("mixtral", work).fused == (8, 16)
    assert shapes_of("llama", work).fused == (32, 16)


def test_a_layer_of_many_weights_is_timed_on_fewer_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed_shapes_module, "TIMED_PRODUCTS", 0)
    found = shapes_of("llama", Work(row_tokens=200, window=1024))
    assert (found.batch, found.replayed) == ((2, 200), (1, 512))


def test_work_beyond_a_short_context_is_predicted_up_to_it(tmp_path: Path) -> None:
    model = build_tiny("gpt2")
    context = model.config.n_positions
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    found = predict(ModelRef(id=str(tmp_path)), Work(rows=2, row_tokens=2 * context, window=4 * context))
    assert (found.work.row_tokens, found.work.window) == (context, context)
    assert found.map_seconds > 0


def test_the_first_look_counts_only_where_it_is_taken() -> None:
    def seconds(window: int) -> float:
        return prediction._map_seconds(6, SPEEDS, Work(windows=2, window=window))

    assert seconds(128) == pytest.approx(2 * seconds(64))
    assert seconds(256) == pytest.approx(2 * seconds(128) * (2 * 256 + 128) / (2 * 256))


def test_a_repair_fits_the_attention_too_where_there_is_text_for_it() -> None:
    stack = layer_stack(build_tiny("llama"))
    text = build_tiny("llama").config
    features = text.intermediate_size + text.num_attention_heads * text.head_dim

    def seconds(rows: int, tokens: int) -> float:
        work = Work(rows=rows, row_tokens=tokens)
        return prediction._repair_seconds(stack, text, work, replace(SPEEDS, layers=0.0, head=0.0))

    enough = -(-features * 8 // 7 // 8)
    few, many = seconds(8, enough - 2), seconds(8, enough + 2)
    assert many > 2 * few
    # Of two rows one is held out, so that as many tokens are too few to fit on.
    assert seconds(2, 4 * (enough + 2)) < many / 2


@pytest.mark.parametrize("boundaries", [3, 7, 8, 31])
def test_seconds_of_all_fits_are_told_from_those_of_few_boundaries(boundaries: int) -> None:
    class Counting(Timer):
        def shortest(self, work: Callable[[], object], like: Tensor) -> float:
            fitted = work()
            assert isinstance(fitted, Tensor)
            pairs = fitted.shape[1]
            starts = round((1 + 8 * pairs) ** 0.5 - 1) // 2
            return 2.0 * starts + 3.0 * pairs

    found = calibration.time_fits(boundaries, 4, Work(rows=8, row_tokens=16), Counting())
    assert found == pytest.approx(2 * (boundaries - 1) + 3 * boundaries * (boundaries - 1) / 2)


def test_fits_are_timed_on_as_many_tokens_as_are_sampled_however_many_rows_there_are() -> None:
    class Looking(Timer):
        def shortest(self, work: Callable[[], object], like: Tensor) -> float:
            assert len(like) == SAMPLE_TOKENS
            return 1.0

    assert calibration.time_fits(3, 4, Work(rows=10_000, row_tokens=16), Looking()) > 0


def test_rows_that_are_too_few_to_be_fitted_take_no_seconds() -> None:
    assert calibration.time_fits(7, 4, Work(rows=5, row_tokens=16), Timer()) == 0.0
    assert calibration.time_fits(7, 4, Work(rows=6, row_tokens=16), Timer()) > 0.0
