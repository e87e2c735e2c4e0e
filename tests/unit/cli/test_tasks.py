"""`shortviz evaluate --tasks` on a tiny checkpoint."""

import json

import pytest

from shortviz.errors import Stopped
from shortviz.runs.run import load_run
from shortviz.service.spelling import names_file
from tests.support.command import last_line

TEXT = ("--builtin", "passages/prose", "--window", "24", "--windows", "2")
ROWS = [
    {"question": "The sky is", "choices": ["blue", "a fish"], "label": 0},
    {"question": "Two and two are", "choices": ["four", "seven", "green"], "label": "A"},
    {"question": "Water is", "choices": ["dry", "wet"], "label": 1},
]


@pytest.fixture
def questions(question_file):
    return question_file(ROWS)


def test_accuracy_of_both_models_is_printed_with_errors_and_chance(shortviz, checkpoint, questions):
    code, out, err = shortviz("evaluate", checkpoint, "--start", "2", "--n", "1", *TEXT, "--tasks", questions, "--json")
    assert code == 0, err
    found = json.loads(out)["tasks"]
    assert found["questions"] == 3
    assert 0 <= found["accuracy"] <= 1
    assert found["removed"] == [2]
    assert found["base"]["removed"] == []
    assert found["chance"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)
    code, out, _ = shortviz("evaluate", checkpoint, *TEXT, "--tasks", questions, "--task-limit", "2")
    assert code == 0
    assert "Over 2 questions" in out
    assert "tasks" not in json.loads(shortviz("evaluate", checkpoint, *TEXT, "--json")[1])
    code, out, _ = shortviz("evaluate", checkpoint, *TEXT, "--tasks", questions, "--task-limit", "1")
    assert code == 0
    assert "nan" not in out, "one question has no error"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Q", "choices": ["a", "b"]}, "line 4"),
        ({"question": "Q", "choices": ["a", "b"], "label": None}, "the right choice with --label, or remove the row."),
        ({"question": "Q", "choices": "a", "label": 0}, "several columns with one choice each, with --choices."),
        ({"question": "Q", "choices": ["a"], "label": 0}, "line 4"),
        ({"question": "Q", "choices": ["a", ""], "label": 0}, "line 4"),
        ({"question": "Q", "choices": ["a", "b"], "label": 2}, "line 4"),
    ],
)
def test_a_bad_question_is_named_by_its_line(shortviz, checkpoint, questions, row, message):
    with open(questions, "a") as file:
        file.write("\n" + json.dumps(row))
    code, out, err = shortviz("evaluate", checkpoint, *TEXT, "--tasks", questions)
    assert code == 2
    assert out == ""
    assert message in last_line(err)


def test_a_file_that_is_not_there_is_said_so(shortviz, checkpoint):
    code, _, err = shortviz("evaluate", checkpoint, *TEXT, "--tasks", "nowhere.jsonl")
    assert code == 2
    assert "nowhere.jsonl" in last_line(err)


def test_questions_stopped_with_ctrl_c_do_not_lose_the_evaluation(shortviz, checkpoint, questions, monkeypatch):
    def stopped(*_arguments, **_options):
        raise Stopped("Stopped before the first questions were scored; there is no result yet.")

    monkeypatch.setattr("shortviz.measure.tasks.score_tasks", stopped)
    code, out, err = shortviz("evaluate", checkpoint, *TEXT, "--tasks", questions, "--json")
    assert code == 130
    assert json.loads(out)["windows"] == 2
    assert last_line(err) == "Stopped before every question was scored by every model."


def test_the_curve_scores_its_cuts_once_and_keeps_them_in_the_run(shortviz, checkpoint, questions, tmp_path):
    run = str(tmp_path / "run")
    options = (*TEXT, "--tasks", questions, "--strategies", "simple,best measured", "--sizes", "1-2", "--greedy", "2")
    code, out, err = shortviz("curve", checkpoint, *options, "--out", run)
    assert code == 0, err
    assert "Accuracy against layers removed, over 3 questions" in out
    assert "3 questions with each of" in err
    code, out, err = shortviz("curve", run, *options, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert {"simple", "best measured", "greedy"} <= {line["strategy"] for line in found["lines"]}
    assert [] in [task["removed"] for task in found["tasks"]]
    assert "3 questions with each of 0 models" in err
    assert "greedy:" not in err, "greedy removal is kept in the run"
    shown = shortviz("curve", run)[1]
    assert "greedy" in shown
    assert "Accuracy against layers removed" in shown
    saved = shortviz("show", run)[1]
    assert "Greedy removal of single layers, 2 windows of 24 of built-in passages/prose" in saved
    assert "none (uncut)" in saved


def test_a_curve_stopped_among_its_models_keeps_those_that_are_done(
    shortviz, checkpoint, questions, tmp_path, monkeypatch
):
    from shortviz.measure import tasks

    run, score_tasks = tmp_path / "run", tasks.score_tasks
    done = []

    def stop_after_one(handle, rows, *, watch, **options):
        found = score_tasks(handle, rows, watch=watch, **options)
        done.append(found)
        watch.stop.set()
        return found

    monkeypatch.setattr(tasks, "score_tasks", stop_after_one)
    code, _, err = shortviz("curve", checkpoint, *TEXT, "--tasks", questions, "--out", str(run))
    assert code == 130
    assert "what was measured until then is above" in last_line(err)
    assert len(done) == 1
    assert [task.removed for task in load_run(run).tasks] == [()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--strategies", "best"), "There is no strategy 'best' on this curve; choose from best measured"),
        (("--sizes", "9"), "The size 9 is outside 1-5"),
        (("--sizes", "few"), "'few' is not a layer"),
    ],
)
def test_bad_options_of_a_scored_curve_are_one_sentence(shortviz, checkpoint, questions, options, message):
    code, out, err = shortviz("curve", checkpoint, *TEXT, "--tasks", questions, *options)
    assert (code, out) == (2, "")
    assert message in last_line(err)


@pytest.mark.parametrize(
    ("name", "is_file"),
    [("rows.jsonl", True), ("missing.txt", True), ("org/rows", False), ("org/rows-v1.5", False), ("rows", False)],
)
def test_a_data_set_whose_id_ends_in_a_version_is_no_file(name: str, is_file: bool) -> None:
    assert names_file(name) is is_file


def test_a_file_of_questions_has_no_split(shortviz, checkpoint, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "Up?", "choices": ["down", "sky"], "label": 1}\n')
    code, _, err = shortviz("evaluate", checkpoint, "--tasks", str(rows), "--task-split", "test")
    assert code == 2
    assert err.startswith("--task-subset and --task-split belong to a data set;")
