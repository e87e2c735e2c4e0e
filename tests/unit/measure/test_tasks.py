"""score_tasks: shares and their errors, lines to compare with, tokens at the seam, partial results, stop."""

import json
import math
import threading
from itertools import pairwise

import pytest
import torch

from shortviz.errors import NumericsError, Stopped, TextError
from shortviz.measure.tasks import score_tasks, share_and_stderr, task_tokens
from shortviz.progress import Progress, Watch
from shortviz.records.json import to_json
from shortviz.records.text import TaskRow, TaskRows, TaskScore
from tests.support.families import build_tiny, handle_of, shared_handle, tiny_config


def task(*rows: tuple[str, tuple[str, ...], int], delimiter: str = " ") -> TaskRows:
    made = tuple(
        TaskRow(where=f"row {i}", context=context, choices=choices, label=label)
        for i, (context, choices, label) in enumerate(rows)
    )
    return TaskRows(rows=made, source="questions of a test", fingerprint="test", delimiter=delimiter)


MANY = task(
    *(
        (f"Question {i}: how many layers are {'really ' * (i % 5)}needed?", ("some", "all of them"), i % 3 // 2)
        for i in range(30)
    ),
    ("And now for something else:", ("a", "bb", "ccc", "dddd"), 3),
)


def test_accuracy_is_the_share_of_questions_whose_label_is_most_likely() -> None:
    score = score_tasks(shared_handle("llama"), MANY)
    plain, norm = [], []
    for row, found in zip(MANY.rows, score.predictions, strict=True):
        lls = found.log_likelihoods
        per_character = [ll / len(choice) for ll, choice in zip(lls, row.choices, strict=True)]
        assert (found.chosen, found.chosen_norm) == (lls.index(max(lls)), per_character.index(max(per_character)))
        plain.append(found.chosen == row.label)
        norm.append(found.chosen_norm == row.label)
    assert score.accuracy == sum(plain) / 31
    assert score.accuracy_norm == sum(norm) / 31
    assert score.accuracy_stderr == pytest.approx(math.sqrt(score.accuracy * (1 - score.accuracy) / 30))
    assert score.questions == 31
    assert score.complete
    assert score.removed == ()


def test_chance_and_majority_are_those_of_the_scored_questions() -> None:
    score = score_tasks(shared_handle("llama"), MANY)
    assert score.chance == pytest.approx((30 / 2 + 1 / 4) / 31)
    assert score.majority == pytest.approx(20 / 31)


def test_the_standard_error_is_binomial_and_missing_for_one_question() -> None:
    assert share_and_stderr([True, True, False, False]) == (0.5, pytest.approx(math.sqrt(0.25 / 3)))
    share, error = share_and_stderr([True])
    assert share == 1
    assert math.isnan(error)


def test_batches_change_nothing_but_rounding() -> None:
    handle = shared_handle("gpt2")
    scores = [score_tasks(handle, MANY, batch_size=size) for size in (1, 5, 64)]
    for one, other in pairwise(scores):
        for a, b in zip(one.predictions, other.predictions, strict=True):
            assert a.log_likelihoods == pytest.approx(b.log_likelihoods, abs=1e-4)


def test_spaces_that_end_the_question_go_to_the_choice() -> None:
    handle = shared_handle("llama")
    (question,) = task_tokens(handle, task(("ab \n ", ("c", "d"), 0), delimiter=""))
    assert [handle.tokenizer.decode(list(choice.targets)) for choice in question.choices] == [" \n c", " \n d"]
    assert question.prefix == 1, "the last token of the question predicts the first of the choice"


def test_a_question_too_long_for_the_model_loses_its_beginning_and_is_counted() -> None:
    handle = shared_handle("llama")
    rows = task(("x" * 600, ("ab", "c"), 0), ("short", ("ab", "c"), 0))
    long = task_tokens(handle, rows)[0]
    assert [len(choice.tokens) for choice in long.choices] == [512, 512]
    score = score_tasks(handle, rows)
    assert score.truncated == 1
    bare = score_tasks(handle, task(("x" * 511, ("c", "d"), 0)))
    assert bare.truncated == 0
    assert score.predictions[0].log_likelihoods[1] == pytest.approx(bare.predictions[0].log_likelihoods[0], abs=1e-4)


def test_a_choice_that_alone_fills_the_context_is_refused() -> None:
    with pytest.raises(TextError) as caught:
        score_tasks(shared_handle("llama"), task(("a", ("b", "c"), 0), ("a", ("b", "c" * 600), 0)))
    assert str(caught.value) == (
        "Choice 1 of row 1 is 601 tokens long, more than the model's context of 512; remove the row."
    )


def test_progress_counts_questions_and_gives_partial_scores() -> None:
    seen: list[Progress] = []
    partial: list[TaskScore] = []

    def keep(progress: Progress) -> None:
        seen.append(progress)
        assert progress.snapshot is not None
        partial.append(progress.snapshot())

    score = score_tasks(shared_handle("llama"), MANY, batch_size=8, watch=Watch(keep))
    assert [p.done for p in seen] == sorted({p.done for p in seen})
    assert (seen[-1].done, seen[-1].total, seen[-1].unit) == (31, 31, "questions")
    assert [p.questions for p in partial] == [p.done for p in seen]
    assert [p.complete for p in partial] == [False] * (len(seen) - 1) + [True]
    assert partial[-1].predictions == score.predictions


def test_a_stop_keeps_what_was_scored() -> None:
    stop = threading.Event()
    score = score_tasks(shared_handle("llama"), MANY, batch_size=8, watch=Watch(lambda _: stop.set(), stop))
    assert 0 < score.questions < 31
    assert not score.complete
    assert len(score.predictions) == score.questions
    with pytest.raises(Stopped, match=r"^Stopped before the first questions were scored; there is no result yet\.$"):
        score_tasks(shared_handle("llama"), MANY, watch=Watch(stop=stop))


def test_short_prefixes_are_not_shared_and_no_sharing_is_needed() -> None:
    score = score_tasks(shared_handle("llama"), task(("a", ("b", "c"), 0)))
    assert not score.shared_prefixes
    assert math.isnan(score.accuracy_stderr)


def test_nan_is_refused_with_the_layer_named() -> None:
    model = build_tiny("llama", config=tiny_config("llama"))
    with torch.no_grad():
        model.model.layers[3].mlp.down_proj.weight.fill_(math.nan)
    with pytest.raises(NumericsError, match=r"^Layer 3 of tiny gives NaN or Inf in float32; "):
        score_tasks(handle_of(model), MANY)


def test_the_json_of_a_score_is_plain_and_complete() -> None:
    score = score_tasks(shared_handle("llama"), task(("Is it?", ("yes", "no"), 1)))
    found = json.loads(to_json(score))
    assert set(found) == set(TaskScore.__dataclass_fields__)
    assert found["accuracy_stderr"] is None
    assert found["chance"] == 0.5
    assert found["predictions"] == [
        {
            "question": 0,
            "label": 1,
            "chosen": score.predictions[0].chosen,
            "chosen_norm": score.predictions[0].chosen_norm,
            "log_likelihoods": list(score.predictions[0].log_likelihoods),
        }
    ]


def test_spellings_of_special_tokens_are_parsed_as_in_lm_eval_and_counted() -> None:
    rows = task(("What ends, </s> or", ("</s>", "nothing"), 0))
    handle = shared_handle("llama")
    (question,) = task_tokens(handle, rows)
    assert question.choices[0].targets == (*handle.tokenizer(" ")["input_ids"], handle.tokenizer.eos_token_id)
    score = score_tasks(handle, rows)
    assert score.source == "questions of a test; 2 spellings of special tokens parsed as tokens, as lm_eval does"
    assert score.fingerprint == rows.fingerprint
