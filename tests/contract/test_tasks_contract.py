"""Every family: choices scored in batches with shared prefixes equal one sequence at a time in float64 log-softmax."""

import pytest
import torch

from shortviz.measure.tasks import open_scorer, score_tasks, task_tokens
from shortviz.model.handle import ModelHandle
from shortviz.model.prune import prune
from shortviz.records.plan import PrunePlan
from shortviz.records.text import TaskRow, TaskRows
from tests.support.families import FAMILIES, build_tiny, handle_of, shared_handle, tiny_handle

OTHER_STATE = {"mamba", "lfm2", "falcon_h1", "minimax"}
"""Families whose cache is more than keys and values."""

QUESTIONS = (
    (
        "Which layer of a deep model changes the least?",
        ("a deep one", "the first", "none", "the last layer"),
        0,
    ),
    ("A block is removed; its boundaries are joined. Who notices?", ("nobody at all", "the next layer"), 1),
    ("Question: what is 2 + 2, said in one digit?\nAnswer: ", ("4", "5", "twenty-two"), 0),
    ("Whose text ends in two blanks  ", ("this one", "that"), 0),
    ("Short", ("er", "est way", " and long"), 2),
)


def task() -> TaskRows:
    rows = tuple(
        TaskRow(where=f"row {i}", context=context, choices=choices, label=label)
        for i, (context, choices, label) in enumerate(QUESTIONS)
    )
    return TaskRows(rows=rows, source="five questions", fingerprint="five")


@torch.inference_mode()
def one_at_a_time(handle: ModelHandle) -> list[list[float]]:
    """The slow path: each choice behind its question in a forward pass of its own, all logits, float64 log-softmax."""
    found = []
    for context, choices, _ in QUESTIONS:
        bare = context.rstrip()
        before = handle.tokenizer(bare)["input_ids"]
        scores = []
        for choice in choices:
            whole = handle.tokenizer(f"{context} {choice}")["input_ids"]
            ids = torch.tensor([whole[:-1]], device=handle.model.device)
            logits = handle.model(input_ids=ids, use_cache=False).logits[0].cpu()
            predicted = logits.double().log_softmax(-1)[len(before) - 1 :]
            scores.append(float(predicted.gather(1, torch.tensor(whole[len(before) :])[:, None]).sum()))
        found.append(scores)
    return found


def fast(handle: ModelHandle, batch_size: int) -> list[list[float]]:
    score = score_tasks(handle, task(), batch_size=batch_size)
    assert [p.question for p in score.predictions] == [0, 1, 2, 3, 4]
    return [list(p.log_likelihoods) for p in score.predictions]


def differences(found: list[list[float]], expected: list[list[float]]) -> float:
    return max(abs(a - b) for one, other in zip(found, expected, strict=True) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("batch_size", [7, 32])
@pytest.mark.parametrize("name", FAMILIES)
def test_choices_score_as_one_sequence_at_a_time_in_float64(name: str, batch_size: int) -> None:
    handle = shared_handle(name)
    assert differences(fast(handle, batch_size), one_at_a_time(handle)) < 2e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_prefixes_are_shared_where_the_cache_is_keys_and_values(name: str) -> None:
    handle = shared_handle(name)
    assert open_scorer(handle, task_tokens(handle, task())).shares == (name not in OTHER_STATE)
    assert not handle.model.get_output_embeddings()._forward_pre_hooks


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "qwen2"])
@pytest.mark.parametrize("removed", [(2,), (3, 4)])
def test_a_pruned_model_scores_as_one_sequence_at_a_time(name: str, removed: tuple[int, ...]) -> None:
    pruned = prune(shared_handle(name), PrunePlan(num_layers=6, removed=removed))
    assert differences(fast(pruned, 32), one_at_a_time(pruned)) < 2e-4
    assert score_tasks(pruned, task()).removed == removed


def test_a_tokenizer_with_bos_puts_it_in_front_of_the_question() -> None:
    handle = tiny_handle("llama", bos=True)
    assert differences(fast(handle, 32), one_at_a_time(handle)) < 2e-4
    assert all(choice.tokens[0] == 257 for q in task_tokens(handle, task()) for choice in q.choices)


def test_what_differs_in_float32_is_rounding() -> None:
    single, double = tiny_handle("llama"), handle_of(build_tiny("llama").double())
    assert differences(fast(double, 32), one_at_a_time(double)) < 1e-6
    assert 1e-7 < differences(fast(single, 32), one_at_a_time(double)) < 1e-3


def test_a_model_of_16_bit_shares_prefixes_too() -> None:
    handle = handle_of(build_tiny("llama", torch.bfloat16))
    assert score_tasks(handle, task()).shared_prefixes
    assert differences(fast(handle, 32), one_at_a_time(handle)) < 0.5
