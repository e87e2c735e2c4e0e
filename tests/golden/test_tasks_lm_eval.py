"""Task accuracy equals lm_eval's own, question by question, for the same exported checkpoints and a local file."""

import json
from pathlib import Path
from typing import Any

import pytest

from shortviz.measure.tasks import score_tasks
from shortviz.model.handle import ModelHandle
from shortviz.model.prune import prune
from shortviz.records.plan import PrunePlan
from shortviz.records.text import TaskRows, TaskScore, TaskSpec
from shortviz.text.questions import read_task
from tests.support.families import tiny_handle

ROWS: list[dict[str, Any]] = [
    {"q": "Which of these gives off light?", "a": ["The Sun", "A stone", "A bucket of water"], "right": 0},
    {"q": "Water turns to ice when it gets", "a": ["very cold", "very hot", "noisy", "sleepy"], "right": 0},
    {"q": "The opposite of up is", "a": ["left", "down"], "right": 1},
    {"q": "Wer schrieb den Faust? ", "a": ["Goethe, natürlich", "Schiller", "Müller-Lüdenscheidt"], "right": 0},
    {"q": "Two plus three makes", "a": ["four", "five", "six million"], "right": 1},
    {"q": "A dog says", "a": ["meow", "woof", "moo", "cluck"], "right": 1},
    {"q": "After Monday comes   ", "a": ["Tuesday", "Sunday, as everybody who owns a calendar knows"], "right": 0},
    {"q": "\tIndented, and with 日本語:", "a": ["東京", "Tokyo"], "right": 0},
    {"q": "What ends a text that begins with <s>, if not <pad>?", "a": ["</s>", "<s> </s>", "nothing"], "right": 0},
]
LONG: dict[str, Any] = {
    "q": "So it went on, day after day. " * 20 + "It went on",
    "a": ["and on", "until noon", "once"],
    "right": 0,
}
PROMPT = "Question: {question}\nAnswer:"


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def ours(handle: ModelHandle, questions: Path, **more: Any) -> tuple[TaskRows, TaskScore]:
    spec = TaskSpec(kind="file", value=str(questions), question="q", choices=("a",), label="right", **more)
    task = read_task(spec)
    return task, score_tasks(handle, task)


def checkpoint(handle: ModelHandle, folder: Path) -> str:
    handle.model.save_pretrained(folder)
    handle.tokenizer.save_pretrained(folder)
    return str(folder)


def lm_of(folder: str) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=folder, dtype="float32", device="cpu", batch_size=4)


def lm_eval_task(lm: Any, questions: Path) -> dict[str, Any]:
    """Run a local-file task by lm_eval; the samples and its own means and errors."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    config = {
        "task": "some_questions",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(questions)}, "cache_dir": str(questions.parent / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{q}}\nAnswer:",
        "doc_to_choice": "a",
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    # Without lm_eval's thousands of tasks, and with analytic errors (any number of bootstraps gives them for means).
    manager = TaskManager(include_defaults=False)
    found: dict[str, Any] = simple_evaluate(model=lm, tasks=[config], task_manager=manager, bootstrap_iters=2)
    return found


def log_likelihoods(lm: Any, task: TaskRows) -> list[list[float]]:
    from lm_eval.api.instance import Instance

    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=(row.context, f" {choice}"), idx=i)
        for row in task.rows
        for i, choice in enumerate(row.choices)
    ]
    found = iter(lm.loglikelihood(requests, disable_tqdm=True))
    return [[next(found)[0] for _ in row.choices] for row in task.rows]


def same(handle: ModelHandle, lm: Any, questions: Path) -> TaskScore:
    task, score = ours(handle, questions)
    for prediction, expected in zip(score.predictions, log_likelihoods(lm, task), strict=True):
        assert prediction.log_likelihoods == pytest.approx(expected, abs=2e-4)
    _, score = ours(handle, questions, prompt=PROMPT)
    found = lm_eval_task(lm, questions)
    samples = sorted(found["samples"]["some_questions"], key=lambda sample: sample["doc_id"])
    for prediction, sample in zip(score.predictions, samples, strict=True):
        expected = [float(answer[0]) for answer in sample["filtered_resps"]]
        assert prediction.log_likelihoods == pytest.approx(expected, abs=2e-4)
        assert (prediction.chosen == prediction.label) == bool(sample["acc"])
        assert (prediction.chosen_norm == prediction.label) == bool(sample["acc_norm"])
    means = found["results"]["some_questions"]
    assert score.accuracy == pytest.approx(means["acc,none"])
    assert score.accuracy_norm == pytest.approx(means["acc_norm,none"])
    assert score.accuracy_stderr == pytest.approx(means["acc_stderr,none"])
    assert score.accuracy_norm_stderr == pytest.approx(means["acc_norm_stderr,none"])
    assert score.shared_prefixes
    return score


@pytest.mark.parametrize(("bos", "removed"), [(False, ()), (True, (2, 3, 4))])
def test_an_exported_tiny_model_scores_as_in_lm_eval(tmp_path: Path, bos: bool, removed: tuple[int, ...]) -> None:
    handle = tiny_handle("llama", bos=bos)
    handle = prune(handle, PrunePlan(num_layers=6, removed=removed)) if removed else handle
    score = same(handle, lm_of(checkpoint(handle, tmp_path / "model")), write(tmp_path, [*ROWS, LONG]))
    assert score.truncated == 1, "one question is longer than the model's context"


@pytest.mark.demo
def test_the_demo_model_scores_as_in_lm_eval(demo_handle: ModelHandle, tmp_path: Path) -> None:
    score = same(demo_handle, lm_of(checkpoint(demo_handle, tmp_path / "model")), write(tmp_path, ROWS))
    assert score.accuracy > score.chance
