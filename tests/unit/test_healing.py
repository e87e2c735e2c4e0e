"""heal on tiny models: what it keeps, what it never touches, how it stops, how it goes on."""

import math
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from shortviz import heal_student
from shortviz.errors import NumericsError, PlanError, ResourceError, RunError, ShortvizError, Stopped, TextError
from shortviz.handle import ModelHandle
from shortviz.heal_data import batch_of, pack, split_heldout
from shortviz.heal_objectives import Seam, seams_of
from shortviz.heal_settings import PRESETS, HealHistory, HealSettings, preset
from shortviz.heal_targets import find_targets
from shortviz.healing import heal, learning_rate_at
from shortviz.losses import evaluate
from shortviz.pruning import prune
from shortviz.records import PrunePlan, TextInfo, TokenSet, WindowSet
from tests.families import build_tiny, handle_of, shared_handle
from tests.healing_fixture import small_recipe, small_text

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def base() -> ModelHandle:
    return shared_handle("llama")


@pytest.fixture(scope="module")
def cut(base: ModelHandle) -> ModelHandle:
    return prune(base, PrunePlan(num_layers=6, removed=(2, 3)))


@pytest.fixture(scope="module")
def text(base: ModelHandle) -> tuple[TokenSet, WindowSet]:
    return small_text(base)


def losses_of(history: HealHistory) -> list[float]:
    return [point.loss for point in history.points if point.loss is not None]


@pytest.mark.parametrize("objective", ["next_token", "distill", "mixed", "seam"])
def test_every_objective_lowers_its_own_loss(base, cut, text, objective):
    settings = small_recipe(objective=objective, steps=24, dropout=0.0, learning_rate=1e-2, eval_every=12)
    losses = losses_of(heal(cut, text[0], settings, base=base, heldout=text[1]).history)
    assert len(losses) == 24
    assert np.mean(losses[-6:]) < np.mean(losses[:6])


def test_the_model_that_is_kept_is_the_best_on_held_out_text_and_its_loss_is_the_one_shown(base, cut, text):
    healed = heal(cut, text[0], small_recipe(), base=base, heldout=text[1])
    history = healed.history
    measured = {point.step: point.heldout_nll for point in history.measured}
    assert list(measured) == [0, 2, 4, 6, 8]
    assert history.best_nll == min(measured.values()) == measured[history.best_step]
    assert evaluate(healed.handle, text[1]).score.nll == pytest.approx(history.best_nll, abs=1e-5)
    assert history.start_nll == pytest.approx(evaluate(cut, text[1]).score.nll, abs=1e-12)
    assert healed.handle.plan == cut.plan
    assert healed.handle.treatments == (healed.treatment,)
    assert healed.treatment.settings["best_step"] == history.best_step
    assert healed.treatment.text == text[0].info


def test_a_training_that_helps_nothing_gives_the_cut_model_back(base, cut, text):
    same = TokenSet(rows=(np.full(2000, 65),), info=text[0].info)  # to expect the same letter for ever
    unlearning = small_recipe(objective="next_token", learning_rate=3e-2)
    healed = heal(cut, same, unlearning, heldout=text[1])
    assert healed.history.best_step == 0
    tokens = torch.tensor(text[1].tokens)
    with torch.no_grad():
        assert torch.equal(healed.handle.model(tokens).logits, cut.model(tokens).logits)


def test_untouched_weights_are_shared_and_changed_ones_are_new(base, cut, text):
    healed = heal(cut, text[0], small_recipe(), base=base, heldout=text[1]).handle
    before = {name: weight.data_ptr() for name, weight in cut.model.named_parameters()}
    for name, weight in healed.model.named_parameters():
        assert (weight.data_ptr() == before[name]) == ("mlp" not in name), name
        assert not weight.requires_grad


def test_gradients_do_not_depend_on_the_batch_size(base, cut, text):
    together, apart = (
        heal(cut, text[0], small_recipe(dropout=0.0, steps=3, **sizes), base=base, heldout=text[1])
        for sizes in ({"batch_size": 4}, {"batch_size": 1, "accumulate": 4})
    )
    assert losses_of(together.history) == pytest.approx(losses_of(apart.history), abs=1e-5)


def test_gradient_checkpointing_changes_no_loss(base, cut, text):
    kept, twice = (
        losses_of(heal(cut, text[0], small_recipe(gradient_checkpointing=on), base=base, heldout=text[1]).history)
        for on in (False, True)
    )
    assert kept == pytest.approx(twice, abs=1e-6)


def test_chunks_of_logits_change_no_loss(base, cut, text, monkeypatch):
    whole = heal(cut, text[0], small_recipe(steps=3), base=base, heldout=text[1])
    monkeypatch.setattr("shortviz.heal_objectives.CHUNK_BYTES", 4 * 260 * 7)
    chunks = heal(cut, text[0], small_recipe(steps=3), base=base, heldout=text[1])
    assert losses_of(whole.history) == pytest.approx(losses_of(chunks.history), abs=1e-5)


def test_half_precision_weights_are_trained_in_full_precision(text):
    base = handle_of(build_tiny("llama", torch.bfloat16))
    cut = prune(base, PrunePlan(num_layers=6, removed=(2, 3)))
    for method in ("lora", "partial"):
        small_steps = small_recipe(method=method, learning_rate=1e-4, dropout=0.0, objective="distill")
        healed = heal(cut, text[0], small_steps, base=base, heldout=text[1])
        assert healed.handle.model.dtype == torch.bfloat16
        assert all(math.isfinite(loss) for loss in losses_of(healed.history))


def test_bfloat16_products_keep_the_weights_in_float32(base, cut, text):
    healed = heal(cut, text[0], small_recipe(precision="bfloat16"), base=base, heldout=text[1])
    exact = heal(cut, text[0], small_recipe(), base=base, heldout=text[1])
    assert healed.handle.model.dtype == torch.float32
    assert losses_of(healed.history) == pytest.approx(losses_of(exact.history), abs=0.05)
    assert losses_of(healed.history) != losses_of(exact.history)


# Going on


def test_a_training_killed_at_once_goes_on_to_the_losses_of_an_uninterrupted_one(base, cut, text, tmp_path):
    whole = heal(cut, text[0], small_recipe(), base=base, heldout=text[1])
    path = tmp_path / "heal.safetensors"
    child = f"""
import os, signal
from pathlib import Path
from shortviz.healing import heal
from shortviz.pruning import prune
from shortviz.records import PrunePlan
from tests.families import shared_handle
from tests.healing_fixture import small_recipe, small_text

def kill(progress):
    if progress.done == 5:
        os.kill(os.getpid(), signal.SIGKILL)

base = shared_handle("llama")
cut = prune(base, PrunePlan(num_layers=6, removed=(2, 3)))
tokens, heldout = small_text(base)
heal(cut, tokens, small_recipe(), base=base, heldout=heldout, checkpoint=Path({str(path)!r}), on_progress=kill)
"""
    done = subprocess.run([sys.executable, "-c", child], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    steps: list[float] = []
    gone_on = heal(
        cut,
        text[0],
        small_recipe(),
        base=base,
        heldout=text[1],
        checkpoint=path,
        on_progress=lambda progress: steps.append(progress.done),
    )
    assert steps == [5, 6, 7, 8], "steps 1-4 came from the checkpoint"
    assert losses_of(gone_on.history) == pytest.approx(losses_of(whole.history), abs=1e-6)
    assert [p.heldout_nll for p in gone_on.history.measured] == pytest.approx(
        [p.heldout_nll for p in whole.history.measured], abs=1e-6
    )
    assert gone_on.history.best_step == whole.history.best_step
    for name, weight in gone_on.handle.model.named_parameters():
        torch.testing.assert_close(weight, whole.handle.model.get_parameter(name), atol=1e-6, rtol=1e-5)


def test_a_complete_training_is_not_made_again(base, cut, text, tmp_path):
    path = tmp_path / "heal.safetensors"
    first = heal(cut, text[0], small_recipe(), base=base, heldout=text[1], checkpoint=path)
    again = heal(cut, text[0], small_recipe(), base=base, heldout=text[1], checkpoint=path)
    assert again.history == first.history


def test_other_settings_model_or_text_are_refused_with_every_difference_named(base, cut, text, tmp_path):
    path = tmp_path / "heal.safetensors"
    heal(cut, text[0], small_recipe(steps=2), base=base, heldout=text[1], checkpoint=path)
    other = prune(base, PrunePlan(num_layers=6, removed=(1, 2)))
    with pytest.raises(RunError) as refused:
        heal(
            other,
            text[0],
            small_recipe(steps=4, learning_rate=1e-3),
            base=base,
            heldout=text[1],
            checkpoint=path,
        )
    assert "steps was 2 and is 4" in str(refused.value)
    assert "learning rate was 0.003 and is 0.001" in str(refused.value)
    assert "model was" in str(refused.value)
    assert "rank" not in str(refused.value)


def test_a_broken_checkpoint_is_named(base, cut, text, tmp_path):
    path = tmp_path / "heal.safetensors"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(RunError, match=r"heal\.safetensors cannot be read.*delete it"):
        heal(cut, text[0], small_recipe(), base=base, heldout=text[1], checkpoint=path)


# Ending early


def test_a_stopped_training_keeps_the_best_so_far(base, cut, text):
    stop = threading.Event()

    def stop_at_five(progress):
        if progress.done == 5:
            stop.set()

    healed = heal(cut, text[0], small_recipe(), base=base, heldout=text[1], on_progress=stop_at_five, stop=stop)
    assert "Stopped after 5 of 8 steps" in healed.history.note
    assert [point.step for point in healed.history.measured] == [0, 2, 4, 5], "the last step is measured too"
    assert evaluate(healed.handle, text[1]).score.nll == pytest.approx(healed.history.best_nll, abs=1e-5)


def test_a_training_stopped_before_its_first_step_has_nothing_to_keep(base, cut, text):
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped, match="before the first step"):
        heal(cut, text[0], small_recipe(), base=base, heldout=text[1], stop=stop)


def test_progress_carries_the_curve_so_far(base, cut, text):
    seen = []
    heal(
        cut,
        text[0],
        small_recipe(steps=3),
        base=base,
        heldout=text[1],
        on_progress=lambda p: seen.append((p.stage, p.done, p.total, p.unit, p.snapshot())),
    )
    assert [entry[:4] for entry in seen] == [("heal", done, 3, "steps") for done in range(4)]
    assert [point.step for point in seen[-1][4].points] == [0, 1, 2, 3]
    last = seen[-1][4].points[-1]
    assert last.tokens_per_second > 0
    assert last.seconds > 0


class _Poison:
    """Makes the loss NaN from a step on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        from shortviz.heal_objectives import Objective

        own, calls = Objective.backward, iter(range(1, 1000))

        def backward(objective, tokens, share):
            loss = own(objective, tokens, share)
            return math.nan if next(calls) >= step else loss

        monkeypatch.setattr(Objective, "backward", backward)


def test_a_loss_that_turns_nan_ends_the_training_with_the_last_good_weights(base, cut, text, monkeypatch):
    _Poison(monkeypatch, step=6)
    healed = heal(cut, text[0], small_recipe(), base=base, heldout=text[1])
    assert healed.history.note.startswith("The loss became NaN or Inf at step 6; the weights of step 4 are kept")
    assert healed.treatment.note == healed.history.note
    assert evaluate(healed.handle, text[1]).score.nll == pytest.approx(healed.history.best_nll, abs=1e-5)


def test_a_loss_that_is_nan_from_the_start_is_an_error_that_names_the_step_and_the_rate(base, cut, text, monkeypatch):
    _Poison(monkeypatch, step=1)
    with pytest.raises(NumericsError, match=r"NaN or Inf at step 1 before.*lower the learning rate \(0\.003\)"):
        heal(cut, text[0], small_recipe(), base=base, heldout=text[1])


def test_a_training_that_runs_away_is_ended(base, cut, text):
    with pytest.raises(NumericsError, match=r"(held-out|loss|gradient).* at step \d+ before"):
        heal(cut, text[0], small_recipe(learning_rate=10.0), base=base, heldout=text[1])


def test_where_memory_runs_out_fewer_rows_are_run_at_once_and_the_losses_stay(base, cut, text, monkeypatch):
    from shortviz.heal_objectives import Objective

    whole = heal(cut, text[0], small_recipe(dropout=0.0), base=base, heldout=text[1])
    own = Objective.backward

    def short_of_memory(objective, tokens, share):
        if len(tokens) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(objective, tokens, share)

    monkeypatch.setattr(Objective, "backward", short_of_memory)
    halved = heal(cut, text[0], small_recipe(dropout=0.0), base=base, heldout=text[1])
    assert losses_of(halved.history) == pytest.approx(losses_of(whole.history), abs=1e-5)


def test_where_memory_runs_out_for_one_row_the_need_is_told(base, cut, text, monkeypatch):
    def none_left(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("shortviz.heal_objectives.Objective.backward", none_left)
    with pytest.raises(ResourceError, match=r"ran out: this training needs about .*B; choose a shorter length"):
        heal(cut, text[0], small_recipe(), base=base, heldout=text[1])


# Refusals


def test_too_little_text_for_the_parameters_is_refused_with_the_number_needed(base, cut):
    tokens, heldout = small_text(base, limit=2)
    with pytest.raises(TextError, match=r"has .* tokens to train 153,600 parameters on; .* at least 615 tokens"):
        heal(cut, _first_tokens(tokens, 320), small_recipe(rank=160), base=base, heldout=heldout)


def _first_tokens(tokens: TokenSet, count: int) -> TokenSet:
    return TokenSet(rows=(np.concatenate(tokens.rows)[:count],), info=tokens.info)


def test_a_text_shorter_than_one_window_is_refused(base, cut, text):
    with pytest.raises(TextError, match="fewer than one training window of 32"):
        heal(cut, _first_tokens(text[0], 20), small_recipe(), base=base, heldout=text[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 4096}, "longer than the model's context of 512"),
        ({"targets": "nothing"}, "nothing named 'nothing' to train; they have self_attn.q_proj"),
        ({"method": "partial", "objective": "distill", "last_layers": 9}, "last 9 layers .* the model has 4"),
        ({"quantize": "4bit"}, "4 bits needs a CUDA device, and the model is on cpu"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(base, cut, text, changes, message):
    with pytest.raises(ShortvizError, match=message):
        heal(cut, text[0], small_recipe(**changes), base=base, heldout=text[1])


def test_an_objective_that_needs_the_uncut_model_says_so(cut, text):
    with pytest.raises(ShortvizError, match="learns from the uncut model, which is not given; choose next_token"):
        heal(cut, text[0], small_recipe(), heldout=text[1])


def test_the_seam_objective_needs_a_layer_before_the_seam(base, text):
    first = prune(base, PrunePlan(num_layers=6, removed=(0, 1)))
    with pytest.raises(PlanError, match="begins with the first layer"):
        heal(first, text[0], small_recipe(objective="seam"), base=base, heldout=text[1])
    assert heal(first, text[0], small_recipe(steps=2), base=base, heldout=text[1]).history.complete


def test_without_peft_the_install_command_is_told(base, cut, text, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ResourceError, match="pip install peft"):
        heal(cut, text[0], small_recipe(), base=base, heldout=text[1])


def test_without_bitsandbytes_the_install_command_is_told(monkeypatch):
    from shortviz import heal_quantise

    monkeypatch.setattr(heal_quantise.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="pip install bitsandbytes"):
        heal_quantise.check_quantiser(torch.device("cuda"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "full"}, "method is 'full'; it must be one of lora, partial"),
        ({"objective": "loss"}, "objective is 'loss'"),
        ({"rank": 0}, "rank is 0; it must be at least 1"),
        ({"steps": 5, "warmup_steps": 9}, "warm-up takes 9 steps of 5"),
        ({"dropout": 1.0}, "dropout is 1; it must be between 0 and 0.95"),
        ({"learning_rate": 0.0}, "learning rate is 0"),
        ({"learning_rate": math.nan}, "learning rate is nan"),
        ({"mix": -0.1}, "mix is -0.1"),
        ({"method": "partial", "quantize": "4bit", "objective": "distill"}, "4 bits cannot be trained"),
        ({"method": "partial", "objective": "seam"}, "method partial what stands behind"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_a_sentence(changes, message):
    with pytest.raises(ShortvizError, match=message):
        small_recipe(**changes)


# The parts


def test_a_preset_is_fitted_to_the_model_and_its_changes_are_not(base):
    fitted = preset("paper", base.info)
    assert fitted.length == 512, "the tiny model's context"
    assert preset("paper").length == 2048
    assert preset("quick", base.info, length=64, steps=3).length == 64
    with pytest.raises(ShortvizError, match="no preset 'fast'; choose one of quick, good, paper"):
        preset("fast")
    with pytest.raises(ShortvizError, match="no setting 'lr'"):
        preset("quick", lr=1)
    assert set(PRESETS) == {"quick", "good", "paper"}


def test_the_learning_rate_warms_up_and_falls_to_nothing_along_a_cosine():
    settings = HealSettings(steps=110, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate_at(settings, step) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[60] == pytest.approx(0.5)
    assert rates[-1] < 0.001
    assert max(rates) == 1.0


def test_seams_are_where_the_kept_layers_meet(base):
    def seams(*removed: int) -> tuple[Seam, ...]:
        return seams_of(base, prune(base, PrunePlan(num_layers=6, removed=removed)))

    assert seams(2, 3) == (Seam(boundary=2, teacher=4),)
    assert seams(0, 3, 5) == (Seam(boundary=0, teacher=1), Seam(boundary=2, teacher=4), Seam(boundary=3, teacher=6))
    once = prune(base, PrunePlan(num_layers=6, removed=(2,)))
    twice = prune(once, PrunePlan(num_layers=5, removed=(2,)))
    assert seams_of(once, twice) == (Seam(boundary=2, teacher=3),)


def test_every_window_comes_once_in_each_pass_and_the_order_depends_on_the_seed():
    windows = np.arange(10).reshape(5, 2)
    first = batch_of(windows, 0, 5, seed=0)
    assert sorted(first[:, 0]) == [0, 2, 4, 6, 8]
    again = np.concatenate([batch_of(windows, 0, 2, 0), batch_of(windows, 2, 3, 0)])
    assert np.array_equal(first, again)
    across = batch_of(windows, 4, 3, 0)
    assert np.array_equal(across[0], first[4])
    assert any(not np.array_equal(batch_of(windows, 0, 5, seed), first) for seed in range(1, 4))


def _tokens(*rows: list[int]) -> TokenSet:
    arrays = tuple(np.asarray(row, dtype=np.int64) for row in rows)
    size = sum(len(row) for row in arrays)
    return TokenSet(rows=arrays, info=TextInfo(source="test text", rows=len(rows), tokens=size, fingerprint="f"))


def test_rows_are_packed_with_a_separator_and_the_rest_is_left_out():
    assert pack(_tokens([1, 2, 3], [4, 5]), 3, [9]).tolist() == [[1, 2, 3], [9, 4, 5]]
    assert pack(_tokens([1, 2, 3], [4, 5]), 2, []).tolist() == [[1, 2], [3, 4]]


def test_held_out_text_is_the_end_and_not_trained_on():
    rows = [[i * 10 + k for k in range(10)] for i in range(20)]
    train, held = split_heldout(_tokens(*rows), windows=2, window=8)
    assert held.tokens.shape == (2, 8)
    seen = set(np.concatenate(train.rows))
    assert not seen & set(held.tokens.flatten())
    assert train.info.fingerprint != held.info.fingerprint
    one_row = split_heldout(_tokens(list(range(100))), windows=2, window=8)
    assert len(one_row[0].rows[0]) == 84
    assert one_row[1].tokens[0, 0] == 84
    with pytest.raises(TextError, match="at least 40 tokens"):
        split_heldout(_tokens([1] * 30), windows=2, window=8)


def test_targets_are_found_by_structure():
    def mlp(name: str) -> tuple[str, ...]:
        found = find_targets(shared_handle(name).model, "mlp")
        return (*found.modules, *found.parameters)

    assert mlp("llama") == ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert mlp("gpt2") == ("mlp.c_fc", "mlp.c_proj")
    assert mlp("phi3") == ("mlp.gate_up_proj", "mlp.down_proj")
    assert mlp("opt") == ("fc1", "fc2")
    assert mlp("mixtral") == ("mlp.experts.down_proj", "mlp.experts.gate_up_proj")
    assert "The layers have no MLP" in find_targets(shared_handle("mamba").model, "mlp").note
    everything = find_targets(shared_handle("llama").model, "all").modules
    assert set(everything) - set(mlp("llama")) == {f"self_attn.{part}_proj" for part in "qkvo"}
    assert find_targets(shared_handle("llama").model, "q_proj, mlp.up_proj").modules == (
        "self_attn.q_proj",
        "mlp.up_proj",
    )


def test_an_adapter_on_other_weights_than_asked_for_is_refused(base, cut, text, monkeypatch):
    monkeypatch.setattr(heal_student, "adapted_weights", lambda model: iter([("model.layers.0.mlp.up_proj.weight", 0)]))
    with pytest.raises(PlanError, match="peft gave model.layers"):
        heal(cut, text[0], small_recipe(), base=base, heldout=text[1])
