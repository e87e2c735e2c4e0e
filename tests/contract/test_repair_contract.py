"""Repair, for every family: what the cut spoiled comes back, everything else stays the very same tensor."""

from functools import cache

import pytest
import torch

from shortviz.errors import ModelError
from shortviz.model.handle import ModelHandle
from shortviz.progress import NO_WATCH
from shortviz.records.ledger import TRAINED
from shortviz.repair.candidate import Work, open_candidate, open_tail
from shortviz.repair.repair import Repaired, repair
from shortviz.repair.training import add_gradients, head_loss
from tests.support.families import FAMILIES, tiny_tokens
from tests.support.repairs import spoiled_cut, written_by

NOT_LINEAR = ("mixtral", "gpt_oss", "minimax", "gemma3n_text")
"""Experts, or streams that are mixed anew behind the MLP."""
FITTED = [family for family in FAMILIES if family not in NOT_LINEAR]


@cache
def repaired_family(family: str) -> tuple[ModelHandle, ModelHandle, str, Repaired]:
    base, cut, weight = spoiled_cut(family)
    return base, cut, weight, repair(cut, base, written_by(base), method="seam_refit")


def logits(handle: ModelHandle) -> torch.Tensor:
    with torch.no_grad():
        return handle.model(input_ids=tiny_tokens(20).to(handle.model.device), use_cache=False).logits


@pytest.mark.parametrize("family", FITTED)
def test_a_seam_refit_finds_the_weight_that_undoes_the_damage(family: str) -> None:
    base, cut, weight, repaired = repaired_family(family)

    expected, before, after = (logits(handle) for handle in (base, cut, repaired.handle))

    assert repaired.applied, repaired.treatment.note
    assert (after - expected).abs().mean() < 0.15 * (before - expected).abs().mean()
    assert repaired.treatment.settings["held_out_nll_repaired"] < repaired.treatment.settings["held_out_nll_cut"]
    assert any(weight.endswith(n.removeprefix("1.")) for n in str(repaired.treatment.settings["weights"]).split(", "))


@pytest.mark.parametrize("family", FITTED)
def test_only_the_refitted_weights_are_new_tensors_and_no_hook_stays(family: str) -> None:
    base, cut, weight, repaired = repaired_family(family)
    theirs, ours = cut.model.state_dict(), repaired.handle.model.state_dict()

    new = {name for name in ours if ours[name].data_ptr() != theirs[name].data_ptr()}

    assert ours.keys() == theirs.keys()
    assert weight in new
    assert all(name.startswith(weight.partition(".1.")[0] + ".1.") for name in new)
    assert len(new) == len(str(repaired.treatment.settings["weights"]).split(", "))
    assert not ours[weight].is_inference()
    assert repaired.handle.treatments == (*cut.treatments, repaired.treatment)
    assert repaired.handle.plan == cut.plan
    assert repaired.handle.info == cut.info
    for handle in (base, cut, repaired.handle):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in handle.model.modules())
        assert not any(p.requires_grad for p in handle.model.parameters())


@pytest.mark.parametrize("family", FITTED)
def test_the_gradient_of_a_training_is_that_of_the_whole_models_on_each_row_alone(family: str) -> None:
    base, cut, weight = spoiled_cut(family)
    assert cut.plan is not None
    work = Work(
        cut=cut, base=base, plan=cut.plan, method=TRAINED, blocks=cut.plan.blocks,
        tokens=written_by(base, rows=8, length=12), batch_size=4, watch=NO_WATCH,
    )  # fmt: skip
    candidate = open_candidate(work, wanted={base.info.num_layers}, first=1, passes=0)
    candidate.go_to(1)
    batch = next(batch for batch in candidate.fit_on if not batch.real.all())
    model, (path, _, leaf) = candidate.handle.model, weight.rpartition(".")
    own = torch.nn.Parameter(model.get_parameter(weight).detach().clone())
    setattr(model.get_submodule(path), leaf, own)

    total = torch.zeros(())
    for ids, real in zip(batch.ids.clone(), batch.real, strict=True):
        row = ids[: int(real.sum())][None]
        ours = model(input_ids=row, use_cache=False).logits[0, :-1].log_softmax(-1)
        with torch.no_grad():
            theirs = base.model(input_ids=row, use_cache=False).logits[0, :-1].log_softmax(-1)
        total = total - 0.5 * ours.gather(-1, row[0, 1:, None]).sum() + 0.5 * (theirs.exp() * (theirs - ours)).sum()
    (expected,) = torch.autograd.grad(total, own)
    add_gradients(candidate, batch, head_loss(work), open_tail(base, work.tokens.rows[0])[1])

    assert own.grad is not None
    assert (own.grad - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("family", FITTED)
def test_training_what_was_refitted_is_kept_where_it_lowers_the_loss_and_leaves_nothing_behind(family: str) -> None:
    base, cut, _, refitted = repaired_family(family)

    trained = repair(cut, base, written_by(base), method=TRAINED)

    names = str(trained.treatment.settings["weights"]).split(", ")
    theirs, ours = cut.model.state_dict(), trained.handle.model.state_dict()
    assert (
        trained.treatment.settings["held_out_nll_repaired"]
        <= refitted.treatment.settings["held_out_nll_repaired"] + 1e-4
    )
    assert len({name for name in ours if ours[name].data_ptr() != theirs[name].data_ptr()}) == len(names)
    for handle in (base, cut, trained.handle):
        assert not any(p.requires_grad for p in handle.model.parameters())


@pytest.mark.parametrize("family", NOT_LINEAR)
def test_a_layer_that_does_not_end_linearly_is_refused_by_name(family: str) -> None:
    base, cut, _ = spoiled_cut(family)

    with pytest.raises(ModelError, match=f"Layer 1 of {cut.info.architecture} ends in a mixture of experts"):
        repair(cut, base, written_by(base, rows=8, length=12))
