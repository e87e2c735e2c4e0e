"""Texts and questions that are given as files: their columns, how they are written, and a server that lost them."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager

from shortviz.records.text import TextSpec
from shortviz.service.service import Service
from shortviz.settings import settings
from shortviz.ui.session import state as s
from tests.support.app import TEXT, App

CSV = "title;body\n" + f"short;{TEXT.strip()}\n" * 6


def upload(page: App, name: str, content: bytes) -> App:
    """Choose the file tab of the calibration text on the Model page, and upload a file there."""
    page.page("model")
    next(w for w in page.at.segmented_control if w.key == "calibration_kind").set_value("file")
    page.run()
    page.at.file_uploader(key="calibration_upload").set_value((name, content, "application/octet-stream"))
    return page.run()


def select(page: App, label: str) -> Any:
    return next(w for w in page.at.selectbox if w.label == label)


def calibration(page: App) -> TextSpec:
    found = page.state[s.CALIBRATION]
    assert isinstance(found, TextSpec)
    return found


def test_of_a_table_with_two_columns_the_longest_text_is_proposed_and_another_may_be_chosen(loaded: App) -> None:
    page = upload(loaded, "two.csv", CSV.encode())
    assert select(page, "Column").options == ["body", "title"]
    assert calibration(page).key == "body"
    assert "columns separated by semicolons" in page.words
    assert not page.errors
    select(page, "Column").set_value("title")
    page.run()
    assert calibration(page).key == "title"
    select(page, "Column").set_value("body")
    page.run().page("map").click("measure_button")
    assert page.finish("measure").state == "done"
    assert "columns separated by semicolons" in page.words


def test_a_long_paste_is_counted_before_it_is_measured_and_by_the_model_once_it_is_loaded(
    app: Callable[..., App], loaded: App, tools: Service
) -> None:
    long = "The river carries what the hills let go.\n" * 750
    size = len(long)  # in tokens: this model's tokenizer takes each character for one
    rows, about = -(-size // 256), -(-size // 4)
    estimate = f"about {-(-about // 256)} rows, {about:,} tokens; estimated at 4 characters a token: load a model to"
    count = f"64 rows, 16,384 tokens; 1 text longer than a row cut into rows: 64 of {rows} rows, 16,384 of {size:,}"
    for page, words in ((app(), estimate), (loaded, count)):
        next(w for w in page.page("model").at.segmented_control if w.key == "calibration_kind").set_value("paste")
        page.run().at.text_area(key="calibration_paste").set_value(long)
        assert words in page.run().words.replace("**", "")
    loaded.page("map").click("measure_button")
    assert "pasted text, 64 rows, 16,384 tokens" in loaded.words
    assert loaded.finish("measure").state == "done"
    run = next(iter(tools.runs.listed().values()))
    assert (run.text.rows, run.text.tokens) == (64, 16_384)
    assert f"64 of {rows} rows" in run.text.told


def test_a_packed_file_and_an_array_are_uploaded_under_what_they_are(app: Callable[..., App]) -> None:
    rows = json.dumps([{"id": "a", "text": TEXT}, {"id": "b", "text": TEXT}])
    page = upload(app(), "Rows.JSON.gz", gzip.compress(rows.encode()))
    assert not page.errors
    assert calibration(page).value.endswith(".json.gz")
    assert calibration(page).key == "text"
    assert Path(calibration(page).value).parent == settings().uploads_dir


CHAT = {"messages": [{"role": "user", "content": "Is </s> the end?"}, {"role": "assistant", "content": TEXT}]}


def test_chats_are_told_and_written_as_the_page_says(loaded: App) -> None:
    page = upload(loaded, "chats.jsonl", (json.dumps(CHAT) + "\n").encode() * 3)
    assert calibration(page).key == "messages"
    assert "chat_template is needed" in page.errors[0]  # the tiny model has none
    select(page, "Chat template").set_value("off")
    page.run()
    assert not page.errors
    assert "contents of chats without a chat template; 1 spelling of special tokens read as text" in page.words
    select(page, "Special tokens").set_value("parsed")
    page.run()
    assert "1 spelling of special tokens parsed as tokens" in page.words
    assert (calibration(page).chat_template, calibration(page).special_tokens) == ("off", "parsed")


@pytest.mark.parametrize("key", ["calibration_upload", "inspector_tasks"])
def test_an_open_page_is_asked_for_its_file_again_by_a_server_that_was_started_anew(
    loaded: App, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    if key == "calibration_upload":
        page = upload(loaded, "two.csv", CSV.encode())
    else:
        page = loaded.page("map")
        row = json.dumps({"question": "Up?", "choices": ["yes", "no"], "label": 0})
        page.at.file_uploader(key=key).set_value(("rows.jsonl", row.encode(), "application/json"))
        page.run()
    said = "The server was restarted and no longer has the uploaded file; give it again."
    assert said not in page.errors
    monkeypatch.setattr(MemoryUploadedFileManager, "get_files", lambda *_, **__: [])  # what a new server has
    assert said in page.run().errors


def test_a_text_whose_file_is_gone_is_asked_for_again_by_what_needs_it(loaded: App) -> None:
    page = upload(loaded, "two.csv", CSV.encode())
    Path(calibration(page).value).unlink()
    page.page("map").click("measure_button")
    job = page.finish("measure")
    assert job.state == "failed"
    assert "The uploaded file is no longer on the server; give it again." in page.errors


def test_the_address_of_a_page_with_an_uploaded_text_says_so_and_a_new_visit_is_told(
    app: Callable[..., App], tmp_path: Path
) -> None:
    page = app()
    page.state[s.CALIBRATION] = TextSpec(kind="file", value=str(tmp_path / "mine.txt"))
    page.run()
    assert page.at.query_params["text"] in ("file", ["file"])
    again = app(text="file")
    assert "The calibration text of this page was uploaded or pasted in a visit that is over" in again.errors[0]
    assert "text" not in again.at.query_params


def test_a_sentence_about_a_column_names_the_field_of_the_page(loaded: App, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_text('{"body": "some words of text"}\n' * 4)
    loaded.state[s.CALIBRATION] = TextSpec(kind="dataset", value=str(tmp_path / "rows"), limit=4)
    page = loaded.page("map").click("measure_button")
    assert page.finish("measure").state == "failed"
    assert "Choose one of them with Column; only 'body' holds text (Column body)." in page.errors[0]
