"""`shortviz evaluate` and `prune` as a gate: exit codes, one sentence, and no folder where a limit is not held."""

import json

import pytest

from shortviz.records.measured import Gate
from shortviz.records.model import ModelRef
from shortviz.records.plan import Removal
from shortviz.records.text import TextSpec, WindowSpec
from shortviz.service.execute import execute, new_service
from shortviz.service.place import Place
from shortviz.service.requests import EvaluateRequest, ExportRequest, RepairRequest
from tests.support.command import last_line

TEXT = ("--builtin", "passages/prose", "--window", "24", "--windows", "3")
CUT = ("--start", "2", "--n", "2")
ROWS = [
    {"question": "The sky is", "choices": ["blue", "a fish"], "label": 0},
    {"question": "Two and two are", "choices": ["four", "seven"], "label": 0},
    {"question": "Water is", "choices": ["dry", "wet"], "label": 1},
]


@pytest.fixture
def questions(question_file):
    return question_file(ROWS)


def test_evaluate_prints_its_numbers_and_ends_with_3_where_the_limit_is_not_held(shortviz, checkpoint):
    command = ("evaluate", checkpoint, *CUT, *TEXT)
    code, out, err = shortviz(*command, "--max-nll-increase", "100", "--json")
    assert code == 0, err
    found = json.loads(out)
    check = found["gate"]["checks"][0]
    assert found["gate"]["held"] is True
    assert check["estimate"] == found["nll_increase"]
    assert check["end"] == pytest.approx(found["nll_increase"] + 2 * found["nll_increase_stderr"])
    assert check["held"] is True
    below = (found["nll_increase"] + check["end"]) / 2  # the estimate keeps it, the end of the interval does not
    code, out, err = shortviz(*command, "--max-nll-increase", str(max(below, 0)), "--json")
    assert code == 3
    assert json.loads(out)["gate"]["held"] is False
    assert last_line(err).startswith("The gate is not held: the NLL increase is ")
    assert "gate" not in json.loads(shortviz(*command, "--json")[1])


@pytest.mark.parametrize("way", [(), ("--stream",), ("--archive",)])
def test_prune_judges_before_it_writes(shortviz, checkpoint, tmp_path, way):
    folder = tmp_path / "cut"
    command = ("prune", checkpoint, *CUT, *TEXT, *way, "--out", str(folder))
    before = sorted(tmp_path.iterdir())
    code, out, err = shortviz(*command, "--max-nll-increase", "0", "--json")
    assert code == 3
    assert json.loads(out)["gate"]["held"] is False
    assert last_line(err).endswith("; nothing was written.")
    assert sorted(tmp_path.iterdir()) == before, "nothing is left behind"
    code, out, err = shortviz(*command, "--max-nll-increase", "100", "--json")
    assert code == 0, err
    assert json.loads(out)["gate"]["held"] is True
    assert folder.exists() or folder.with_name("cut.zip").exists()


def test_prune_prints_the_shape_of_the_design_and_what_was_chosen(shortviz, checkpoint, tmp_path):
    code, out, err = shortviz("prune", checkpoint, *CUT, "--out", str(tmp_path / "cut"), "--json")
    assert code == 0, err
    assert list(json.loads(out)) == [
        "folder", "removed", "kept", "parameters", "bytes", "files", "max_logit_diff", "generation_equal", "seconds",
        "notes", "dtypes",
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["evaluate", "prune"])
def test_questions_are_a_gate_too(shortviz, checkpoint, questions, tmp_path, command):
    out = ("--out", str(tmp_path / "cut")) if command == "prune" else TEXT
    asked = (command, checkpoint, *CUT, *out, "--tasks", questions, "--json")
    code, said, err = shortviz(*asked, "--min-accuracy", "1")
    assert code == 3
    assert json.loads(said)["gate"]["checks"][0]["name"] == "min_accuracy"
    assert "not shown to be at least 100.0 %" in last_line(err)
    assert not (tmp_path / "cut").exists()
    code, said, err = shortviz(*asked, "--min-accuracy", "0")
    check = json.loads(said)["gate"]["checks"][0]
    assert code == (0 if check["end"] >= 0 else 3), err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--max-nll-increase", "-1"), "--max-nll-increase is -1.0; give a number of nats from 0 up."),
        (("--max-nll-increase", "nan"), "--max-nll-increase is nan; give a number of nats from 0 up."),
        (("--min-accuracy", "0.5"), "--min-accuracy is a share of questions, and none are asked; give tasks too."),
        (("--min-accuracy", "40", "--tasks", "x.jsonl"), "--min-accuracy is 40.0; give a share from 0 to 1"),
        (("--max-nll-increase", "1", "--windows", "1"), "--windows is 1, and one window has no error"),
        (("--max-nll-increase", "1", "--text", "nowhere.txt"), "nowhere.txt"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["evaluate", "prune"])
def test_what_cannot_be_judged_is_refused_before_any_work(shortviz, checkpoint, tmp_path, command, options, words):
    out = ("--out", str(tmp_path / "cut")) if command == "prune" else ()
    code, said, err = shortviz(command, checkpoint, *CUT, *options, *out)
    assert (code, said) == (2, "")
    assert words in last_line(err)
    assert not (tmp_path / "cut").exists()


def test_the_repaired_model_is_judged_where_it_is_the_one_that_is_written(checkpoint, tmp_path):
    text, windows = TextSpec(kind="builtin", value="passages/prose"), WindowSpec(window=24, windows=4)
    ref, cut, service, place = ModelRef(id=checkpoint), Removal(layers=(2, 3)), new_service(), Place(tmp_path / "run")
    asked = RepairRequest(model=ref, removal=cut, evaluation=text, windows=windows, method="scale", fit_tokens=512)
    made = execute(asked, service=service, place=place)
    assert made.applied
    rises = {}
    for name, methods in (("cut", ()), (made.ledger.steps[-1].name, made.methods)):
        asked = ExportRequest(
            model=ref, removal=cut, methods=methods, folder=str(tmp_path / name), stream=False,
            gate=Gate(max_nll_increase=100), text=text, windows=windows, anyway=True,
        )  # fmt: skip
        found = execute(asked, service=service, place=place)
        rises[name] = found.gate.checks[0].estimate
        assert rises[name] == pytest.approx(made.ledger.step(name).evaluation.nll_increase, abs=1e-6)
    assert len(set(rises.values())) == 2, "they are two models"


def test_a_model_that_is_cut_already_has_nothing_beside_it_to_be_judged_by(shortviz, checkpoint):
    code, out, err = shortviz("evaluate", checkpoint, *TEXT, "--max-nll-increase", "1")
    assert (code, out) == (2, "")
    assert "is against the uncut model" in last_line(err)
    assert EvaluateRequest(model=ModelRef(id=checkpoint)).gate == Gate()
