"""An adapter alone: peft's format, the plan in it, and no other model's."""

import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch

from shortviz.errors import ExportError, ModelError
from shortviz.export.export import write_checkpoint
from shortviz.heal.adapter import export_adapter, load_adapter
from shortviz.heal.heal import Healed, heal
from shortviz.model.handle import ModelHandle
from shortviz.model.prune import prune
from shortviz.records.ledger import Treatment
from shortviz.records.plan import PrunePlan
from tests.support.families import shared_handle, tiny_handle, tiny_tokens
from tests.support.healing import small_recipe, small_text


def healed_of(family: str, **changes: object) -> tuple[ModelHandle, Healed]:
    base = shared_handle(family)
    cut = prune(base, PrunePlan(num_layers=6, removed=(2, 3)))
    tokens, heldout = small_text(base)
    return cut, heal(cut, tokens, small_recipe(learning_rate=1e-2, **changes), base=base, heldout=heldout)


@pytest.fixture(scope="module")
def trained() -> tuple[ModelHandle, Healed]:
    return healed_of("llama")


@pytest.fixture
def folder(trained: tuple[ModelHandle, Healed], tmp_path: Path) -> Path:
    adapter = trained[1].adapter
    assert adapter is not None
    return export_adapter(adapter, tmp_path / "adapter")


@torch.no_grad()
def logits_of(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=tiny_tokens(20, 2).to(next(model.parameters()).device)).logits.cpu()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft 0.21.2's own call
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_plain_peft_loads_the_adapter_onto_the_exported_cut(family, tmp_path):
    cut, healed = healed_of(family)
    assert healed.history.best_step > 0
    write_checkpoint(cut, tmp_path / "cut")
    adapter = export_adapter(healed.adapter, tmp_path / "adapter")
    from transformers import AutoModelForCausalLM

    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "cut"), adapter).eval()
    torch.testing.assert_close(logits_of(model), logits_of(healed.handle.model), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits_of(healed.handle.model), logits_of(cut.model), atol=1e-3)


def test_config_and_card_name_the_model_and_the_cut(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    facts = json.loads((folder / "adapter_config.json").read_text())["auto_mapping"]["shortviz"]
    assert facts["removed"] == [2, 3]
    assert facts["num_layers"] == 6
    card = (folder / "README.md").read_text()
    assert "without layers 2-3 of its 6 (from 0)" in card
    assert "shortviz prune" in card
    assert "--start 2 --n 2" in card


def test_an_adapter_comes_back_as_the_model_that_was_healed(trained, folder):
    cut, healed = trained
    before = logits_of(cut.model)
    again = load_adapter(cut, folder)
    assert torch.equal(logits_of(again.model), logits_of(healed.handle.model))
    assert again.treatments == healed.handle.treatments
    assert torch.equal(logits_of(cut.model), before), "the cut is not touched"


def test_an_adapter_of_another_cut_model_or_repair_is_refused(trained, folder):
    cut, healed = trained
    base = shared_handle("llama")
    with pytest.raises(ModelError, match=r"trained on tiny-llama .* without layers 2-3, and this is .* layers 1-2;"):
        load_adapter(prune(base, PrunePlan(num_layers=6, removed=(1, 2))), folder)
    with pytest.raises(ModelError, match="and this is tiny-mistral"):
        load_adapter(prune(shared_handle("mistral"), PrunePlan(num_layers=6, removed=(2, 3))), folder)
    with pytest.raises(ModelError, match="uncut"):
        load_adapter(base, folder)
    with pytest.raises(ModelError, match="treated by lora"):
        load_adapter(healed.handle, folder)
    retrained = tiny_handle("llama", seed=5)
    with pytest.raises(ModelError, match="other weights than this model has"):
        load_adapter(prune(retrained, PrunePlan(num_layers=6, removed=(2, 3))), folder)
    renamed = replace(cut, info=replace(cut.info, revision="abc"))
    with pytest.raises(ModelError, match="trained on"):
        load_adapter(renamed, folder)


def test_what_is_no_adapter_of_ours_is_named(trained, folder, tmp_path):
    cut = trained[0]
    with pytest.raises(ModelError, match="no adapter in"):
        load_adapter(cut, tmp_path / "nothing")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"auto_mapping": None}))
    with pytest.raises(ModelError, match="does not say which cut"):
        load_adapter(cut, folder)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(b"cut short")
    with pytest.raises(ModelError, match="weights of the adapter .* cannot be read"):
        load_adapter(cut, folder)


def test_a_folder_that_is_taken_is_refused(trained, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match="is not empty"):
        export_adapter(trained[1].adapter, tmp_path)


def test_the_card_of_an_adapter_on_a_repaired_cut_has_the_command_that_repairs(tmp_path):
    base = shared_handle("llama")
    cut = prune(base, PrunePlan(num_layers=6, removed=(2, 3)))
    tokens, heldout = small_text(base)
    begun = replace(cut, treatments=(Treatment(kind="repair", method="seam_refit", text=tokens.info),))
    healed = heal(begun, tokens, small_recipe(steps=2, objective="next_token"), heldout=heldout)
    assert healed.adapter is not None
    command = "shortviz repair m --start 2 --n 2 --builtin passages/prose"
    card = (export_adapter(healed.adapter, tmp_path / "adapter", command=command) / "README.md").read_text()
    assert f"shortviz repair {Path(base.info.id).name} --start 2 --n 2 --builtin passages/prose --export cut" in card
    assert "as it was treated" in card
    assert "which chose the step" in card
