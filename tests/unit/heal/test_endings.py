"""heal on tiny models: how it ends early, and what it refuses."""

import math
import sys
import threading

import numpy as np
import pytest
import torch

from shortviz.errors import NumericsError, PlanError, ResourceError, ShortvizError, Stopped, TextError
from shortviz.heal import student, training
from shortviz.heal.heal import heal
from shortviz.measure.losses import evaluate
from shortviz.model.handle import ModelHandle
from shortviz.model.prune import prune
from shortviz.progress import Watch
from shortviz.records.plan import PrunePlan
from shortviz.records.text import TokenSet, WindowSet
from tests.support.families import shared_handle
from tests.support.healing import losses_of, small_recipe, small_text


@pytest.fixture(scope="module")
def base() -> ModelHandle:
    return shared_handle("llama")


@pytest.fixture(scope="module")
def cut(base: ModelHandle) -> ModelHandle:
    return prune(base, PrunePlan(num_layers=6, removed=(2, 3)))


@pytest.fixture(scope="module")
def text(base: ModelHandle) -> tuple[TokenSet, WindowSet]:
    return small_text(base)


def test_a_stopped_training_keeps_the_best_so_far(base, cut, text):
    stop = threading.Event()

    def stop_at_five(progress):
        if progress.done == 5:
            stop.set()

    healed = heal(cut, text[0], small_recipe(), base=base, heldout=text[1], watch=Watch(stop_at_five, stop))
    assert "Stopped after 5 of 8 steps" in healed.history.note
    assert [point.step for point in healed.history.measured] == [0, 2, 4, 5], "the last step is measured too"
    assert evaluate(healed.handle, text[1]).score.nll == pytest.approx(healed.history.best_nll, abs=1e-5)


def test_a_training_stopped_before_its_first_step_has_nothing_to_keep(base, cut, text):
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped, match="before the first step"):
        heal(cut, text[0], small_recipe(), base=base, heldout=text[1], watch=Watch(stop=stop))


def test_progress_carries_the_curve_so_far(base, cut, text):
    seen = []
    heal(
        cut,
        text[0],
        small_recipe(steps=3),
        base=base,
        heldout=text[1],
        watch=Watch(lambda p: seen.append((p.stage, p.done, p.total, p.unit, p.snapshot()))),
    )
    assert [entry[:4] for entry in seen] == [("heal", done, 3, "steps") for done in range(4)]
    assert [point.step for point in seen[-1][4].points] == [0, 1, 2, 3]
    last = seen[-1][4].points[-1]
    assert last.tokens_per_second > 0
    assert last.seconds > 0


class _Poison:
    """Makes the loss NaN from a step on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        from shortviz.heal.objectives import Objective

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
    from shortviz.heal.objectives import Objective

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

    monkeypatch.setattr("shortviz.heal.objectives.Objective.backward", none_left)
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
    from shortviz.heal import student

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ResourceError, match="pip install bitsandbytes"):
        student.check_quantiser(torch.device("cuda"))


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


def test_an_adapter_on_other_weights_than_asked_for_is_refused(base, cut, text, monkeypatch):
    monkeypatch.setattr(student, "adapted_weights", lambda model: iter([("model.layers.0.mlp.up_proj.weight", 0)]))
    with pytest.raises(PlanError, match="peft gave model.layers"):
        heal(cut, text[0], small_recipe(), base=base, heldout=text[1])


def test_a_stop_just_after_the_training_ran_away_keeps_the_best_so_far(cut, text, monkeypatch):
    stop = threading.Event()

    def stop_at_three(progress):
        if progress.done == 3:
            stop.set()

    calm = small_recipe(objective="next_token", learning_rate=3e-2)
    begun = heal(cut, text[0], calm, heldout=text[1]).handle
    monkeypatch.setattr(training, "DIVERGED_NATS", 0.2)  # a model so small cannot be far worse than chance
    wild = small_recipe(objective="next_token", learning_rate=10.0, alpha=4000, warmup_steps=0, eval_every=8)
    healed = heal(begun, text[0], wild, heldout=text[1], watch=Watch(stop_at_three, stop))
    assert healed.history.measured[-1].heldout_nll > healed.history.start_nll + 0.2
    assert healed.history.note == "Stopped after 3 of 8 steps; those of step 0 are kept."
