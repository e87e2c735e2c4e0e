"""Rows and windows of tokens: BOS, truncation, skipping, fingerprint. The tokenizer gives one token per UTF-8 byte."""

import copy
import hashlib
import logging
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from shortviz.errors import TextError
from shortviz.records.text import TextSpec, WindowSpec
from shortviz.text.sources import read_rows
from shortviz.text.tokens import DEFAULT_CALIBRATION, DEFAULT_EVALUATION, fingerprint, make_windows, tokenize
from tests.support.families import tiny_tokenizer

PLAIN = tiny_tokenizer()
WITH_BOS = tiny_tokenizer(bos=True)
SOME_TEXT = st.text(min_size=1, max_size=60).filter(lambda text: bool(text.strip()))


def paste(text: str, **options: Any) -> TextSpec:
    return TextSpec(kind="paste", value=text, **options)


def ids_of(text: str) -> list[int]:
    return list(PLAIN(text, add_special_tokens=False)["input_ids"])


def jsonl(path: Path, *rows: str) -> str:
    import json

    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_row_is_the_tokens_of_the_text() -> None:
    found = tokenize(paste("hello"), PLAIN)
    assert [row.tolist() for row in found.rows] == [ids_of("hello")]
    assert (found.info.rows, found.info.tokens, found.info.skipped) == (1, 5, 0)
    assert (found.info.source, found.info.bos, found.info.max_length) == ("pasted text", "auto: no BOS", 256)


def test_truncation_counts_the_bos() -> None:
    found = tokenize(paste("hello", max_length=4), WITH_BOS)
    assert found.rows[0].tolist() == [WITH_BOS.bos_token_id, *ids_of("hel")]
    assert found.info.bos == "auto: BOS <s>"
    assert found.info.tokens == 4


def test_rows_shorter_than_two_tokens_are_left_out_and_counted(tmp_path: Path) -> None:
    name = jsonl(tmp_path / "a.jsonl", "first", "", "x", "xy")
    spec = TextSpec(kind="file", value=name)
    assert [len(row) for row in tokenize(spec, PLAIN).rows] == [5, 2]
    assert tokenize(spec, PLAIN).info.skipped == 2
    with_bos = tokenize(spec, WITH_BOS)
    assert [len(row) for row in with_bos.rows] == [6, 2, 3]
    assert with_bos.info.skipped == 1


def test_all_rows_too_short_is_an_error() -> None:
    with pytest.raises(TextError, match="All 1 rows of the pasted text are shorter than 2 tokens; give text of at"):
        tokenize(paste("x"), PLAIN)


@pytest.mark.parametrize(
    ("policy", "with_bos", "opening", "meaning"),
    [
        ("auto", False, [], "auto: no BOS"),
        ("auto", True, ["<s>"], "auto: BOS <s>"),
        ("never", True, [], "never: no BOS"),
        ("always", True, ["<s>"], "always: BOS <s>"),
    ],
)
def test_the_bos_policy_decides_what_opens_a_row_and_a_window(
    policy: Any, with_bos: bool, opening: list[str], meaning: str
) -> None:
    tokenizer = WITH_BOS if with_bos else PLAIN
    first = tokenizer.convert_tokens_to_ids(opening)
    rows = tokenize(paste("hello world", bos=policy), tokenizer)
    windows = make_windows(paste("hello world", bos=policy), WindowSpec(window=4, windows=2), tokenizer)
    assert rows.rows[0].tolist() == [*first, *ids_of("hello world")]
    text = ids_of("hello world")
    step = 4 - len(first)
    assert windows.tokens.tolist() == [[*first, *text[:step]], [*first, *text[step : 2 * step]]]
    assert rows.info.bos == windows.info.bos == meaning


def test_always_adds_the_bos_of_a_tokenizer_that_does_not_put_it_itself() -> None:
    assert tokenize(paste("hello", bos="auto"), PLAIN).info.bos == "auto: no BOS"
    found = tokenize(paste("hello", bos="always"), PLAIN)
    assert found.info.bos == "always: BOS <s>"
    assert found.rows[0].tolist() == [PLAIN.bos_token_id, *ids_of("hello")]


def test_always_without_a_bos_token_is_an_error() -> None:
    tokenizer = copy.deepcopy(PLAIN)
    tokenizer.bos_token = None
    for action in (lambda s: tokenize(s, tokenizer), lambda s: make_windows(s, WindowSpec(window=2), tokenizer)):
        with pytest.raises(TextError, match="this tokenizer has no BOS token; choose auto or never"):
            action(paste("hello", bos="always"))


def test_two_opening_tokens_are_both_kept_and_a_closing_token_is_not_text() -> None:
    tokenizer = copy.deepcopy(WITH_BOS)
    bos = int(tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> <s> $A <s>", special_tokens=[("<s>", bos)]
    )
    assert tokenize(paste("hello", max_length=4), tokenizer).rows[0].tolist() == [bos, bos, *ids_of("he")]
    windows = make_windows(paste("hello"), WindowSpec(window=4), tokenizer)
    assert windows.tokens.tolist() == [[bos, bos, *ids_of("he")], [bos, bos, *ids_of("ll")]]
    with pytest.raises(TextError, match="The row length is 2 tokens, which the tokenizer's 2 opening tokens fill"):
        tokenize(paste("hello", max_length=2), tokenizer)
    with pytest.raises(TextError, match="The window is 2 tokens, which the tokenizer's 2 opening tokens fill"):
        make_windows(paste("hello"), WindowSpec(window=2), tokenizer)


def test_windows_join_the_rows_by_a_blank_line(tmp_path: Path) -> None:
    spec = TextSpec(kind="file", value=jsonl(tmp_path / "a.jsonl", "abc", "", "de"))
    windows = make_windows(spec, WindowSpec(window=3, windows=9), PLAIN)
    assert windows.tokens.ravel().tolist() == ids_of("abc\n\n\n\nde")
    assert (windows.info.rows, windows.info.tokens, windows.info.max_length) == (3, 9, 3)


def test_a_text_shorter_than_one_window_is_an_error_with_its_length() -> None:
    with pytest.raises(
        TextError, match=r"has 5 tokens, fewer than one window of 512 needs \(512\); choose a window of"
    ):
        make_windows(paste("hello"), WindowSpec(), PLAIN)
    with pytest.raises(TextError, match="of at most 6 tokens or more text"):
        make_windows(paste("hello"), WindowSpec(window=7), WITH_BOS)
    assert make_windows(paste("hello"), WindowSpec(window=6), WITH_BOS).tokens.shape == (1, 6)
    with pytest.raises(TextError, match="give more text"):
        make_windows(paste("x"), WindowSpec(), PLAIN)


@given(
    text=SOME_TEXT,
    window=st.integers(2, 9),
    windows=st.integers(1, 5),
    tokenizer=st.sampled_from([PLAIN, WITH_BOS]),
)
def test_windows_hold_exactly_the_tokens_of_the_text_in_order(
    text: str, window: int, windows: int, tokenizer: Any
) -> None:
    opening = [tokenizer.bos_token_id] if tokenizer is WITH_BOS else []
    room = window - len(opening)
    text_ids = ids_of(text)
    count = min(windows, len(text_ids) // room)
    if count == 0:
        with pytest.raises(TextError, match=f"has {len(text_ids)} tokens"):
            make_windows(paste(text), WindowSpec(window=window, windows=windows), tokenizer)
        return
    found = make_windows(paste(text), WindowSpec(window=window, windows=windows), tokenizer)
    assert found.tokens.shape == (count, window)
    assert found.tokens.dtype == np.int64
    assert found.tokens[:, : len(opening)].tolist() == [opening] * count
    assert found.tokens[:, len(opening) :].ravel().tolist() == text_ids[: count * room]


ROWS = st.lists(st.lists(st.integers(0, 2**20), max_size=5), max_size=5)


@given(left=ROWS, right=ROWS)
def test_the_fingerprint_changes_exactly_when_the_tokens_change(left: list[list[int]], right: list[list[int]]) -> None:
    prints = [fingerprint([np.asarray(row, dtype=np.int64) for row in rows]) for rows in (left, right)]
    assert (prints[0] == prints[1]) == (left == right)


def test_the_fingerprint_is_the_same_on_every_platform() -> None:
    rows = [np.asarray([1, 2, 300]), np.asarray([4, 5], dtype=np.int32)]
    big_endian = [row.astype(">i8") for row in rows]
    expected = hashlib.sha256(struct.pack("<7q", 3, 1, 2, 300, 2, 4, 5)).hexdigest()
    assert fingerprint(rows) == fingerprint(big_endian) == expected


def test_rows_and_windows_of_the_same_tokens_have_the_same_fingerprint() -> None:
    rows = tokenize(paste("hello"), PLAIN)
    assert rows.info.fingerprint == make_windows(paste("hello"), WindowSpec(window=5), PLAIN).info.fingerprint


def test_the_tokens_of_a_set_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        tokenize(paste("hello"), PLAIN).rows[0][0] = 1
    with pytest.raises(ValueError, match="read-only"):
        make_windows(paste("hello"), WindowSpec(window=5), PLAIN).tokens[0, 0] = 1


def test_a_text_longer_than_the_model_takes_gives_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = copy.deepcopy(WITH_BOS)
    tokenizer.model_max_length = 8
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        tokenize(paste("a long text " * 9), tokenizer)
        make_windows(paste("a long text " * 9), WindowSpec(window=8), tokenizer)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert caplog.records == []


def test_the_tokenizer_is_left_as_it_was() -> None:
    before = WITH_BOS.backend_tokenizer.to_str()
    tokenize(paste("hello", max_length=3), WITH_BOS)
    make_windows(paste("hello"), WindowSpec(window=3), WITH_BOS)
    assert WITH_BOS.backend_tokenizer.to_str() == before


def test_the_default_calibration_and_evaluation_sets_share_no_row() -> None:
    calibration, evaluation = read_rows(DEFAULT_CALIBRATION).rows, read_rows(DEFAULT_EVALUATION).rows
    assert len(calibration) == 64
    assert not set(calibration) & set(evaluation)
