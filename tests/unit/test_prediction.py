"""What is predicted before a model is loaded: figures for every kind of work, and no weight read."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from shortviz import prediction
from shortviz.calibration import Timer
from shortviz.errors import ModelError, ResourceError, Stopped
from shortviz.prediction import predict
from shortviz.prediction_records import Work
from shortviz.records import ModelRef
from tests.families import build_tiny, tiny_tokenizer


@pytest.mark.parametrize("family", ["mixtral", "falcon_h1"])
def test_every_kind_of_work_is_predicted_and_grows_with_it(family: str, tmp_path: Path) -> None:
    build_tiny(family).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    found = predict(ModelRef(id=str(tmp_path)), Work(rows=8, row_tokens=32, windows=2, window=64, heal_steps=5))
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
        predict(ModelRef(id=checkpoint), stop=stop)
    assert len(timed) == 2, "nothing is timed after the stop"
