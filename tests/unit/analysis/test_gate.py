"""A gate is held only where the end of the interval is within the limit."""

import math

import pytest

from shortviz.analysis.gate import judge, require, verdict_words
from shortviz.errors import FieldError, GateError
from shortviz.records.measured import Evaluation, Gate, Score
from shortviz.records.model import ModelRef
from shortviz.records.plan import Removal
from shortviz.records.text import TaskScore, TaskSpec, TextInfo, TextSpec, WindowSpec
from shortviz.service.requests import EvaluateRequest, ExportRequest

DEMO, CUT = ModelRef(id="demo"), Removal(layers=(1,))
TASK = TaskSpec(kind="dataset", value="org/quiz")


def evaluation(rise: float, error: float) -> Evaluation:
    score = Score(
        nll=3.0, nll_stderr=0.1, tokens=10, windows=2, parameters=1, bytes=1, forward_seconds=1.0,
        cache_bytes_per_token=1,
    )  # fmt: skip
    text = TextInfo(source="text", rows=2, tokens=10, fingerprint="f")
    return Evaluation(score=score, base=score, text=text, removed=(1,), nll_increase=rise, nll_increase_stderr=error)


def answers(right: int, questions: int) -> TaskScore:
    share = right / questions
    error = math.sqrt(share * (1 - share) / (questions - 1)) if questions > 1 else math.nan
    return TaskScore(
        accuracy=share, accuracy_stderr=error, accuracy_norm=share, accuracy_norm_stderr=error, questions=questions,
        chance=0.5, majority=0.5, source="rows", fingerprint="q",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rise", "error", "end", "held"),
    [
        (0.25, 0.125, 0.5, True),  # the end is the limit itself
        (0.25, 0.1251, 0.5002, False),
        (0.4, 0.2, 0.8, False),  # the estimate is below the limit, the end is not
        (-0.1, 0.0, -0.1, True),
        (0.1, math.nan, math.nan, False),
        (math.nan, math.nan, math.nan, False),
        (math.inf, math.nan, math.nan, False),
        (-math.inf, 0.1, -math.inf, False),
    ],
)
def test_an_increase_is_judged_two_errors_above(rise, error, end, held) -> None:
    verdict = judge(Gate(max_nll_increase=0.5), evaluation(rise, error), None)
    assert verdict.held is held
    assert verdict.checks[0].end == pytest.approx(end, nan_ok=True)


@pytest.mark.parametrize(
    ("right", "questions", "end", "held"),
    [
        (50, 100, 0.5 - 2 * math.sqrt(0.25 / 99), False),
        (70, 100, 0.7 - 2 * math.sqrt(0.21 / 99), True),
        (5, 5, 5 / 9, True),
        (1, 1, math.nan, False),
        (0, 5, 0 - 4 / 9, False),
    ],
)
def test_an_accuracy_is_judged_two_errors_below(right, questions, end, held) -> None:
    verdict = judge(Gate(min_accuracy=0.5), None, answers(right, questions))
    assert verdict.held is held
    assert verdict.checks[0].end == pytest.approx(end, nan_ok=True)


def test_all_right_of_few_questions_is_no_proof_of_much() -> None:
    assert not judge(Gate(min_accuracy=0.9), None, answers(5, 5)).held


@pytest.mark.parametrize("questions", [2, 3, 10, 100, 1000])
def test_one_more_right_answer_never_gives_a_worse_end(questions: int) -> None:
    """From half of them on; without a floor 99 of 100 end higher than 100 of 100."""
    ends = [
        judge(Gate(min_accuracy=0.9), None, answers(right, questions)).checks[0].end
        for right in range(questions // 2, questions + 1)
    ]
    assert ends == sorted(ends)
    assert ends[-1] == pytest.approx(questions / (questions + 4))


def test_every_limit_must_be_held_and_the_sentence_names_those_that_are_not() -> None:
    verdict = judge(Gate(max_nll_increase=0.5, min_accuracy=0.9), evaluation(0.1, 0.1), answers(50, 100))
    assert not verdict.held
    words = verdict_words(verdict)
    assert words == (
        "The gate is not held: the accuracy is 50.0 ± 5.0 %, with two errors 39.9 %, not shown to be at least 90.0 % "
        "(min_accuracy)."
    )
    with pytest.raises(GateError, match=r"\(min_accuracy\); nothing was written\.$") as raised:
        require(verdict, "; nothing was written")
    assert raised.value.verdict is verdict


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_an_increase_that_cannot_be_a_limit_is_refused(value) -> None:
    with pytest.raises(FieldError, match="max_nll_increase is"):
        Gate(max_nll_increase=value)


@pytest.mark.parametrize("value", [-0.1, 1.01, math.nan, 40])
def test_an_accuracy_that_cannot_be_a_limit_is_refused(value) -> None:
    with pytest.raises(FieldError, match="min_accuracy is"):
        Gate(min_accuracy=value)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"gate": Gate(min_accuracy=0.5)}, "none are asked"),
        ({"gate": Gate(max_nll_increase=0.5), "windows": WindowSpec(windows=1)}, "windows is 1"),
        ({"gate": Gate(max_nll_increase=0.5), "removal": None}, "against the uncut model"),
    ],
)
def test_a_request_that_cannot_be_judged_is_refused(asked, words) -> None:
    with pytest.raises(FieldError, match=words):
        EvaluateRequest(**({"model": DEMO, "removal": CUT} | asked))
    with pytest.raises(FieldError, match=words):
        ExportRequest(**({"model": DEMO, "removal": CUT, "folder": "out"} | asked))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"text": TextSpec(kind="builtin", value="passages/prose")}, "max_nll_increase is not given"),
        ({"windows": WindowSpec(windows=3)}, "max_nll_increase is not given"),
        ({"task": TASK}, "min_accuracy is not given"),
        ({"gate": Gate(max_nll_increase=0.5), "adapter_only": True}, "adapter_only writes no model"),
    ],
)
def test_an_export_is_not_told_to_judge_by_nothing(asked, words) -> None:
    with pytest.raises(FieldError, match=words):
        ExportRequest(model=DEMO, removal=CUT, folder="out", **asked)
