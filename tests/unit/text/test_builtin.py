"""The texts that come with the product, and the rows every source gives."""

import re
import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest

from shortviz.errors import TextError
from shortviz.records.text import TextInfo, TextSpec, TokenSet
from shortviz.text.sources import DOMAINS, builtin_names, read_rows
from shortviz.text.tokens import DEFAULT_EVALUATION


def rows_of(name: str, limit: int | None = None) -> tuple[str, ...]:
    return read_rows(TextSpec(kind="builtin", value=name, limit=limit)).rows


def sevens(rows: tuple[str, ...]) -> set[tuple[str, ...]]:
    """Every seven words that follow each other."""
    words = [re.findall(r"\w+", row.lower()) for row in rows]
    return {tuple(row[at : at + 7]) for row in words for at in range(len(row) - 6)}


def test_every_domain_has_four_passages_and_a_licence() -> None:
    folder = files("shortviz") / "builtin_texts"
    assert {file.name for file in folder.iterdir()} == {f"{name}.txt" for name in (*DOMAINS, "assorted")}
    for domain in DOMAINS:
        assert len(rows_of(f"passages/{domain}")) == 4
        front = (folder / f"{domain}.txt").read_text(encoding="utf-8").split("\n===")[0]
        assert f"domain: {domain}\n" in front
        assert "licence: CC0-1.0" in front


def test_the_assorted_texts_share_nothing_with_the_passages_they_are_judged_on() -> None:
    rows = rows_of("assorted")
    assert len(rows) == len(set(rows)) == 107
    assert all(row == row.strip() and "\n===" not in row for row in rows)
    front = (files("shortviz") / "builtin_texts" / "assorted.txt").read_text(encoding="utf-8").split("\n===")[0]
    assert "licence: CC0-1.0" in front
    assert not sevens(rows) & sevens(rows_of("passages"))


def test_passages_take_turns_by_domain_so_that_a_limit_samples_all() -> None:
    passages = rows_of("passages")
    assert len(passages) == 36
    for place, domain in enumerate(DOMAINS):
        assert passages[place :: len(DOMAINS)] == rows_of(f"passages/{domain}")
    assert rows_of("passages", limit=9) == passages[:9]


def test_passages_are_different_and_hold_no_markup_of_their_file() -> None:
    passages = rows_of("passages")
    assert len(set(passages)) == 36
    for passage in passages:
        assert passage == passage.strip()
        assert "===" not in passage.replace(" === ", "")
        assert "licence:" not in passage


def test_the_python_reference_is_cut_in_full_rows_without_repeats() -> None:
    rows = rows_of("python-reference")
    assert len(rows) >= 100
    assert all(len(row) >= 2000 for row in rows[:-1])
    paragraphs = [paragraph for row in rows for paragraph in row.split("\n\n")]
    assert len(paragraphs) == len(set(paragraphs))
    assert rows == rows_of("python-reference")


def test_the_python_reference_holds_every_paragraph_of_the_topics() -> None:
    from pydoc_data.topics import topics

    kept = "\n\n".join(rows_of("python-reference"))
    assert all(part.strip("\n") in kept for topic in topics.values() for part in topic.split("\n\n"))


def test_every_built_in_name_can_be_read() -> None:
    assert all(rows_of(name) for name in builtin_names())


def test_an_unknown_built_in_text_names_the_nearest() -> None:
    with pytest.raises(TextError, match="no built-in text 'passage'; did you mean 'passages'"):
        rows_of("passage")
    with pytest.raises(TextError, match="no built-in text '../secret'; there are: passages, passages/prose"):
        rows_of("../secret")


@pytest.mark.parametrize("text", ["", "  \n\t "])
def test_an_empty_pasted_text_is_an_error(text: str) -> None:
    with pytest.raises(TextError, match="The pasted text is empty; give some text"):
        read_rows(TextSpec(kind="paste", value=text))


def test_a_pasted_text_is_one_row_unchanged() -> None:
    assert read_rows(TextSpec(kind="paste", value=" a\r\n\r\nb ")).rows == (" a\r\n\r\nb ",)


def test_reading_text_imports_neither_torch_nor_transformers_nor_datasets() -> None:
    code = (
        "import sys; from shortviz.text.sources import read_rows; from shortviz.text.tokens import DEFAULT_EVALUATION; "
        "print(len(read_rows(DEFAULT_EVALUATION).rows), "
        "*({'torch', 'transformers', 'datasets', 'pandas', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    rows = len(read_rows(DEFAULT_EVALUATION).rows)
    assert rows > 1
    assert done.stdout.split() == [str(rows)]


@pytest.mark.parametrize("short", [0, 1])
def test_a_row_too_short_for_a_distance_is_refused_where_rows_are_given_directly(short):
    info = TextInfo(source="own", rows=2, tokens=3, fingerprint="f")
    with pytest.raises(TextError, match=f"A row has {short} of the 2 tokens that a distance needs"):
        TokenSet(rows=(np.arange(3), np.arange(short)), info=info)
