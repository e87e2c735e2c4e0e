"""Rows and windows of tokens: BOS, truncation, skipping, fingerprint. The tokenizer gives one token per UTF-8 byte."""

import copy
import hashlib
import logging
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from shortviz.errors import TextError
from shortviz.records.text import TextSpec, WindowSpec
from shortviz.text.sources import read_rows
from shortviz.text.tokens import (
    DEFAULT_CALIBRATION,
    DEFAULT_EVALUATION,
    fingerprint,
    make_windows,
    pieces,
    spread_order,
    token_texts,
    tokenize,
)
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


def test_text_longer_than_a_row_is_cut_into_rows_each_opened_alike() -> None:
    found = tokenize(paste("hello, rows", max_length=4), WITH_BOS)
    bos = WITH_BOS.bos_token_id
    assert [row.tolist() for row in found.rows] == [[bos, *ids_of(part)] for part in ("hel", "lo,", " ro", "ws")]
    assert found.info.told == "1 text longer than a row cut into rows"
    assert found.continued == {1, 2, 3}
    fewer = tokenize(paste("hello, rows", max_length=4, limit=3), WITH_BOS)
    assert [row.tolist() for row in fewer.rows] == [row.tolist() for row in found.rows[:3]]
    assert fewer.info.told == "1 text longer than a row cut into rows: 3 of 4 rows, 9 of 11 tokens"


def test_a_rest_of_one_token_is_a_row_only_where_a_bos_opens_it() -> None:
    without, with_bos = (
        tokenize(paste("hello", max_length=length), one) for one, length in ((PLAIN, 4), (WITH_BOS, 5))
    )
    assert [len(row) for row in without.rows] == [4]
    assert without.info.told == "1 text longer than a row cut into rows: 4 of 5 tokens"
    assert without.info.skipped == 0
    assert [len(row) for row in with_bos.rows] == [5, 2]


def test_where_not_all_rows_fit_every_text_begins_before_any_goes_on(tmp_path: Path) -> None:
    name = jsonl(tmp_path / "a.jsonl", "abcdefghi", "jk", "lmnopq")
    rows = {n: tokenize(TextSpec(kind="file", value=name, max_length=3, limit=n), PLAIN) for n in (2, 3, 4, 5, 9)}
    texts = {n: ["".join(PLAIN.decode(row).split()) for row in found.rows] for n, found in rows.items()}
    assert texts[2] == ["abc", "jk"], "as many texts as rows: rows as they were before texts were cut"
    assert texts[3] == ["abc", "jk", "lmn"]
    assert texts[4] == ["abc", "def", "jk", "lmn"]
    assert texts[5] == ["abc", "def", "jk", "lmn", "opq"]
    assert texts[9] == ["abc", "def", "ghi", "jk", "lmn", "opq"]
    assert rows[4].info.told == "2 texts longer than a row cut into rows: 4 of 6 rows, 11 of 17 tokens"
    assert rows[9].continued == {1, 2, 5}


def test_built_in_texts_have_the_rows_they_had_unless_they_are_to_be_cut() -> None:
    spec = TextSpec(kind="builtin", value="passages", max_length=64)
    usual, truncated, cut = (tokenize(replace(spec, long_rows=how), PLAIN) for how in ("auto", "truncate", "cut"))
    assert usual.info.fingerprint == truncated.info.fingerprint
    assert usual.info.told == "", "records of built-in texts are what they were"
    assert re.fullmatch(r"\d+ texts longer than a row truncated: [\d,]+ of [\d,]+ tokens", truncated.info.told)
    assert cut.info.rows > usual.info.rows
    assert tokenize(DEFAULT_CALIBRATION, PLAIN).info.rows == 64


def test_truncation_counts_the_bos() -> None:
    found = tokenize(paste("hello", max_length=4, long_rows="truncate"), WITH_BOS)
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
    with pytest.raises(TextError, match="The 1 row of the pasted text is shorter than 2 tokens; give text of at"):
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
    windows = make_windows(spec, WindowSpec(window=3, windows=9, order="first"), PLAIN)
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
    found = make_windows(paste(text), WindowSpec(window=window, windows=windows, order="first"), tokenizer)
    assert found.tokens.shape == (count, window)
    assert found.tokens.dtype == np.int64
    assert found.tokens[:, : len(opening)].tolist() == [opening] * count
    assert found.tokens[:, len(opening) :].ravel().tolist() == text_ids[: count * room]
    spread = make_windows(paste(text), WindowSpec(window=window, windows=windows), tokenizer)
    chosen = spread_order(len(text_ids) // room)[:count]
    bodies = [text_ids[at * room : (at + 1) * room] for at in chosen]
    assert spread.tokens.tolist() == [opening + body for body in bodies]


@given(count=st.integers(1, 700))
def test_every_beginning_of_the_spread_order_covers_the_whole_and_more_windows_refine_it(count: int) -> None:
    order = spread_order(count)
    assert sorted(order) == list(range(count))
    assert order[0] == 0
    for power in range(count.bit_length()):
        seen = sorted(order[: 2**power])
        gaps = np.diff([*seen, count])
        assert gaps.max() <= -(-count // 2**power), (count, power)
        assert len(gaps) == 2**power


def test_fewer_windows_are_the_first_of_more_and_the_order_is_told() -> None:
    text, few, many = (
        paste("some words of text " * 40),
        WindowSpec(window=8, windows=5),
        WindowSpec(window=8, windows=50),
    )
    for order in ("spread", "first"):
        found = [make_windows(text, replace(spec, order=order), WITH_BOS) for spec in (few, many)]
        assert np.array_equal(found[1].tokens[:5], found[0].tokens)
        assert [one.info.order for one in found] == [order, order]
        assert found[0].info.windows == replace(few, order=order)
    assert found[0].info.windows_words == "5 windows of 8, the first of the text"
    with pytest.raises(TextError, match="order 'last'; choose spread or first"):
        WindowSpec(order="last")  # type: ignore[arg-type]


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


SPELLED = "It ends </s> here, <s> and begins."


def sentencepiece(folder: Path, kind: str) -> Path:
    """Return a sentencepiece model of 400 pieces, trained on a built-in text."""
    import sentencepiece

    rows = read_rows(TextSpec(kind="builtin", value="passages/prose")).rows
    (folder / "text.txt").write_text("\n".join(map(str, rows)) + "<>/s")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "pieces"), vocab_size=400, model_type=kind,
        byte_fallback=kind == "bpe", minloglevel=3,
    )  # fmt: skip
    return folder / "pieces.model"


def tokenizers_of_many_kinds(folder: Path) -> dict[str, Any]:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "bpe").mkdir()
    (folder / "unigram").mkdir()
    bpe, unigram = sentencepiece(folder / "bpe", "bpe"), sentencepiece(folder / "unigram", "unigram")
    slow = SentencePieceBackend(vocab_file=str(bpe), **names)
    pieces = [(slow.convert_ids_to_tokens(i), 0.0 if i < 3 else -5.0) for i in range(slow.vocab_size)]
    lone = Tokenizer(models.Unigram([*pieces, ("<", -9.0), ("/", -9.0), (">", -9.0)], unk_id=0))
    lone.pre_tokenizer, lone.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    lone.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<unk>", "<s>", "</s>")])
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "It": 3, "ends": 4, "here,": 5}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return {
        "byte-level": PLAIN,
        "sentencepiece BPE, fast": LlamaTokenizer.from_pretrained(_llama(folder / "llama", bpe)),
        "sentencepiece BPE, slow": slow,
        "sentencepiece Unigram, slow": SentencePieceBackend(vocab_file=str(unigram), **names),
        "Unigram, fast": PreTrainedTokenizerFast(tokenizer_object=lone, **names),
        "WordLevel, fast": PreTrainedTokenizerFast(tokenizer_object=words, **names),
    }


def _llama(folder: Path, model: Path) -> str:
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(model.read_bytes())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    return str(folder)


def test_the_spelling_of_a_special_token_is_text_unless_parsing_is_asked_for(tmp_path: Path) -> None:
    for name, tokenizer in tokenizers_of_many_kinds(tmp_path).items():
        special = {tokenizer.bos_token_id, tokenizer.eos_token_id}
        plain, literal, parsed = (
            tokenize(paste(SPELLED, bos="never", special_tokens=rule), tokenizer)
            for rule in ("auto", "literal", "parsed")
        )
        assert plain.rows[0].tolist() == literal.rows[0].tolist(), name
        assert not special & set(literal.rows[0].tolist()), name
        assert special <= set(parsed.rows[0].tolist()), name
        assert parsed.rows[0].tolist() == tokenizer(SPELLED, add_special_tokens=False)["input_ids"], name
        assert literal.info.told == "2 spellings of special tokens read as text", name
        assert parsed.info.told == "2 spellings of special tokens parsed as tokens", name
        assert literal.info.words == f"pasted text ({literal.info.told})"
        windows = make_windows(paste(SPELLED, bos="never"), WindowSpec(window=4, windows=99, order="first"), tokenizer)
        assert windows.tokens.ravel().tolist() == literal.rows[0].tolist()[: windows.tokens.size], name
        assert windows.info.told == literal.info.told


def test_literal_text_is_what_transformers_calls_split_and_leaves_the_shared_tokenizer_alone(tmp_path: Path) -> None:
    tokenizers = tokenizers_of_many_kinds(tmp_path)
    for name in ("byte-level", "sentencepiece BPE, fast", "sentencepiece BPE, slow"):
        tokenizer = copy.deepcopy(tokenizers[name])
        found = tokenize(paste(SPELLED, bos="never"), tokenizer).rows[0].tolist()
        backend = getattr(tokenizer, "backend_tokenizer", None)
        assert backend is None or backend.encode_special_tokens is False, name
        assert found == tokenizer(SPELLED, add_special_tokens=False, split_special_tokens=True)["input_ids"], name


def test_text_without_such_spellings_has_the_same_tokens_by_every_rule_and_nothing_is_told(tmp_path: Path) -> None:
    for name, tokenizer in tokenizers_of_many_kinds(tmp_path).items():
        for text in ("It ends here, < s> and <begins/>.", "日本語 and more"):
            sets = [
                tokenize(paste(text, special_tokens=rule), tokenizer).info for rule in ("auto", "literal", "parsed")
            ]
            assert len({info.fingerprint for info in sets}) == 1, name
            assert {info.told for info in sets} == {""}, name


def test_the_options_of_a_text_say_how_special_tokens_are_read() -> None:
    from shortviz.records.text import text_of

    spec = TextSpec(kind="builtin", value="passages/prose", special_tokens="parsed", limit=1)
    info = tokenize(spec, PLAIN).info
    assert info.options.endswith("--special-tokens parsed")
    assert text_of(info) == spec


@given(st.text(alphabet="ab \n\té€漢🏔", max_size=40))
def test_pieces_are_whole_characters_and_joined_they_are_the_text(text: str) -> None:
    ids = ids_of(text)
    found = pieces(ids, PLAIN)
    assert "".join(words for words, _ in found) == text
    assert sum(count for _, count in found) == len(ids)
    assert [words for words, _ in found] == list(text), "the tokenizer has one token a byte"


def test_bytes_that_are_no_text_end_a_piece_before_they_swallow_the_rest() -> None:
    halves = ids_of("🏔")[:2]
    found = pieces([*halves, *ids_of("mill"), *halves], PLAIN)
    assert "".join(words for words, _ in found).replace("\ufffd", "") == "mill"
    assert max(count for _, count in found) <= 4


def test_a_special_token_is_a_piece_of_its_own_name() -> None:
    ids = [257, *ids_of("so")]
    assert pieces(ids, PLAIN)[0] == (PLAIN.convert_ids_to_tokens(257), 1)


def test_a_token_is_told_with_the_space_before_it() -> None:
    vocab = {"▁a": 0, "▁river": 1, "s": 2, "<unk>": 3}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    spaced = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    assert token_texts([1, 2, 1], spaced) == {1: " river", 2: "s"}
    assert pieces([1, 2, 0, 1], spaced) == [("river", 1), ("s", 1), (" a", 1), (" river", 1)]
