"""Text files: what is read from them, and the sentence a bad one gets."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from shortviz.errors import TextError
from shortviz.records.text import TextSpec
from shortviz.text.sources import read_rows


def rows_of(path: Path | str, **options: Any) -> tuple[str, ...]:
    return read_rows(TextSpec(kind="file", value=str(path), **options)).rows


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "README", "a.TXT"])
def test_any_utf8_file_is_one_row_unchanged(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "Grüße\r\n\r\nund \u2028 mehr\n")
    assert rows_of(path) == ("Grüße\r\n\r\nund \u2028 mehr\n",)
    assert read_rows(TextSpec(kind="file", value=str(path))).source == f"file {name}"


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    assert rows_of(write(tmp_path / "a.txt", b"\xef\xbb\xbfhello")) == ("hello",)
    assert rows_of(write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "hello"}\n')) == ("hello",)
    assert rows_of(write(tmp_path / "a.csv", b"\xef\xbb\xbftext\nhello\n")) == ("hello",)


def test_jsonl_gives_the_column_of_every_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "one\\ntwo", "n": 1}\n\n{"text": "drei \u2028 vier"}\n{"text": null}')
    assert rows_of(path) == ("one\ntwo", "drei \u2028 vier", "")
    assert rows_of(path, limit=1) == ("one\ntwo",)
    assert read_rows(TextSpec(kind="file", value=str(path))).source == "file a.jsonl, column text"


def test_csv_gives_the_column_as_written(tmp_path: Path) -> None:
    long = "x" * 200_000
    path = write(tmp_path / "a.csv", f'id,body\n1,"a, ""b""\nc"\n2,NA\n3,007\n4,{long}\n5,\n')
    assert rows_of(path, key="body") == ('a, "b"\nc', "NA", "007", long, "")
    assert rows_of(path, key="body", limit=2) == ('a, "b"\nc', "NA")


def test_parquet_gives_the_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pd.DataFrame({"body": [f"row {i}" for i in range(600)], "n": range(600)}).to_parquet(path)
    assert rows_of(path, key="body") == tuple(f"row {i}" for i in range(600))
    assert rows_of(path, key="body", limit=300) == tuple(f"row {i}" for i in range(300))


def bad_files(folder: Path) -> list[tuple[Path, str]]:
    parquet = folder / "numbers.parquet"
    pd.DataFrame({"text": ["a", "b"], "n": [1, 2]}).to_parquet(parquet)
    broken = write(folder / "cut.parquet", parquet.read_bytes()[:-40])
    return [
        (folder / "nowhere.txt", "There is no file .*nowhere.txt; check the path"),
        (folder, "is a directory; give a text, .json, .jsonl, .csv or .parquet file"),
        (write(folder / "empty.txt", ""), "The file empty.txt is empty; give some text"),
        (write(folder / "blank.txt", " \n\n"), "The file blank.txt is empty"),
        (write(folder / "empty.jsonl", "\n"), "The file empty.jsonl, column text is empty"),
        (write(folder / "empty.csv", ""), "cannot be read as CSV"),
        (write(folder / "head.csv", "text\n"), "The file head.csv, column text is empty"),
        (write(folder / "image.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), "is a binary file or not UTF-8"),
        (write(folder / "utf16.txt", "hello".encode("utf-16")), "is a binary file or not UTF-8"),
        (write(folder / "latin.txt", b"caf\xe9 au lait"), r"is not UTF-8 text \(byte 0xe9 at offset 3\)"),
        (write(folder / "latin.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n'), "latin.jsonl, line 2, is not UTF-8"),
        (write(folder / "latin.csv", b"text\ncaf\xe9\n"), "cannot be read as CSV"),
        (write(folder / "zip.csv", b"PK\3\4\0\0"), "is a binary file or not UTF-8"),
        (write(folder / "b.jsonl", '{"text": "a"}\n{"text": \n'), r"Line 2 of .*b.jsonl is not JSON \(Expecting value"),
        (write(folder / "list.jsonl", '["a"]\n'), "Line 1 of .*list.jsonl is a JSON list, not an object"),
        (write(folder / "deep.jsonl", "[" * 100_000 + "\n"), "Line 1 of .*deep.jsonl is not JSON"),
        (write(folder / "key.jsonl", '{"a": 1, "b": 2}\n'), "no column 'text' in line 1 of .*it has: a, b. Choose one"),
        (write(folder / "key.csv", "a,b\n1,2\n"), "no column 'text' in .*key.csv; it has: a, b. Choose one of them"),
        (write(folder / "n.jsonl", '{"text": "a"}\n{"text": 7}\n'), "Column 'text' of .*n.jsonl holds int in line 2"),
        (write(folder / "wide.csv", "text\na,b\n"), "more fields than its header"),
        (write(folder / "ragged.csv", "text,b\na,b\na,b,c\n"), "cannot be read as CSV .*line 3"),
        (broken, "cannot be read as Parquet"),
        (write(folder / "fake.parquet", "hello"), "cannot be read as Parquet"),
    ]


def test_a_bad_file_gets_one_clear_sentence(tmp_path: Path) -> None:
    cases = bad_files(tmp_path)
    assert len(cases) == 23
    for path, message in cases:
        with pytest.raises(TextError, match=message) as caught:
            rows_of(path)
        assert "\n" not in str(caught.value), path


def test_a_column_that_is_not_text_is_refused_by_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pd.DataFrame({"text": ["a", "b"], "n": [1, 2]}).to_parquet(path)
    with pytest.raises(TextError, match="Column 'n' of .*a.parquet holds int in row 0, not text; choose a column of"):
        rows_of(path, key="n")
    with pytest.raises(TextError, match="no column 'body' in .*a.parquet; it has: text, n"):
        rows_of(path, key="body")


def test_odd_paths_get_a_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="No file was named"):
        rows_of("")
    with pytest.raises(TextError, match="cannot be read .*name too long"):
        rows_of("x" * 5000)
    with pytest.raises(TextError, match="There is no file"):
        rows_of("a\0b")
    with socket.socket(socket.AF_UNIX) as listener:
        folder = os.getcwd()
        os.chdir(tmp_path)
        try:
            listener.bind("s")
        finally:
            os.chdir(folder)
        with pytest.raises(TextError, match="is not a regular file"):
            rows_of(tmp_path / "s")


def test_only_as_many_lines_are_read_as_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "a"}) + "\nnot json\n")
    assert rows_of(path, limit=1) == ("a",)
