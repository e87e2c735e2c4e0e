"""lm_eval on models in memory: its own numbers, the samples they are paired over, one sentence for what it lacks."""

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest

from shortviz.errors import ShortvizError, TextError
from shortviz.measure.evidence.harness import open_harness
from shortviz.measure.tasks import score_tasks
from shortviz.records.text import TaskSpec
from shortviz.text.questions import read_task
from tests.support.families import tiny_handle

ROWS = [{"q": f"Is {i} more than three?", "a": ["yes, it is", "no"], "right": int(i < 4)} for i in range(8)]


def task_file(folder: Path) -> Path:
    questions = folder / "rows.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    path = folder / "mine.yaml"
    path.write_text(f"""task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {questions}}}, cache_dir: {folder / "cache"}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: a
doc_to_target: right
metric_list: [{{metric: acc}}]
""")
    return path


def test_a_task_file_is_scored_as_our_own_questions_are_with_its_samples(tmp_path: Path) -> None:
    handle, path = tiny_handle("llama"), task_file(tmp_path)

    (found,) = open_harness([str(path)]).score(handle, "mine")

    spec = TaskSpec(kind="file", value=str(tmp_path / "rows.jsonl"), question="q", choices=("a",), label="right")
    ours = score_tasks(handle, read_task(spec))
    assert (found.task, found.metric, found.version) == ("mine", "acc", importlib.metadata.version("lm_eval"))
    assert "".join(f"{mark:.0f}" for mark in found.marks) == ours.right
    assert found.value == pytest.approx(ours.accuracy)
    assert found.stderr == pytest.approx(ours.accuracy_stderr)


def test_a_task_that_lm_eval_does_not_know_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="There is no task file nothing.yaml"):
        open_harness(["nothing.yaml"])
    with pytest.raises(TextError, match=r"lm_eval 0\.\S+ knows no task 'arc_eazy'; did you mean arc_easy\?"):
        open_harness(["arc_eazy"])


def test_without_lm_eval_the_sentence_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)

    with pytest.raises(ShortvizError, match=r"run pip install shortviz\[eval\]\."):
        open_harness(["arc_easy"])
