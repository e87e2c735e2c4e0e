"""heal on tiny models: what it keeps, what it never touches, how it stops, how it goes on."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from shortviz.errors import RunError
from shortviz.heal.data import pack, split_heldout
from shortviz.heal.heal import heal
from shortviz.measure.losses import evaluate
from shortviz.model.handle import ModelHandle
from shortviz.model.prune import prune
from shortviz.progress import Watch
from shortviz.records.ledger import add_step, start_ledger, verdicts
from shortviz.records.plan import PrunePlan
from shortviz.records.text import ALL_TOKENS, TextSpec, TokenSet, WindowSet, WindowSpec
from shortviz.text.tokens import fit_rows, make_windows, tokenize
from tests.support.families import build_tiny, handle_of, shared_handle
from tests.support.healing import BOS, losses_of, needs_bos, small_recipe, small_text
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def base() -> ModelHandle:
    return shared_handle("llama")


@pytest.fixture(scope="module")
def cut(base: ModelHandle) -> ModelHandle:
    return prune(base, PrunePlan(num_layers=6, removed=(2, 3)))


@pytest.fixture(scope="module")
def text(base: ModelHandle) -> tuple[TokenSet, WindowSet]:
    return small_text(base)


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


def test_a_text_that_is_read_more_than_once_is_said_before_the_training_and_after_it(base, cut, text):
    recipe, told = small_recipe(objective="next_token", steps=4), []
    short = TokenSet(rows=(np.tile(text[0].rows[0], 99)[: 2 * recipe.tokens_per_step],), info=text[0].info)
    many = TokenSet(rows=(np.tile(text[0].rows[0], 99)[: 9 * recipe.tokens_per_step],), info=text[0].info)
    again = f"The text's {2 * recipe.tokens_per_step:,} tokens are read 2.0 times in 4 steps."
    said = [
        (heal(cut, tokens, recipe, heldout=text[1], watch=Watch(told.append)).treatment.note, [p.detail for p in told])
        for tokens in (many, short)
    ]
    assert [(again in note, again in details) for note, details in said] == [(False, False), (True, True)]


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
    monkeypatch.setattr("shortviz.measure.gradients.CHUNK_BYTES", 4 * 260 * 7)
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
from shortviz.heal.heal import heal
from shortviz.progress import Watch
from shortviz.model.prune import prune
from shortviz.records.plan import PrunePlan
from tests.support.families import shared_handle
from tests.support.healing import small_recipe, small_text

def kill(progress):
    if progress.done == 5:
        os.kill(os.getpid(), signal.SIGKILL)

base = shared_handle("llama")
cut = prune(base, PrunePlan(num_layers=6, removed=(2, 3)))
tokens, heldout = small_text(base)
heal(cut, tokens, small_recipe(), base=base, heldout=heldout, checkpoint=Path({str(path)!r}), watch=Watch(kill))
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
        watch=Watch(lambda progress: steps.append(progress.done)),
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


def test_a_model_that_leans_on_its_bos_is_trained_and_judged_as_it_is_used():
    base = needs_bos()
    spec, cut_into = TextSpec(kind="builtin", value="passages/maths"), WindowSpec(window=64, windows=16)
    scored = make_windows(spec, cut_into, base.tokenizer)
    without = make_windows(replace(spec, bos="never"), cut_into, base.tokenizer)
    assert evaluate(base, without).score.nll > evaluate(base, scored).score.nll + 0.4, "it needs its BOS"
    cut = prune(base, PrunePlan(num_layers=6, removed=(1, 2, 3)))
    text = tokenize(TextSpec(kind="builtin", value="passages/prose", max_length=ALL_TOKENS), base.tokenizer)
    train, heldout = split_heldout(text, windows=4, window=64)
    assert set(heldout.tokens[:, 0].tolist()) == set(pack(train, 64)[:, 0].tolist()) == {BOS}
    assert set(row[0] for row in fit_rows(replace(spec, max_length=64), base.tokenizer, tokens=512).rows) == {BOS}

    recipe = small_recipe(
        objective="next_token", dropout=0.0, steps=20, length=64, batch_size=4, eval_every=5, learning_rate=1e-2
    )
    healed = heal(cut, train, recipe, heldout=heldout)
    lost = evaluate(cut, scored, base=base)
    ledger = add_step(start_ledger(lost), "healed", evaluate(healed.handle, scored, base=base), [healed.treatment])
    assert not verdicts(ledger), "it wins on text that it was not trained on, opened as it is used"

    # As windows were made before: cut from the joined rows, of which few begin with BOS.
    old = split_heldout(replace(text, opening=(), between=()), windows=4, window=64)
    assert (pack(old[0], 64)[:, 0] == BOS).mean() < 0.1
    taught = heal(cut, old[0], recipe, heldout=old[1]).handle
    assert evaluate(taught, scored).score.nll > evaluate(healed.handle, scored).score.nll + 0.05
