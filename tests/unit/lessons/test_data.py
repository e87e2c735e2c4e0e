"""The lessons' data, questions and pictures: what they say follows from the bundled numbers."""

import math
import runpy

import numpy as np
import pytest

from shortviz.analysis.curve import curve_from_map
from shortviz.lessons import figures
from shortviz.lessons.data import KINDS, LessonData, lesson_data
from shortviz.lessons.quiz import CRITERION, map_questions, verdict
from shortviz.records.plan import Block
from shortviz.records.run import Run
from shortviz.runs.run import example_run
from tests.support.ledgers import fixture_ledger
from tests.support.paths import ROOT
from tests.support.records import fixture_distances, fixture_model


@pytest.fixture(scope="module")
def data() -> LessonData:
    return lesson_data()


@pytest.fixture(scope="module")
def run() -> Run:
    return example_run()


def test_the_lesson_data_are_of_the_model_and_text_of_the_bundled_run(data: LessonData, run: Run) -> None:
    assert data.model == run.model.id
    assert data.num_layers == run.model.num_layers
    assert data.text == run.text
    assert {"torch", "transformers", "shortviz"} <= set(data.versions)


def test_the_angles_at_the_last_token_are_those_of_the_bundled_map(data: LessonData, run: Run) -> None:
    assert run.distances is not None
    grid, last = run.distances.criteria["angular_last"], data.positions[-1].grid
    inside = ~np.isnan(grid.mean)
    np.testing.assert_allclose(last.mean[inside], grid.mean[inside], rtol=2e-3)
    np.testing.assert_allclose(last.stderr[inside], grid.stderr[inside], rtol=2e-2, atol=1e-6)


def test_positions_follow_each_other_without_a_gap(data: LessonData) -> None:
    assert data.positions[0].first == 0
    assert all(b.first == a.last + 1 for a, b in zip(data.positions, data.positions[1:], strict=False))
    assert data.positions[-1].last + 1 == data.text.max_length


def test_norms_and_dot_products_of_the_sentence_belong_together(data: LessonData) -> None:
    sentence = data.sentence
    np.testing.assert_allclose(np.sqrt(np.diag(sentence.gram)), sentence.norms[-1], rtol=1e-4)
    step = sentence.gram.diagonal()[1:] + sentence.gram.diagonal()[:-1] - 2 * np.diag(sentence.gram, 1)
    np.testing.assert_allclose(np.sqrt(step), sentence.updates[-1], rtol=1e-3)
    assert "".join(sentence.tokens) == sentence.text


def test_the_angle_is_what_the_formula_gives(data: LessonData) -> None:
    block = Block(start=12, n=4)
    dot, one, other = (data.sentence.gram[i, j] for i, j in ((12, 16), (12, 12), (16, 16)))
    assert data.sentence.angle(block) == pytest.approx(math.acos(dot / math.sqrt(one * other)) / math.pi, abs=1e-12)


def test_every_model_answered_every_question_of_each_kind(data: LessonData) -> None:
    assert data.answers[0].step == "uncut"
    assert all(len(a.written) == len(data.questions) for a in data.answers)
    assert {data.right(data.answers[0], kind)[1] for kind in KINDS} == {12}
    assert any(not q.right(w) for q, w in zip(data.questions, data.answers[0].written, strict=True))


@pytest.mark.parametrize(
    ("written", "right"), [(" Paris.", True), ("paris", True), (" It is Paris", False), ("", False)]
)
def test_an_answer_is_right_when_it_begins_with_the_expected_words(data: LessonData, written: str, right: bool) -> None:
    assert data.questions[0].right(written) is right


def test_every_map_question_accepts_its_example_and_refuses_another_block(run: Run) -> None:
    assert run.distances is not None
    questions = map_questions(run.distances, run.model)
    assert len(questions) == 4
    grid = run.distances.criteria[CRITERION]
    for question in questions:
        assert verdict(question, question.example, grid)[0]
        wrong, says = verdict(question, Block(start=1, n=2), grid)
        assert not wrong
        assert says.startswith("Not yet: layers 1-2")
    assert "row is right" in verdict(questions[1], Block(start=0, n=8), grid)[1]


def test_map_questions_fit_small_models_and_models_without_a_sink() -> None:
    distances = fixture_distances(5)
    questions = map_questions(distances, fixture_model(5))
    assert len(questions) == 4
    assert all(q.right(q.example.check(5)) for q in questions)


def test_every_picture_of_the_lessons_states_its_finding(data: LessonData, run: Run) -> None:
    assert run.losses is not None
    sentence = data.sentence
    first = figures.stream_alt(sentence.norms[0].tolist(), sentence.updates[0].tolist())
    assert "Layer 11 adds the longest vector" in first
    block = Block(start=12, n=4)
    assert f"{sentence.angle(block):.4f} π" in figures.angle_alt(sentence, block)
    assert "which is the last token" in figures.positions_alt(data.positions, block)
    assert "fact" in figures.curve_alt(data)
    assert figures.answers_alt(data, "copy").startswith("Of 12 copy questions are right: ")
    curve = curve_from_map(run.losses, run.distances, run.model)
    assert len(figures.curve_figure(data, curve, 2).data) == len(KINDS) + 1


def test_the_arrows_of_the_angle_have_their_true_lengths_and_angle(data: LessonData) -> None:
    block = Block(start=3, n=20)
    one, other = figures.angle_figure(data.sentence, block).data[:2]
    assert math.hypot(one.x[1], one.y[1]) == pytest.approx(data.sentence.norms[-1][3], rel=1e-4)
    assert math.hypot(other.x[1], other.y[1]) == pytest.approx(data.sentence.norms[-1][23], rel=1e-4)
    assert math.atan2(other.y[1], other.x[1]) / math.pi == pytest.approx(data.sentence.angle(block))


def test_the_picture_of_a_ledger_has_a_bar_for_every_step() -> None:
    ledger = fixture_ledger()
    (bars,) = figures.ledger_figure(ledger).data
    assert [name.replace("<br>", " ") for name in bars.x] == [step.label for step in ledger.steps]
    assert "won back" in figures.ledger_alt(ledger)


def test_the_numbers_of_the_teachers_sheet_are_those_of_the_bundled_data() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "make_teaching_sheet.py"))
    written = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
    assert written == tool["sheet"](), "run tools/make_teaching_sheet.py"
