"""repair: what it refuses, when it leaves a model alone, several seams, and the numbers it reports."""

import re
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from shortviz.errors import ModelError, NumericsError, PlanError, Stopped, TextError
from shortviz.measure.replay import record
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import layer_stack
from shortviz.model.prune import prune, put_weights, restore_weights, shared_copy
from shortviz.progress import NO_WATCH, NOTE, Progress, Watch
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.text import TokenSet
from shortviz.repair.candidate import Work, shared_front
from shortviz.repair.fit import Moments
from shortviz.repair.probe import Probe, adding_layers, divided_weights, scale_features
from shortviz.repair.repair import METHODS, Repaired, repair
from tests.support.families import NUM_LAYERS, shared_handle, tiny_handle
from tests.support.repairs import spoiled_cut, token_set, written_by


def cut_of(handle: ModelHandle, *removed: int) -> ModelHandle:
    return prune(handle, PrunePlan(num_layers=NUM_LAYERS, removed=removed))


@pytest.fixture(scope="module")
def llama() -> ModelHandle:
    return shared_handle("llama")


@pytest.fixture(scope="module")
def text(llama: ModelHandle) -> TokenSet:
    return written_by(llama)


@pytest.fixture(scope="module")
def spoiled() -> tuple[ModelHandle, ModelHandle, TokenSet]:
    base, cut, _ = spoiled_cut("llama")
    return base, cut, written_by(base)


def nll(handle: ModelHandle, rows: list[np.ndarray]) -> float:
    from shortviz.measure.logits import open_head
    from shortviz.measure.losses import score_window

    scores = [score_window(open_head(handle, torch.tensor(row, device=handle.model.device)), row) for row in rows]
    return float(np.average([s.nll for s in scores], weights=[s.tokens for s in scores]))


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_that_is_reported_is_that_of_the_model_that_is_returned(
    spoiled: tuple[ModelHandle, ModelHandle, TokenSet], method: str
) -> None:
    base, cut, text = spoiled

    repaired = repair(cut, base, text, method=method, batch_size=3)

    held_out = list(text.rows[7::8])
    settings = repaired.treatment.settings
    assert settings["held_out_tokens"] == sum(len(row) - 1 for row in held_out)
    assert settings["fit_tokens"] == sum(map(len, text.rows)) - sum(map(len, held_out))
    assert settings["held_out_nll_cut"] == pytest.approx(nll(cut, held_out), abs=1e-5)
    assert settings["held_out_nll_repaired"] == pytest.approx(nll(repaired.handle, held_out), abs=1e-5)
    assert repaired.treatment.method == method
    assert repaired.treatment.text == text.info
    assert repaired.treatment.seconds > 0


def test_a_repair_that_raises_the_loss_on_held_out_rows_is_not_applied(llama: ModelHandle) -> None:
    cut = cut_of(llama, 2, 3)

    repaired = repair(cut, llama, written_by(cut, rows=24))  # on its own text no other model is better

    assert not repaired.applied
    assert repaired.handle is cut
    before, after = repaired.treatment.note.rstrip(".").rsplit(" from ", 1)[1].split(" to ")
    assert float(after) >= float(before)
    assert repaired.treatment.note.startswith("Layer 1 was left as it was: refitted, the loss on held-out rows would")


def test_both_models_are_untouched(spoiled: tuple[ModelHandle, ModelHandle, TokenSet]) -> None:
    base, cut, text = spoiled
    before = [{name: t.clone() for name, t in h.model.state_dict().items()} for h in (base, cut)]

    assert repair(cut, base, text).applied

    for handle, kept in zip((base, cut), before, strict=True):
        assert all(torch.equal(t, kept[name]) for name, t in handle.model.state_dict().items())


def test_several_seams_are_refitted_from_the_front_and_a_repaired_model_can_be_repaired_again() -> None:
    base, cut, _ = spoiled_cut("llama")
    cut = prune(cut, PrunePlan(num_layers=NUM_LAYERS - 1, removed=(3,)))  # layer 4 of the uncut model
    text = written_by(base)

    once = repair(cut, base, text, method="linear_fold")
    again = repair(once.handle, base, text)

    assert cut.plan == PrunePlan(num_layers=NUM_LAYERS, removed=(2, 4))
    assert once.treatment.settings["weights"].startswith("1.mlp.down_proj.weight")
    assert [t.method for t in again.handle.treatments] == ["linear_fold", "seam_refit"][: 1 + again.applied]
    assert again.treatment.settings["held_out_nll_cut"] == pytest.approx(
        once.treatment.settings["held_out_nll_repaired"], abs=1e-5
    )


def test_where_a_norm_follows_the_mlp_the_layers_before_it_are_trained_at_all_seams_together() -> None:
    base, cut, weight = spoiled_cut("gemma2")
    cut = prune(cut, PrunePlan(num_layers=NUM_LAYERS - 1, removed=(3,)))  # layer 4 of the uncut model
    for layer in layer_stack(cut.model).layers[1:3]:
        put_weights(layer, {"mlp.down_proj.weight": 3 * layer.mlp.down_proj.weight.flip(0)})  # no scale undoes that
    text = written_by(base, rows=64)

    refitted = repair(cut, base, text, batch_size=2)
    trained = repair(cut, base, text, method="seam_trained")

    settings = trained.treatment.settings
    note = f"Layers 1, 3 were then trained by 28 steps on {settings['fit_tokens']:,} tokens: loss on held-out rows "
    assert note in trained.treatment.note
    assert "wins little" not in trained.treatment.note
    assert (settings["batch_size"], settings["training_steps"]) == (2, 28)
    assert settings["held_out_nll_repaired"] < refitted.treatment.settings["held_out_nll_repaired"]
    names = set(settings["weights"].split(", "))
    assert {f"{n}.{m}.weight" for n in (1, 3) for m in ("mlp.down_proj", "self_attn.o_proj")} < names
    assert f"1.{weight.rpartition('.1.')[2]}" in names


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_training_in_half_precision_learns_in_float32(dtype: torch.dtype) -> None:
    base = tiny_handle("gemma2", dtype)
    cut = shared_copy(cut_of(base, 2))
    layer = layer_stack(cut.model).layers[1]
    put_weights(layer, {"mlp.down_proj.weight": 3 * layer.mlp.down_proj.weight.flip(0)})
    text = written_by(base, rows=64)

    settings = repair(cut, base, text, method="seam_trained").treatment.settings

    assert settings["training_steps"] == 28
    refitted = repair(cut, base, text, batch_size=2).treatment.settings["held_out_nll_repaired"]
    assert settings["held_out_nll_repaired"] < refitted - 0.01


def test_a_training_that_runs_away_is_not_applied_and_the_refit_stays(
    spoiled: tuple[ModelHandle, ModelHandle, TokenSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, cut, text = spoiled
    refitted = repair(cut, base, text, batch_size=2)

    for step in (1e3, 1e30):
        monkeypatch.setattr("shortviz.repair.training.STEP", step)
        found = repair(cut, base, text, method="seam_trained")

        assert found.applied
        assert "The training was not kept: with its" in found.treatment.note
        assert found.treatment.settings["training_steps"] == 0
        assert found.treatment.settings["ridge"] == refitted.treatment.settings["ridge"]
        theirs, ours = (done.handle.model.state_dict() for done in (refitted, found))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_stop_during_the_training_leaves_the_cut_as_it_was(
    spoiled: tuple[ModelHandle, ModelHandle, TokenSet],
) -> None:
    base, cut, text = spoiled
    stop, details = threading.Event(), []

    def heard(progress: Progress) -> None:
        details.append(progress.detail)
        if "of the training" in progress.detail:
            stop.set()

    with pytest.raises(Stopped, match="the cut model is as it was"):
        repair(cut, base, text, method="seam_trained", watch=Watch(heard, stop))

    assert details[-1] == "step 1 of 5 of the training"


def test_the_front_is_shared_up_to_the_first_layer_that_was_changed(
    spoiled: tuple[ModelHandle, ModelHandle, TokenSet],
) -> None:
    base, cut, _ = spoiled
    numbers = cut.plan.kept

    assert shared_front(cut_of(base, 2), base, numbers, 2) == 2
    assert shared_front(cut, base, numbers, 2) == 1  # its layer 1 was changed
    assert shared_front(tiny_handle("llama", seed=5), base, numbers, 2) == 0


REFUSED = [
    ("nothing is missing", PlanError, "No layer is missing from this model"),
    ("unknown method", PlanError, "There is no repair called 'glue'; choose seam_refit, seam_trained, linear_fold"),
    ("start 0", PlanError, "The cut begins at layer 0, so no layer stands before the seam"),
    ("base of another name", ModelError, "The cut model was cut from tiny-llama, not from tiny-gpt2; give that one."),
    ("base already cut", PlanError, "The cut is one of 6 layers, and the uncut model has 5"),
    ("one row", TextError, "The text has one row, and another is needed to judge the repair on"),
    ("too little text", TextError, r"seam_refit fits 48 numbers for each channel, and 24 of the text's 47 tokens"),
    ("a row that is too long", TextError, "A row of 600 tokens is longer than the model's context of 512"),
]


@pytest.mark.parametrize(("case", "error", "message"), REFUSED, ids=[case for case, *_ in REFUSED])
def test_what_cannot_be_repaired_is_refused_with_the_reason(
    llama: ModelHandle, text: TokenSet, case: str, error: type[Exception], message: str
) -> None:
    cut, base, rows, method = cut_of(llama, 2), llama, text, "seam_refit"
    if case == "nothing is missing":
        cut = llama
    elif case == "unknown method":
        method = "glue"
    elif case == "start 0":
        cut = cut_of(llama, 0, 1)
    elif case == "base of another name":
        base = shared_handle("gpt2")
    elif case == "base already cut":
        base = replace(cut_of(llama, 2), plan=None)
    elif case == "a row that is too long":
        rows = token_set([np.zeros(600, dtype=np.int64)] * 3)
    else:
        rows = token_set([row[:24] for row in text.rows[: 1 if case == "one row" else 2]])

    with pytest.raises(error, match=message):
        repair(cut, base, rows, method=method)


def test_a_seam_that_the_cut_does_not_have_is_refused(llama: ModelHandle, text: TokenSet) -> None:
    with pytest.raises(PlanError, match=r"no seam of layer 3 \(start 3, n 1\); its removed blocks are layer 2"):
        repair(cut_of(llama, 2), llama, text, blocks=(Block(start=3, n=1),))


def test_the_number_of_tokens_that_a_refusal_asks_for_is_enough(llama: ModelHandle, text: TokenSet) -> None:
    cut = cut_of(llama, 2)
    with pytest.raises(TextError, match="give at least 96 tokens"):
        repair(cut, llama, token_set([text.rows[0][:24], text.rows[3][:24]]))

    assert isinstance(repair(cut, llama, token_set([row[:24] for row in text.rows[:6:3]] * 2)), Repaired)


def test_nan_in_the_uncut_model_is_told(llama: ModelHandle, text: TokenSet) -> None:
    base = shared_copy(llama)
    weight = "model.layers.3.mlp.down_proj.weight"
    put_weights(base.model, {weight: torch.full_like(base.model.get_parameter(weight), float("nan"))})

    with pytest.raises(NumericsError, match="NaN or Inf"):
        repair(cut_of(base, 2, 3), base, text)


def test_a_stop_ends_the_repair_and_leaves_no_hook(llama: ModelHandle, text: TokenSet) -> None:
    stop, seen = threading.Event(), []

    def stop_soon(progress: object) -> None:
        seen.append(progress)
        if len(seen) == 3:
            stop.set()

    with pytest.raises(Stopped, match="the cut model is as it was"):
        repair(cut_of(llama, 2), llama, text, batch_size=2, watch=Watch(stop_soon, stop))

    assert len(seen) == 3
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in llama.model.modules())


@pytest.mark.parametrize("method", ["seam_refit", "seam_trained"])
def test_progress_ends_at_its_total(llama: ModelHandle, text: TokenSet, method: str) -> None:
    seen = []
    repair(cut_of(llama, 2), llama, text, method=method, batch_size=4, watch=Watch(seen.append))

    fitted = [p for p in seen if p.stage == "repair"]
    assert sorted(p.done for p in fitted) == [p.done for p in fitted]
    assert fitted[-1].done == fitted[-1].total
    after = seen[seen.index(fitted[-1]) + 1 :]
    assert after, "what comes after the last row is told too"
    assert {p.stage for p in after} == {"judge"}
    assert after[-1].done == after[-1].total
    assert "held-out rows" in after[-1].detail


def test_moments_solve_least_squares_with_a_free_constant() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(200, 5, generator=generator), torch.randn(5, 3, generator=generator)
    y = x @ weight + torch.tensor([1.0, -2.0, 3.0])
    moments = Moments.zeros((5,), 3, bias=True, device=torch.device("cpu"))
    for part in range(0, 200, 50):
        moments.add(x[part : part + 50], y[part : part + 50], torch.ones(50, 3))

    exact, held_back = moments.solve(1e-9), moments.solve(1e6)

    torch.testing.assert_close(exact[:5].float(), weight, atol=1e-5, rtol=0)
    assert moments.missed(exact) == pytest.approx(0, abs=1e-9)
    assert held_back[:5].abs().max() < 1e-3
    torch.testing.assert_close(held_back[5].float(), y.mean(0), atol=1e-2, rtol=0)  # a constant is not held back
    assert moments.missed(torch.zeros_like(exact)) == 1.0


def test_weights_put_into_a_copy_leave_the_original_alone_and_can_be_taken_back(llama: ModelHandle) -> None:
    copy, name = shared_copy(llama), "model.layers.1.mlp.down_proj.weight"
    kept = llama.model.get_parameter(name)

    old = put_weights(copy.model, {name: kept * 2})
    changed = copy.model.get_parameter(name)
    restore_weights(copy.model, old)

    assert torch.equal(changed, kept * 2)
    assert copy.model.get_parameter(name).data_ptr() == kept.data_ptr()


def seam(family: str, boundary: int, text: TokenSet) -> list[torch.Tensor]:
    """The stream at a boundary of a family's uncut model, on the rows that a repair fits on."""
    rows = [row for i, row in enumerate(text.rows) if i % 8 != 7]
    return [record(shared_handle(family), torch.tensor(row)).boundaries[boundary][0] for row in rows]


def test_the_scale_is_the_ratio_of_the_stream_behind_the_block_to_that_before_it(
    llama: ModelHandle, text: TokenSet
) -> None:
    sizes = [torch.cat(seam("llama", boundary, text)).double().abs().mean(0) for boundary in (2, 4)]

    repaired = repair(cut_of(llama, 2, 3), llama, text, method="scale")

    factor = float(str(repaired.treatment.settings["factor"]))
    assert factor == pytest.approx(float((sizes[1] / sizes[0]).mean()), rel=1e-3)


@pytest.mark.parametrize(("family", "said"), [("gemma3_text", True), ("olmo2", True), ("llama", False)])
def test_where_a_norm_follows_the_mlp_it_is_said_before_the_work_that_little_is_to_be_expected(
    family: str, said: bool
) -> None:
    told: list[str] = []
    base = shared_handle(family)

    def hear(progress: Progress) -> None:
        told.append(progress.detail if progress.stage == NOTE else progress.stage)

    repaired = repair(cut_of(base, 2), base, written_by(base, rows=60), watch=Watch(hear))

    words = "A norm follows the MLP of layer 1: only its scale is refitted, one number a channel, which wins little."
    assert (told[0] == f"{words} Healing by training reaches more.") == said
    if said and repaired.applied:
        assert words in repaired.treatment.note


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon_h1", "mamba", "lfm2", "bloom"])
def test_a_layer_whose_additions_are_divided_follows_a_divided_stream(family: str) -> None:
    handle = shared_handle(family)
    recording = record(handle, torch.arange(12) + 1)
    for index in (1, 4):
        layer, call = layer_stack(shared_copy(handle).model).layers[index], recording.calls[index]
        x = 100 * recording.boundaries[index]  # so that the epsilon of a norm does not count
        names = adding_layers(Probe(layer=layer, call=call, entering=recording.boundaries[index]))
        expected = call.run(layer, 3 * x)

        put_weights(layer, divided_weights(layer, names, 3.0))

        torch.testing.assert_close(3 * call.run(layer, x.clone()), expected, rtol=1e-4, atol=1e-3)


def test_what_a_norms_scale_does_is_known_in_bfloat16_as_well_as_in_float32() -> None:
    norm = layer_stack(tiny_handle("gemma2", torch.bfloat16).model).layers[1].post_feedforward_layernorm
    put_weights(norm, {"weight": 20 * torch.ones_like(norm.weight)})
    entered = torch.randn(5, len(norm.weight), generator=torch.Generator().manual_seed(0))
    entered = entered.bfloat16().to(norm.weight.device)
    expected = entered.double() * entered.double().square().mean(-1, keepdim=True).rsqrt()

    torch.testing.assert_close(scale_features(norm, entered).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "method", "message"),
    [
        ("gemma2", "scale", "Layer 3 of Gemma2ForCausalLM does not forget the size of what it reads, or adds"),
        ("mixtral", "scale", "Layer 3 of MixtralForCausalLM does not forget"),
    ],
)
def test_families_that_a_scale_does_not_fit_are_refused_by_name(
    family: str, method: str, message: str, text: TokenSet
) -> None:
    base = shared_handle(family)

    with pytest.raises(ModelError, match=message):
        repair(cut_of(base, 2), base, text, method=method)
    with pytest.raises(PlanError, match="The cut takes the last layer"):
        repair(cut_of(base, 5), base, text, method=method)


def test_a_scale_fits_a_model_whose_embeddings_are_as_small_as_the_epsilon_of_its_norms(text: TokenSet) -> None:
    """Qwen2.5: the final norm reads what leaves the last layer, never the embeddings."""
    base = tiny_handle("qwen2")
    base.model.get_input_embeddings().weight.mul_(0.01)

    assert repair(cut_of(base, 2), base, text, method="scale").treatment.settings["factor"]


@pytest.mark.parametrize("length", [64, 128, 512])
@pytest.mark.parametrize("unknowns", [576, 1536, 3800])
def test_the_number_of_tokens_asked_for_is_enough(length: int, unknowns: int) -> None:
    def work(rows: int) -> Work:
        tokens = token_set([np.zeros(length, dtype=np.int64)] * rows)
        plan = PrunePlan(num_layers=6, removed=(2,))
        return Work(
            cut=shared_handle("llama"), base=shared_handle("llama"), plan=plan, method="m", blocks=(), tokens=tokens,
            batch_size=1, watch=NO_WATCH,
        )  # fmt: skip

    for rows in range(2, unknowns // length):
        with pytest.raises(TextError) as told:
            work(rows).check_enough(unknowns)
        asked = int(re.findall(r"at least ([\d,]+) tokens", str(told.value))[0].replace(",", ""))
        work(asked // length).check_enough(unknowns)
