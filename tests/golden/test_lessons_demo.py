"""The numbers that a reader of the lessons can compute again, computed again."""

import contextlib
import io
from typing import TYPE_CHECKING

import pytest

from shortviz.lessons.data import lesson_data
from shortviz.lessons.quiz import angle_lines
from shortviz.records.plan import Block

if TYPE_CHECKING:
    from shortviz.model.handle import ModelHandle

pytestmark = pytest.mark.demo


@pytest.mark.parametrize("block", [Block(start=12, n=4), Block(start=0, n=1), Block(start=20, n=10)])
def test_the_lines_of_the_angle_lesson_print_the_number_of_the_lesson(
    block: Block, demo_handle: "ModelHandle", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shortviz.load", lambda ref: demo_handle)  # loaded once for the session
    sentence = lesson_data().sentence
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(angle_lines(sentence.text, block), {})
    assert float(printed.getvalue()) == pytest.approx(sentence.angle(block), abs=2e-6)


def test_the_uncut_model_still_writes_what_the_lesson_shows(demo_handle: "ModelHandle") -> None:
    from shortviz.measure.generation import continue_text

    data = lesson_data()
    assert continue_text(demo_handle, data.questions[0].prompt, max_new_tokens=12) == data.answers[0].written[0]
