"""Files with columns: how they are written is found out and told, packed ones are unpacked only so far."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shortviz.errors import TextError
from shortviz.records.text import TaskSpec, TextSpec
from shortviz.text import tables
from shortviz.text.questions import read_task
from shortviz.text.sources import TextRows, read_rows

ROWS = ("one row; of text, with commas", 'another "one"\nwith a second line', "drei \u2028 vier")


def read(path: Path, **options: Any) -> TextRows:
    return read_rows(TextSpec(kind="file", value=str(path), **options))


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(TextError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pack(path: Path, content: bytes, codec: str = "gzip") -> Path:
    with pa.OSFile(str(path), "wb") as file, pa.CompressedOutputStream(file, codec) as packed:
        packed.write(content)
    return path


LINES = "".join(json.dumps({"id": i, "text": row}) + "\n" for i, row in enumerate(ROWS))


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_of_objects_is_rows(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"id": i, "text": row} for i, row in enumerate(ROWS)], indent=indent))
    assert read(path).rows == ROWS
    assert read(path, limit=2).rows == ROWS[:2]
    assert read(path).source == "file rows.json, column text"


def test_a_json_file_may_hold_lines_or_one_object_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("\ufeff" + LINES)
    assert read(path).rows == ROWS
    path.write_text(json.dumps({"text": ROWS[0], "id": 1}, indent=1))
    assert read(path).rows == ROWS[:1]


def test_lines_of_json_are_rows_by_their_other_name_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.ndjson"
    path.write_text(LINES)
    assert read(path).rows == ROWS
    assert read(pack(tmp_path / "rows.ndjson.gz", LINES.encode())).rows == ROWS


@pytest.mark.parametrize("name", ["a.jsonl.xz", "a.zip", "a.parquet.xz"])
def test_another_packing_is_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK")
    said = f"{tmp_path / name} is packed in a way that is not read here; unpack it, or pack the file as .gz."
    assert refused(tmp_path / name) == said


def test_a_column_without_a_name_is_proposed_by_the_name_that_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(",label\nthe longest text,1\nand more,2\n")
    assert refused(path).endswith("; the longest text is in 'Unnamed: 0' (`key` 'Unnamed: 0').")
    assert read(path, key="Unnamed: 0").rows == ("the longest text", "and more")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('[{"text": "a"}, "b"]', "Row 1 (from 0) of PATH is a JSON str, not an object; each row must look like"),
        ('{"data": [{"text": "a"}]}', "There is no column 'text' in line 1 of PATH; it has: data. Choose one"),
        ('[{"text": "a"},\n {"text"}]', "PATH is not JSON (Expecting ':' delimiter, line 2); mend it, or call it .txt"),
        ("Just prose.", "PATH is not JSON (Expecting value); mend it, or call it .txt if it is plain text."),
        ("[" * 100_000, "PATH is not JSON (nested too deeply); mend it"),
        ('[{"text": "a", "text": "b"}]', "PATH names 'text' twice in one object; give each a name of its own."),
        ("[]", "The file rows.json, column text is empty; give some text."),
        ("", "PATH is not JSON (Expecting value); mend it"),
        ('[{"text": 7}]', "Column 'text' of PATH holds int in row 0, not text; choose a column of text, or of chats"),
    ],
)
def test_a_json_file_without_rows_gets_one_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(content)
    assert sentence.replace("PATH", str(path)) in refused(path)


def test_a_name_that_is_there_twice_is_refused_in_lines_of_json_and_in_parquet_too(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b", "text": "c"}\n')
    assert refused(path) == f"Line 2 of {path} names 'text' twice in one object; give each a name of its own."
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), path)
    assert refused(path) == f"2 columns of {path} are called 'text'; give each a name of its own."


@pytest.mark.parametrize("codec", ["bz2", "gzip", "zstd"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".txt"])
def test_a_packed_file_is_read_as_what_is_in_it(tmp_path: Path, codec: str, kind: str) -> None:
    contents = {
        ".csv": pd.DataFrame({"text": ROWS}).to_csv(index=False),
        ".json": json.dumps([{"text": row} for row in ROWS]),
        ".txt": ROWS[1],
        ".jsonl": LINES,
    }
    end = {"bz2": ".bz2", "gzip": ".gz", "zstd": ".zst"}[codec]
    found = read(pack(tmp_path / f"rows{kind}{end}", contents[kind].encode(), codec))
    assert found.rows == ((ROWS[1],) if kind == ".txt" else ROWS)
    assert found.source.startswith(f"file rows{kind}{end}")


def test_a_file_of_several_packed_parts_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "parts.jsonl.gz"
    path.write_bytes(b"".join(gzip.compress(json.dumps({"text": row}).encode() + b"\n") for row in ROWS))
    assert read(path).rows == ROWS


def test_a_broken_packing_is_told_and_not_read_for_rows_that_are_not_asked_for(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": f"{i} {hash(str(i))}"}) + "\n" for i in range(30_000)).encode()
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(lines)[:-100])
    assert refused(path) == f"{path} cannot be unpacked (Truncated compressed stream); check that it is complete."
    assert len(read(path, limit=3).rows) == 3
    path.write_bytes(b"no gzip at all")
    assert "cannot be unpacked (zlib inflate failed: incorrect header check)" in refused(path)
    path = pack(tmp_path / "a.parquet.gz", b"PAR1")
    assert refused(path) == f"{path} is Parquet, which is packed in itself, packed once more; unpack it first."


@pytest.mark.parametrize("name", ["bomb.txt.gz", "bomb.jsonl.gz", "bomb.csv.gz", "bomb.json.zst"])
def test_what_unpacks_to_too_much_is_refused_while_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(tables, "MOST_UNPACKED", 2_000_000)
    zeros = b"0" * 300_000_000
    path = pack(tmp_path / name, zeros, "gzip" if name.endswith("gz") else "zstd")
    del zeros
    assert path.stat().st_size < 400_000
    tracemalloc.start()
    said = refused(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert said == f"{path} unpacks to more than 0.002 GB; unpack it and give a part of it."
    assert peak < 20_000_000


def test_how_much_a_file_holds_is_found_out_without_unpacking_all_of_it(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.txt.gz", b"x" * 100_000)
    assert [tables.holds_more(path, most) for most in (99_999, 100_000)] == [True, False]
    bomb = tmp_path / "bomb.parquet"  # a dictionary of one value, which every row repeats
    pq.write_table(pa.table({"text": pa.array(["x" * 100_000] * 1000)}), bomb)
    assert bomb.stat().st_size < 200_000
    assert tables.holds_more(bomb, 5_000_000)
    assert not tables.holds_more(bomb, 200_000_000)


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")])
@pytest.mark.parametrize("kind", [".csv", ".tsv"])
def test_the_separator_of_columns_is_found_out_and_told(tmp_path: Path, separator: str, name: str, kind: str) -> None:
    path = tmp_path / f"rows{kind}"
    pd.DataFrame({"id": [1, 2, 3], "text": ROWS}).to_csv(path, index=False, sep=separator)
    found = read(path)
    assert found.rows == ROWS
    assert found.told == (f"columns separated by {name}",)


@pytest.mark.parametrize(
    "content",
    [
        "text\nno commas; but semicolons; of prose\nand more; of it\n",
        "id,text\n1,a; b; c\n2,d; e; f\n3,g; h\n",
        'text,id\n"a, b; c",1\n"d; e",2\n',
        '"a;b;c",text\n1,"x; y"\n2,z\n',
    ],
)
def test_commas_are_the_rule_which_nobody_needs_to_be_told(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    assert read(path).told == ()
    assert len(read(path).rows) >= 2


def test_of_two_columns_of_one_name_none_is_taken_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text;id;text\na;1;b\n")
    assert refused(path) == f"2 columns of {path} are called 'text'; give each a name of its own."
    path.write_text("text;id;id\na;1;2\n")
    assert read(path).rows == ("a",)


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet"])
def test_a_column_that_is_not_there_is_answered_with_the_one_that_is_meant(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a{kind}"

    def write(**columns: list[Any]) -> None:
        table = pd.DataFrame(columns)
        {
            ".csv": lambda: table.to_csv(path, index=False),
            ".jsonl": lambda: table.to_json(path, orient="records", lines=True),
            ".parquet": lambda: table.to_parquet(path),
        }[kind]()

    write(title=["a", "b"], body=["some more words", "and more"])
    told = refused(path)
    assert "it has: title, body. Choose one of them with `key`; the longest text is in 'body' (`key` body)." in told
    assert refused(path, key="Body").endswith("the longest text is in 'body' (`key` body).")
    write(body=["some more words", "and more"], other=[None, None] if kind == ".csv" else [1, 2])
    assert refused(path).endswith("Choose one of them with `key`; only 'body' holds text (`key` body).")
    assert tables.text_columns(tables.first_rows(path)) == ("body",)
    assert read(path, key="body").rows == ("some more words", "and more")


def test_half_a_character_is_replaced_counted_and_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x \\ud83d y \\ude00"}\n{"text": "whole \\ud83d\\ude00"}\n{"text": "\\ude00\\ud83d"}\n')
    found = read(path)
    assert found.rows == ("x \ufffd y \ufffd", "whole \N{GRINNING FACE}", "\ufffd\ufffd")
    assert found.told == ("4 half characters replaced by U+FFFD",)
    pasted = read_rows(TextSpec(kind="paste", value="\udc80 and its own \ufffd"))
    assert (pasted.rows, pasted.told) == (("\ufffd and its own \ufffd",), ("1 half character replaced by U+FFFD",))
    path.write_text('{"question": "up \\ud83d?", "choices": ["\\ude00", "b"], "label": 0}\n')
    task = read_task(TaskSpec(kind="file", value=str(path)))
    assert task.rows[0].context == "up \ufffd?"
    assert task.rows[0].choices == ("\ufffd", "b")
    assert task.source == "file a.jsonl, columns question, choices, label; 2 half characters replaced by U+FFFD"
    (tmp_path / "a.csv").write_text('question,choices,label\nup?,"[""\\ud83d"", ""b""]",0\n')
    assert read_task(TaskSpec(kind="file", value=str(tmp_path / "a.csv"))).rows[0].choices == ("\ufffd", "b")


def test_questions_are_read_from_arrays_packed_files_and_other_separators(tmp_path: Path) -> None:
    row = {"question": "Up?", "choices": ["yes", "no"], "label": 1}
    (tmp_path / "a.json").write_text(json.dumps([row, row]))
    pack(tmp_path / "a.jsonl.gz", json.dumps(row).encode())
    (tmp_path / "a.csv").write_text("question;a;b;label\nUp?;yes;no;1\n")
    found = [
        read_task(TaskSpec(kind="file", value=str(tmp_path / name), choices=choices))
        for name, choices in (("a.json", ("choices",)), ("a.jsonl.gz", ("choices",)), ("a.csv", ("a", "b")))
    ]
    assert [len(task.rows) for task in found] == [2, 1, 1]
    assert all((task.rows[0].choices, task.rows[0].label) == (("yes", "no"), 1) for task in found)
    assert found[2].source.endswith("; columns separated by semicolons")


def test_an_upload_that_is_gone_is_to_be_given_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shortviz.settings import Settings

    monkeypatch.setattr(tables, "settings", lambda: Settings(runs_dir=tmp_path))
    gone = tmp_path / "uploads" / "0123.txt"
    assert refused(gone) == "The uploaded file is no longer on the server; give it again."
