"""shortviz repair and shortviz shrink: what they print, write and refuse."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from shortviz.cli_session import warn_same_text
from shortviz.records import TextSpec
from tests.unit.conftest import Outcome

SMALL = ("--fit-tokens", "2048", "--max-length", "64", "--window", "64", "--windows", "2")
Run = Callable[..., Outcome]


def test_repair_writes_a_proved_checkpoint_and_its_ledger(checkpoint: str, shortviz: Run, tmp_path: Path) -> None:
    out = tmp_path / "repaired"

    code, printed, _ = shortviz(
        "repair", checkpoint, "--start", "2", "--n", "2", "--method", "seam_refit", *SMALL, "--out", str(out), "--json"
    )

    found = json.loads(printed)
    assert code == 0
    assert found["applied"]
    assert [step["name"] for step in found["ledger"]["steps"]] == ["uncut", "cut", "repaired"]
    assert found["export"]["removed"] == [2, 3]
    assert found["export"]["max_logit_diff"] == 0.0
    assert json.loads((out / "shortviz.json").read_text())["treatments"][0]["method"] == "seam_refit"
    card = (out / "README.md").read_text()
    assert "Nothing was trained after the cut" not in card
    assert "--start 2 --n 2 --method seam_refit" in card


def test_repair_without_a_folder_only_measures(checkpoint: str, shortviz: Run) -> None:
    code, printed, _ = shortviz("repair", checkpoint, "--remove", "2", "--method", "linear_fold", *SMALL)

    assert code == 0
    assert "Ledger of the cut of layer" in printed
    assert "Loss on held-out rows" in printed or "Nothing was changed." in printed
    assert "Wrote" not in printed


def test_shrink_tells_every_step(checkpoint: str, shortviz: Run) -> None:
    code, printed, _ = shortviz("shrink", checkpoint, "--to-layers", "4", *SMALL, "--json")

    found = json.loads(printed)
    assert code == 0
    assert (found["layers"], found["complete"], found["export"]) == (4, True, None)
    assert [len(step["removed"]) for step in found["steps"]] == [1, 2]


REFUSED = [
    (("repair",), "Nothing says what to remove"),
    (("repair", "--remove", "0"), "The cut begins at layer 0"),
    (("repair", "--remove", "2", "--method", "glue"), "There is no repair called 'glue'"),
    (("repair", "--remove", "2", "--fit-tokens", "64"), "--fit-tokens is 64; a repair is fitted on some rows"),
    (("repair", "--remove", "2", "--eval-key", "text"), "--eval-key text names a column of a file"),
    (("repair", "--remove", "2", "--eval-text", "a.txt", "--eval-builtin", "passages"), "both name a text"),
    (("shrink", "--to-layers", "6"), "The model has 6 layers and is to have 6; give 1 to 5."),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[message[:24] for _, message in REFUSED])
def test_bad_input_is_told_in_one_sentence(
    checkpoint: str, shortviz: Run, arguments: tuple[str, ...], message: str
) -> None:
    command, *rest = arguments
    code, printed, err = shortviz(command, checkpoint, *SMALL, *rest)

    assert code == 2
    assert printed == ""
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("fitted", "scored", "warns"),
    [("passages/prose", "passages", True), ("passages", "passages", True), ("passages/prose", "passages/maths", False)],
)
def test_scoring_on_the_text_that_was_fitted_to_is_warned_of(
    capsys: pytest.CaptureFixture[str], fitted: str, scored: str, warns: bool
) -> None:
    warn_same_text(TextSpec(kind="builtin", value=fitted), TextSpec(kind="builtin", value=scored))
    assert ("the same text, so the figures flatter" in capsys.readouterr().err) is warns
