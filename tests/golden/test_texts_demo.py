"""Built-in texts under the demo model's own tokenizer: their lengths are promises of the product."""

import pytest

from shortviz.model.handle import ModelHandle
from shortviz.records.text import TextSpec, WindowSpec
from shortviz.text.sources import read_rows
from shortviz.text.tokens import DEFAULT_CALIBRATION, DEFAULT_EVALUATION, make_windows, tokenize

pytestmark = pytest.mark.demo


def test_every_passage_has_at_least_270_tokens(demo_handle: ModelHandle) -> None:
    passages = tokenize(TextSpec(kind="builtin", value="passages", max_length=2048), demo_handle.tokenizer)
    assert passages.info.rows == 36
    assert min(map(len, passages.rows)) >= 270


def test_the_default_calibration_rows_are_all_full(demo_handle: ModelHandle) -> None:
    rows = tokenize(DEFAULT_CALIBRATION, demo_handle.tokenizer)
    assert {len(row) for row in rows.rows} == {256}
    assert (rows.info.rows, rows.info.tokens, rows.info.skipped) == (64, 64 * 256, 0)
    assert (rows.info.source, rows.info.bos) == ("built-in python-reference", "auto: no BOS")


def test_the_default_evaluation_text_fills_the_default_windows(demo_handle: ModelHandle) -> None:
    windows = make_windows(DEFAULT_EVALUATION, WindowSpec(), demo_handle.tokenizer)
    assert windows.tokens.shape == (16, 512)
    assert windows.info.bos == "auto: no BOS"


def test_windows_are_the_joined_text_word_for_word(demo_handle: ModelHandle) -> None:
    windows = make_windows(DEFAULT_EVALUATION, WindowSpec(order="first"), demo_handle.tokenizer)
    text = "\n\n".join(read_rows(DEFAULT_EVALUATION).rows)
    assert text.startswith(demo_handle.tokenizer.decode(windows.tokens.ravel().tolist()).rstrip("\ufffd"))


def test_bos_always_opens_each_window_with_the_demo_models_bos(demo_handle: ModelHandle) -> None:
    spec = TextSpec(kind="builtin", value="passages", bos="always")
    windows = make_windows(spec, WindowSpec(window=64), demo_handle.tokenizer)
    plain = make_windows(DEFAULT_EVALUATION, WindowSpec(window=63), demo_handle.tokenizer)
    assert set(windows.tokens[:, 0].tolist()) == {demo_handle.tokenizer.bos_token_id}
    assert windows.tokens[:, 1:].tolist() == plain.tokens.tolist()
    assert windows.info.bos == "always: BOS <|im_start|>"
