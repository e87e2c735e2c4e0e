"""The Learn page: each lesson draws, the step is in the address, questions are answered by keyboard."""

from collections.abc import Callable

import pytest

from shortviz.lessons.data import lesson_data
from shortviz.lessons.facts import recovery
from shortviz.lessons.quiz import map_questions
from shortviz.runs.run import example_run
from shortviz.service.service import Service
from shortviz.ui.pages.learn import STEPS
from shortviz.ui.session import state as s
from tests.support.app import App

Start = Callable[..., App]


def learn(app: Start, step: str = STEPS[0]) -> App:
    return app(first_page="", step=step)


def test_the_first_screen_says_what_this_is_and_leads_to_the_lessons_and_the_map(tools: Service, app: Start) -> None:
    first = app(first_page="")
    assert [title.value for title in first.at.title] == ["Which layers of a language model can go?"]
    assert "No model loaded" not in first.words
    assert tools.jobs.jobs() == ()
    assert "1. A layer adds to the stream" in first.click("start_learn").words
    assert "Removes layer" in app(first_page="").click("start_map").words


def test_a_newcomer_sees_the_first_lesson_and_the_way_to_the_map(app: Start) -> None:
    first = learn(app)
    assert "1. A layer adds to the stream" in first.words
    (chart,) = first.at.get("plotly_chart")
    assert "adds the longest vector" in chart.proto.alt
    skipped = first.click("learn_skip")
    assert "Removes layer" in skipped.words


@pytest.mark.parametrize("step", STEPS)
def test_every_lesson_opens_by_its_address_and_starts_no_work(tools: Service, app: Start, step: str) -> None:
    page = learn(app, step)
    assert page.words.count(f"{STEPS.index(step) + 1}. ") >= 1
    assert "Sources: " in page.words
    assert page.errors == []
    assert tools.jobs.jobs() == ()


def test_next_and_back_walk_through_the_lessons(app: Start) -> None:
    page = learn(app)
    seen = []
    for _ in STEPS[1:]:
        page.click("learn_next")
        seen.append(page.state[s.STEP])
    assert seen == list(STEPS[1:])
    assert page.at.button(key="learn_next").disabled
    page.click("learn_back")
    assert page.at.query_params["step"] in (STEPS[-2], [STEPS[-2]])


def test_a_wrong_step_in_the_address_is_passed_over(app: Start) -> None:
    assert "1. A layer adds to the stream" in learn(app, "nonsense").words


def test_an_address_with_a_view_of_the_map_opens_the_map(app: Start) -> None:
    page = learn(app)
    linked = app(first_page="", start="12", n="8")
    assert "Removes layers 12-19 (start 12, n 8)" in linked.words
    assert "Removes" not in page.words


def test_a_question_about_the_map_is_answered_by_typing(app: Start) -> None:
    page = learn(app, "Map")
    run = example_run()
    assert run.distances is not None
    question = map_questions(run.distances, run.model)[0]
    page.at.number_input(key="learn_answer_start").set_value(2)
    page.run()
    page.at.number_input(key="learn_answer_n").set_value(3)
    assert "Not yet: layers 2-4" in info(page.run())
    page.at.number_input(key="learn_answer_start").set_value(question.example.start)
    page.at.number_input(key="learn_answer_n").set_value(question.example.n)
    page.run()
    assert "Right: layers 12-15" in page.words


def test_a_right_answer_leads_on_and_is_there_on_the_way_back(app: Start) -> None:
    page = learn(app, "Map")
    page.at.number_input(key="learn_answer_start").set_value(12)
    page.at.number_input(key="learn_answer_n").set_value(4)
    assert "Right" in page.run().words
    page.click("learn_next_question")
    assert "Right" not in page.words
    assert page.at.number_input(key="learn_answer_n").value is None
    page.click("learn_next").click("learn_back")
    page.at.segmented_control(key="learn_question").set_value(1)
    page.run()
    assert "Right" in page.words
    assert page.at.number_input(key="learn_answer_start").value == 12


def test_the_last_lesson_says_of_loss_and_answers_what_the_data_say(app: Start) -> None:
    words = learn(app, "Limits").words
    data, (ledger, *_) = lesson_data(), example_run().ledgers
    said = recovery(data, ledger)
    assert f"the uncut model answers {said['uncut_right']}" in words.replace("\n", " ")
    assert said["repaired_answers"] in words
    assert said["healed_loss"] in words
    lost = "and lost answers" in words
    assert lost == (said["loss_fell"] and said["given_up"] > said["gained"])


def test_a_block_that_does_not_fit_is_said_in_a_lesson(app: Start) -> None:
    page = learn(app, "Angle")
    page.at.number_input(key="learn_angle_start").set_value(29)
    assert "goes past layer 29" in page.run().words


@pytest.mark.parametrize(("step", "words"), [("Angle", "(start 12, n 4)"), ("Loss", "(start 11, n 1)")])
def test_a_lesson_leads_to_the_map_with_its_block_chosen(app: Start, step: str, words: str) -> None:
    page = learn(app, step).click("learn_real")
    assert words in page.words
    if step == "Loss":
        assert (page.state[s.CRITERION], page.state[s.SCALE]) == ("nll_increase", "value")
        (chart,) = page.at.get("plotly_chart")
        assert "By measured NLL increase" in chart.proto.alt
        assert "log scale" in chart.proto.spec


def test_the_questions_of_the_last_lesson_show_what_each_model_wrote(app: Start) -> None:
    page = learn(app, "Limits")
    page.at.segmented_control(key="learn_kind").set_value("fact")
    page.run()
    (code,) = page.at.code
    assert code.value.startswith("The capital of France is")
    assert "uncut" in code.value


def info(page: App) -> str:
    return "\n".join(str(e.value).replace("\\", "") for e in page.at.info)
