"""The real demo model, cut as the GGUF file it came as: llama.cpp opens it, and its loss is the cut model's."""

from pathlib import Path

import pytest

from shortviz.export.gguf import export_gguf, gguf_source
from shortviz.measure.losses import evaluate
from shortviz.model.handle import ModelHandle
from shortviz.model.prune import prune
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.text import WindowSpec
from shortviz.text.tokens import DEFAULT_EVALUATION, make_windows
from tests.support.llama_cpp import llama_cpp

pytestmark = pytest.mark.demo


def test_llama_cpp_runs_the_cut_demo_model_with_the_loss_it_has_here(demo_handle: ModelHandle, tmp_path: Path) -> None:
    plan, out = PrunePlan.of_blocks(30, Block(start=12, n=4)), tmp_path / "cut.gguf"
    pruned = prune(demo_handle, plan)

    report = export_gguf(gguf_source(ModelRef(id="demo")), out, plan, pruned=pruned)

    assert (report.max_logit_diff, report.generation_equal, len(report.kept)) == (0.0, True, 26)
    assert out.stat().st_size < 0.93 * gguf_source(ModelRef(id="demo")).path.stat().st_size
    tokenizer = demo_handle.tokenizer
    windows = make_windows(DEFAULT_EVALUATION, WindowSpec(window=128, windows=2), tokenizer)
    ours = evaluate(pruned, windows).score.window_nll
    with llama_cpp(out) as model:
        for window, expected in zip(windows.tokens, ours, strict=True):
            losses = model.losses(window)
            assert sum(losses) / len(losses) == pytest.approx(expected, abs=0.02)
        text = tokenizer.decode(model.continuation(tokenizer("The capital of France is")["input_ids"], 8))
    assert len(text.split()) >= 4, text
