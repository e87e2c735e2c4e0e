"""The lessons' Markdown: read, filled with values, and what it says of repair and healing follows from the data."""

from dataclasses import replace

import pytest
from jinja2 import UndefinedError

from shortviz.lessons.course import TERMS, course, read_lesson, render, term
from shortviz.lessons.data import LessonData, lesson_data
from shortviz.lessons.facts import facts, recovery
from shortviz.runs.run import example_run

LIMITS = "\n".join(piece for kind, piece in course()["Limits"].pieces if kind == "text")


def said(data: LessonData) -> str:
    run = example_run()
    return render(LIMITS, {**facts(run, data), **recovery(data, run.ledgers[0])})


def answering(data: LessonData, step: str, right: int) -> LessonData:
    """Return the data with so many right answers, the first ones, in one treated model of the bundled cut."""
    removed = example_run().ledgers[0].removed
    written = tuple(q.expected if i < right else "?" for i, q in enumerate(data.questions))
    changed = [replace(a, written=written) if (a.step, a.removed) == (step, removed) else a for a in data.answers]
    return replace(data, answers=tuple(changed))


def test_the_lessons_are_the_eight_in_order() -> None:
    assert list(course()) == ["Stream", "Angle", "Map", "Last token", "Loss", "Curve", "Healing", "Limits"]
    assert all(lesson.title and lesson.sources.startswith("[") for lesson in course().values())


def test_a_lesson_is_text_and_controls_in_their_order() -> None:
    lesson = read_lesson("---\nname: A\ntitle: B\nfigure: c\nsources: d\n---\nOne.\n\n[control: x]\n\nTwo {{ y }}.\n")
    assert lesson.pieces == (("text", "One."), ("control", "x"), ("text", "Two {{ y }}."))
    assert render("Two {{ y }}.", {"y": 3}) == "Two 3."
    with pytest.raises(UndefinedError):
        render("{{ missing }}", {})


def test_a_term_explains_itself_on_hover() -> None:
    assert term("nats", "a nat") == f'<abbr title="{TERMS["nats"]}">a nat</abbr>'


def test_the_shares_of_answers_are_counted_from_the_answers() -> None:
    data, (ledger, *_) = lesson_data(), example_run().ledgers
    found = recovery(data, ledger)
    uncut, cut, repaired, healed = (found[f"{name}_right"] for name in ("uncut", "cut", "repaired", "healed"))
    assert found["repaired_answers"].startswith(f"{100 * (repaired - cut) / (uncut - cut):.0f}")
    assert found["healed_answers"].startswith(f"{100 * (healed - cut) / (uncut - cut):.0f}")
    assert found["gained"] - found["given_up"] == healed - repaired


def test_the_sentence_on_healing_follows_the_data() -> None:
    data = lesson_data()
    fewer = said(answering(answering(data, "repaired", 30), "healed", 10))
    assert "and lost answers" in fewer
    assert "Chance hardly explains that" in fewer
    more = said(answering(answering(data, "repaired", 10), "healed", 30))
    assert "brought answers" in more
    assert "lost answers**" not in more
    same = said(answering(answering(data, "repaired", 10), "healed", 10))
    assert "0 answers came and 0 went" in same
