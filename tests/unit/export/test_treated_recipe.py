"""The card's command makes a repaired, healed or shrunk model again: it is run, and every weight is compared."""

import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shortviz.export.recipes import recipe_of
from shortviz.records.ledger import Treatment
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block, PrunePlan, Removal
from shortviz.records.text import TextInfo, TextSpec
from shortviz.service.requests import RepairRequest, ShrinkRequest
from shortviz.service.treat import command_of
from tests.support.command import Outcome
from tests.support.records import fixture_model

WINDOWS = ("--window", "32", "--windows", "2")
TEXT = ("--builtin", "passages/prose", "--limit", "12", "--eval-builtin", "passages/maths")
CUT = ("--start", "2", "--n", "2")
RECIPE = (
    *("--steps", "3", "--warmup-steps", "1", "--length", "32", "--train-batch", "2", "--eval-every", "1"),
    *("--rank", "2", "--alpha", "3", "--learning-rate", "0.01", "--seed", "5", "--last-layers", "1"),
)
MADE = {
    "repaired": ("repair", *CUT, "--fit-tokens", "1024", "--max-length", "64", "--batch-size", "3"),
    "repaired-then-healed": ("heal", *CUT, "--repair", "linear_fold", "--max-length", "48", *RECIPE),
    "partial": ("heal", *CUT, "--method", "partial", "--objective", "mixed", "--temperature", "2.0", *RECIPE),
    "shrunk": ("shrink", "--to-layers", "4", "--fit-tokens", "1024", "--max-length", "64", "--order", "first"),
}


@pytest.mark.parametrize("name", list(MADE))
def test_the_command_of_the_card_makes_the_same_weights(
    name: str, checkpoint: str, shortviz: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, *options = MADE[name]
    code, _, err = shortviz(
        command, checkpoint, *options, *TEXT, *WINDOWS, "--anyway", "--export", str(tmp_path / name)
    )
    assert code == 0, err
    card = (tmp_path / name / "README.md").read_text()
    (line,) = re.findall(r"^shortviz .*$", card.partition("## How it was made")[2], flags=re.MULTILINE)
    assert "--start 2 --n 2" in line or name == "shrunk"
    place = tmp_path / "elsewhere"
    place.mkdir()
    (place / Path(checkpoint).name).symlink_to(checkpoint)
    monkeypatch.chdir(place)

    code, _, err = shortviz(*shlex.split(line)[1:])

    assert code == 0, err
    made, again = (load_file(folder / "model.safetensors") for folder in (tmp_path / name, place / name))
    assert made.keys() == again.keys()
    assert all(torch.equal(made[key], again[key]) for key in made)
    uncut = load_file(Path(checkpoint) / "model.safetensors")
    own = sum(
        not any(torch.equal(weight, old) for old in uncut.values() if old.shape == weight.shape)
        for weight in made.values()
    )
    assert own, "something was repaired or learned that the command could get wrong"


def test_what_no_command_repeats_is_said() -> None:
    plan = PrunePlan(num_layers=6, removed=(2, 3))
    info = TextInfo(source="pasted text", rows=4, tokens=1024, fingerprint="x", max_length=256)
    repaired = Treatment(kind="repair", method="seam_refit", settings={"batch_size": 8}, text=info)
    asked = RepairRequest(
        model=ModelRef(id="m"), removal=Removal(block=Block(start=2, n=2)), fit_tokens=1024,
        text=TextSpec(kind="paste", value="secret words"), evaluation=TextSpec(kind="paste", value="more"),
    )  # fmt: skip
    command = command_of(asked, replace(fixture_model(6), id="m", dtype="auto"))
    pasted = recipe_of("m", plan, [repaired], command, folder="f")
    assert pasted.notes == ("Add the text (pasted text, 1,024 tokens), e.g. as `--text FILE`.",)
    assert pasted.command == "shortviz repair m --start 2 --n 2 --fit-tokens 1024 --export f"
    assert (
        "reads the text's file" in recipe_of("m", plan, [repaired], f"{command} --text c4.jsonl", folder="f").notes[0]
    )
    healed = Treatment(kind="heal", method="lora", settings={"rank": 4}, text=replace(info, source="file other.txt"))
    unknown = recipe_of("m", plan, [repaired, healed], "", folder="f")
    assert not unknown.whole
    assert unknown.command == "shortviz prune m --start 2 --n 2 --out f"
    stopped = replace(healed, note="Stopped after 3 of 6 steps; those of step 2 are kept.")
    assert "may keep a later one" in recipe_of("m", plan, [stopped], "shortviz heal m", folder="f").notes[-1]
    assert recipe_of("m", plan, [], "", folder="f").command == "shortviz prune m --start 2 --n 2 --out f"
    chosen_on_pasted = ShrinkRequest(model=ModelRef(id="m"), to_layers=4, evaluation=asked.evaluation)
    assert command_of(chosen_on_pasted, fixture_model(6)) == ""
