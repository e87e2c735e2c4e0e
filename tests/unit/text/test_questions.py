"""Multiple-choice questions from files: fields, labels, and every row that is no question named in one sentence."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from shortviz.errors import TextError
from shortviz.records.text import TaskRows, TaskSpec
from shortviz.text.questions import read_task

LIST = {"question": "Up?", "choices": ["down", "sky", "left"], "label": 1}


def read(folder: Path, *rows: dict[str, Any], **spec: Any) -> TaskRows:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_task(TaskSpec(kind="file", value=str(path), **spec))


def refusal(folder: Path, *rows: dict[str, Any], **spec: Any) -> str:
    with pytest.raises(TextError) as caught:
        read(folder, *rows, **spec)
    return str(caught.value)


def test_a_row_is_read_with_its_fields_unchanged(tmp_path: Path) -> None:
    task = read(tmp_path, {**LIST, "question": " Up?\n"})
    assert task.source == "file rows.jsonl, columns question, choices, label"
    (row,) = task.rows
    assert (row.where, row.context, row.choices, row.label) == ("line 1", " Up?\n", ("down", "sky", "left"), 1)


@pytest.mark.parametrize(
    ("row", "spec"),
    [
        (
            {"ctx": "Up?", "endings": ["down", "sky", "left"], "label": "1"},
            {"question": "ctx", "choices": ("endings",)},
        ),
        (
            {"goal": "Up?", "sol1": "down", "sol2": "sky", "sol3": "left", "label": 1},
            {"question": "goal", "choices": ("sol1", "sol2", "sol3")},
        ),
        (
            {
                "question": "Up?",
                "choices": {"text": ["down", "sky", "left"], "label": ["A", "B", "C"]},
                "answerKey": "B",
            },
            {"label": "answerKey"},
        ),
        (
            {
                "question": "Up?",
                "choices": {"text": ["down", "sky", "left"], "label": ["1", "2", "3"]},
                "answerKey": "2",
            },
            {"label": "answerKey"},
        ),
        ({"question": "Up?", "choices": '["down", "sky", "left"]', "label": " B "}, {}),
    ],
    ids=["hellaswag", "piqa", "arc letters", "arc numbers", "json text"],
)
def test_the_fields_of_known_data_sets_are_mapped(tmp_path: Path, row: dict[str, Any], spec: dict[str, Any]) -> None:
    (found,) = read(tmp_path, row, **spec).rows
    assert (found.context, found.choices, found.label) == ("Up?", ("down", "sky", "left"), 1)


@pytest.mark.parametrize(
    ("label", "first_label", "index"),
    [
        (0, 0, 0),
        (2, 0, 2),
        ("2", 0, 2),
        (1, 1, 0),
        ("3", 1, 2),
        ("A", 0, 0),
        ("C", 1, 2),
        ("sky", 0, 1),
        ("left", 1, 2),
    ],
)
def test_a_label_is_a_number_a_letter_or_the_text_of_a_choice(
    tmp_path: Path, label: int | str, first_label: int, index: int
) -> None:
    assert read(tmp_path, {**LIST, "label": label}, first_label=first_label).rows[0].label == index


def test_a_label_that_can_mean_two_choices_is_refused(tmp_path: Path) -> None:
    digits = {**LIST, "choices": ["1", "2", "3"]}
    assert read(tmp_path, {**digits, "label": 1}).rows[0].label == 1
    assert refusal(tmp_path, {**digits, "label": "1"}) == (
        "The label '1' in line 1 of rows.jsonl can mean the 1st choice and the 2nd choice (a number or letter, or a "
        "choice's text); use whole numbers as labels."
    )


def test_the_prompt_holds_the_question(tmp_path: Path) -> None:
    task = read(tmp_path, LIST, prompt="Question: {question}\nAnswer:", delimiter="")
    assert task.rows[0].context == "Question: Up?\nAnswer:"
    assert task.delimiter == ""


def test_csv_and_parquet_give_the_same_questions_as_json_lines(tmp_path: Path) -> None:
    rows = [{"q": "Up?", "a": "sky", "b": "floor", "right": 0}, {"q": "Down?", "a": "sky", "b": "floor", "right": 1}]
    table = pd.DataFrame(rows)
    table.to_csv(tmp_path / "rows.csv", index=False)
    table.to_parquet(tmp_path / "rows.parquet")
    spec: dict[str, Any] = {"question": "q", "choices": ("a", "b"), "label": "right"}
    expected = read(tmp_path, *rows, **spec)
    for suffix in ("csv", "parquet"):
        task = read_task(TaskSpec(kind="file", value=str(tmp_path / f"rows.{suffix}"), **spec))
        assert [(r.context, r.choices, r.label) for r in task.rows] == [
            (r.context, r.choices, r.label) for r in expected.rows
        ]
        assert task.fingerprint == expected.fingerprint
        assert [r.where for r in task.rows] == ["row 0 (from 0)", "row 1 (from 0)"]


def test_parquet_holds_lists_and_labelled_choices(tmp_path: Path) -> None:
    choices = [{"text": ["down", "sky"], "label": ["A", "B"]}]
    pd.DataFrame({"question": ["Up?"], "choices": choices, "label": ["B"]}).to_parquet(tmp_path / "arc.parquet")
    (row,) = read_task(TaskSpec(kind="file", value=str(tmp_path / "arc.parquet"))).rows
    assert (row.choices, row.label) == (("down", "sky"), 1)


def test_the_limit_counts_questions(tmp_path: Path) -> None:
    broken = {**LIST, "label": None}
    assert len(read(tmp_path, LIST, LIST, broken, limit=2).rows) == 2


def test_other_questions_have_another_fingerprint(tmp_path: Path) -> None:
    found = {
        read(tmp_path, LIST).fingerprint,
        read(tmp_path, LIST, LIST).fingerprint,
        read(tmp_path, {**LIST, "label": 0}).fingerprint,
        read(tmp_path, LIST, delimiter="").fingerprint,
    }
    assert len(found) == 4
    assert read(tmp_path, LIST).fingerprint in found


NO_LABEL = (
    "There is no label in line 2 of rows.jsonl (column 'label'); name the column of the right choice with `label`, or "
    "remove the row."
)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"label": None}, NO_LABEL),
        ({"label": ""}, NO_LABEL),
        ({"choices": ["only"]}, "There is one choice in line 2 of rows.jsonl; a question needs at least two."),
        ({"choices": []}, "There are no choices in line 2 of rows.jsonl; a question needs at least two."),
        (
            {"choices": ["down", " ", "left"]},
            "The 2nd choice in line 2 of rows.jsonl is empty; give each choice a text or remove the row.",
        ),
        (
            {"choices": ["a", None]},
            "The 2nd choice in line 2 of rows.jsonl is empty; give each choice a text or remove the row.",
        ),
        ({"choices": ["a", 4]}, "The 2nd choice in line 2 of rows.jsonl is 4 (int), not text; put it in quotes."),
        (
            {"choices": "down"},
            "The choices in line 2 of rows.jsonl are 'down' (str) (column 'choices'), not a list; name a column that "
            "holds a list, or several columns with one choice each, with `choices`.",
        ),
        (
            {"choices": {"text": ["a", "b"], "label": ["A"]}},
            "There are 2 choices but 1 labels for them in line 2 of rows.jsonl; mend the row.",
        ),
        (
            {"label": 3},
            "The label 3 in line 2 of rows.jsonl is none of its 3 choices: it can be 0-2, A-C or the text of a choice.",
        ),
        (
            {"label": -1},
            "The label -1 in line 2 of rows.jsonl is none of its 3 choices: it can be 0-2, A-C or the text of a "
            "choice.",
        ),
        (
            {"label": 1.0},
            "The label in line 2 of rows.jsonl is 1.0 (float); it must be a whole number, a letter, or the text of a "
            "choice.",
        ),
        (
            {"label": True},
            "The label in line 2 of rows.jsonl is True (bool); it must be a whole number, a letter, or the text of a "
            "choice.",
        ),
        ({"question": " "}, "The question in line 2 of rows.jsonl is empty (column 'question'); it must be text."),
        ({"question": 4}, "The question in line 2 of rows.jsonl is 4 (int) (column 'question'); it must be text."),
    ],
)
def test_a_row_that_is_no_question_is_named(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    assert refusal(tmp_path, LIST, {**LIST, **change}) == sentence


def test_a_row_without_the_label_column_has_no_label(tmp_path: Path) -> None:
    assert refusal(tmp_path, LIST, {"question": "Up?", "choices": ["a", "b"]}) == NO_LABEL


def test_an_empty_field_of_a_csv_file_is_named_by_its_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    spec = TaskSpec(kind="file", value=str(path), choices=("a", "b"))
    path.write_text("question,a,b,label\nUp?,sky,floor,0\nDown?,sky,,1\n")
    with pytest.raises(TextError, match=r"^The 2nd choice in row 1 \(from 0\) of rows\.csv is empty; give each "):
        read_task(spec)
    path.write_text("question,a,b,label\nUp?,sky,floor,0\nDown?,sky,floor,\n")
    with pytest.raises(TextError, match=r"^There is no label in row 1 \(from 0\) of rows\.csv \(column 'label'\); "):
        read_task(spec)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path, suffix: str) -> None:
    table = pd.DataFrame([{"goal": "Up?", "a": "x", "b": "y", "label": 0}])
    path = tmp_path / f"rows.{suffix}"
    write = {"jsonl": table.to_json, "csv": table.to_csv, "parquet": table.to_parquet}[suffix]
    write(path, **({"orient": "records", "lines": True} if suffix == "jsonl" else {"index": False}))
    with pytest.raises(TextError) as caught:
        read_task(TaskSpec(kind="file", value=str(path), choices=("a", "b")))
    where = f"line 1 of {path}" if suffix == "jsonl" else str(path)
    assert str(caught.value) == (
        f"There is no column 'question' in {where}; it has: goal, a, b, label. Choose one of them with `question`, "
        "`choices` and `label`."
    )


def test_a_file_that_is_no_table_or_has_no_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("Up?")
    with pytest.raises(
        TextError, match=r"rows\.txt is not a table of questions; give a \.json, \.jsonl, \.csv or \.parquet"
    ):
        read_task(TaskSpec(kind="file", value=str(tmp_path / "rows.txt")))
    with pytest.raises(TextError, match=r"^There is no file .*none\.jsonl; check the path\.$"):
        read_task(TaskSpec(kind="file", value=str(tmp_path / "none.jsonl")))
    assert refusal(tmp_path) == (
        "The file rows.jsonl, columns question, choices, label has no questions; give at least one."
    )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"limit": 0}, "The limit of questions is 0; it must be at least 1."),
        ({"choices": ()}, "No column of choices was named; name one that holds a list, or one for each choice."),
        ({"first_label": 2}, "Labels cannot start from 2; choose 0 or 1 for the first choice."),
        ({"prompt": "Answer:"}, "The prompt 'Answer:' has no {question} in it; say where the question goes."),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TextError) as caught:
        TaskSpec(kind="file", value="rows.jsonl", **fields)
    assert str(caught.value) == sentence


def test_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, LIST, label="choices") == (
        "Column 'choices' was named twice; question, choices and label need one each (`question`, `choices` and "
        "`label`)."
    )


def test_a_folder_of_data_files_is_read_like_a_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    rows = "".join(json.dumps({**LIST, "extra": i}) + "\n" for i in range(5))
    (folder / "validation.jsonl").write_text(rows)
    task = read_task(TaskSpec(kind="dataset", value=str(folder), limit=3))
    assert [row.where for row in task.rows] == ["row 0 (from 0)", "row 1 (from 0)", "row 2 (from 0)"]
    assert task.rows[0].choices == ("down", "sky", "left")
    assert task.source == f"data set {folder}, split validation, columns question, choices, label, first 3 rows"
    with pytest.raises(TextError, match=r"it has: question, choices, label, extra\. Choose one of them with `quest"):
        read_task(TaskSpec(kind="dataset", value=str(folder), label="gold"))
