"""Questions in the inspector and on the curve, and greedy removal on the page."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from shortviz.service.service import Service
from shortviz.ui.session import state as s
from tests.support.app import ROWS, App, colour, view


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ROWS))
    return file


def choose(page: App, file: Path, columns: tuple[str, str], form: str = "inspector") -> App:
    page.at.text_input(key=f"{form}_task_path").set_value(str(file))
    page.at.text_input(key=f"{form}_question").set_value(columns[0])
    page.at.text_input(key=f"{form}_choices").set_value(columns[1])
    return page.run().click(f"{form}_use")


def test_questions_with_the_wrong_columns_are_refused_in_a_sentence(loaded: App, questions: Path) -> None:
    page = choose(loaded.page("map"), questions, ("question", "choices"))
    assert "There is no column 'question' in line 1" in page.errors[0]
    assert "Choose one of them with Column: question, Choices and Right choice." in page.errors[0]
    assert s.TASK not in page.state


def test_the_chosen_block_is_scored_beside_the_uncut_model_once(measured: App, tools: Service, questions: Path) -> None:
    page = choose(measured, questions, ("goal", "sol1, sol2"))
    assert "Chosen: 3 questions of file questions.jsonl, columns goal, sol1, sol2, label; chance 50.0 %" in page.words
    page.click("score_block")
    job = page.finish("tasks")
    assert (job.state, job.result) == ("done", 2), job.error
    assert "Accuracy, uncut → cut" in page.words
    assert "always the most frequent label 66.7 %" in page.words
    (run,) = [tools.runs.get(p.name) for p in tools.runs.folder.glob("tiny-llama-*")]
    assert run is not None
    assert [task.removed == () for task in run.tasks] == [True, False]
    start = page.number("start")
    start.set_value(0 if start.value else 1)
    page.run().click("score_block")
    assert page.finish("tasks").result == 1, "the uncut model is known"


def test_greedy_removal_and_accuracies_are_run_from_the_curve_kept_and_drawn(
    measured: App, tools: Service, questions: Path
) -> None:
    page = colour(measured, "nll_increase")
    page.click("measure_button")
    page.finish("losses")
    view(page, "Curve")
    page.at.number_input(key="greedy_layers").set_value(2)
    page.run().click("start_greedy")
    assert page.finish("curve").state == "done"
    (chart,) = page.at.get("plotly_chart")
    assert "greedy scattered layers" in chart.proto.spec
    (run,) = [tools.runs.get(p.name) for p in tools.runs.folder.glob("tiny-llama-*")]
    assert run is not None
    assert run.greedy is not None
    assert [point.n for point in run.greedy.line.points] == [0, 1, 2]
    page.at.segmented_control(key="curve_axis").set_value("accuracy")
    assert "No cut on this curve was scored yet" in page.run().words
    choose(page, questions, ("goal", "sol1, sol2"), form="curve")
    page.at.text_input(key="curve_sizes").set_value("1, 2")
    page.run()
    assert "3 questions with each of 3 models that have no score yet" in page.words
    page.click("score_curve")
    assert page.finish("tasks").result == 3
    (chart,) = page.at.get("plotly_chart")
    drawn = json.loads(chart.proto.spec)
    assert drawn["data"][0]["x"] == [0, 1, 2]
    assert "chance" in json.dumps(drawn["layout"]["annotations"])
    assert "Over 3 questions of file questions.jsonl" in chart.proto.alt


def test_greedy_removal_on_another_text_than_the_map_is_refused(measured: App) -> None:
    from shortviz.records.text import TextSpec

    page = colour(measured, "nll_increase")
    page.click("measure_button")
    page.finish("losses")
    page.state[s.EVALUATION] = TextSpec(kind="builtin", value="passages/code")
    view(page, "Curve").click("start_greedy")
    job = page.finish("curve")
    assert job.state == "failed"
    assert "choose that text again, or measure the map anew" in page.errors[0]


def name_dataset(page: App, dataset: str, choices: str = "sol1, sol2", split: str = "train") -> App:
    page.at.segmented_control(key="inspector_task_source").set_value("dataset")
    page.run()
    page.at.text_input(key="inspector_task_dataset").set_value(dataset)
    page.at.text_input(key="inspector_task_split").set_value(split)
    page.at.text_input(key="inspector_question").set_value("goal")
    page.at.text_input(key="inspector_choices").set_value(choices)
    return page.run().click("inspector_use")


def test_questions_of_a_data_set_are_fetched_in_a_job_and_scored(
    measured: App, tools: Service, questions: Path
) -> None:
    folder = questions.parent / "rows"
    folder.mkdir()
    questions.rename(folder / "train.jsonl")
    page = name_dataset(measured, str(folder))
    job = page.finish("questions")
    assert (job.state, job.result) == ("done", 3), job.error
    assert f"Chosen: 3 questions of data set {folder}, split train, columns goal, sol1, sol2, label" in page.words
    page.click("score_block")
    assert page.finish("tasks").state == "done"
    assert "Accuracy, uncut → cut" in page.words


def test_a_data_set_that_cannot_be_read_is_told_with_the_names_of_the_form(measured: App, questions: Path) -> None:
    folder = questions.parent / "rows"
    folder.mkdir()
    questions.rename(folder / "train.jsonl")
    page = name_dataset(measured, str(folder), split="test")
    assert page.finish("questions").state == "failed"
    assert any("has no split 'test'; choose one with Split" in error for error in page.errors), page.errors
    page = name_dataset(page, str(folder), choices="options")
    assert page.finish("questions").state == "failed"
    assert any("no column 'options'" in error and "with Column: question" in error for error in page.errors), (
        page.errors
    )
    assert not [button for button in page.at.button if button.key == "score_block"]


def test_a_data_set_waits_for_a_model(app: Callable[..., App]) -> None:
    page = app()
    page.at.segmented_control(key="inspector_task_source").set_value("dataset")
    page.run()
    page.at.text_input(key="inspector_task_dataset").set_value("org/rows")
    page.run()
    assert page.at.button(key="inspector_use").disabled
    assert page.at.button(key="inspector_use").help.startswith("Load a model first")
