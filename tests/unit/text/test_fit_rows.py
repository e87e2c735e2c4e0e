"""Rows that a repair is fitted to: none of what a training holds out, and those that the command line names."""

import shlex
from dataclasses import replace

import numpy as np
import pytest

from shortviz.heal.data import split_heldout
from shortviz.records.text import TextInfo, TextSpec, text_of, text_options
from shortviz.text.tokens import fit_rows, tokenize
from tests.support.families import tiny_tokenizer


@pytest.mark.parametrize("limit", [3, 12, None])
@pytest.mark.parametrize(("max_length", "bos"), [(64, "auto"), (1 << 40, "always")])
def test_no_row_reaches_into_what_is_held_out(limit: int | None, max_length: int, bos: str) -> None:
    tokenizer = tiny_tokenizer()
    bos = bos if tokenizer.bos_token_id is not None else "auto"
    spec = TextSpec(kind="builtin", value="passages/prose", limit=limit, max_length=max_length, bos=bos)
    train, heldout = split_heldout(tokenize(spec, tokenizer), windows=2, window=16)
    in_rows = replace(spec, max_length=32)
    rows = fit_rows(in_rows, tokenizer, tokens=10**6, before=train)
    everything = fit_rows(in_rows, tokenizer, tokens=10**6)
    assert len(rows.rows) < len(everything.rows), "the end of the text is left out"
    assert all(np.array_equal(a, b) for a, b in zip(rows.rows, everything.rows, strict=False))
    fitted = tokenizer.decode(np.concatenate(rows.rows), skip_special_tokens=True)
    held = tokenizer.decode(heldout.tokens[0], skip_special_tokens=True).strip()
    assert held not in fitted
    assert held in tokenizer.decode(np.concatenate(everything.rows), skip_special_tokens=True)


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (TextSpec(kind="builtin", value="passages", limit=4), "--builtin passages --limit 4"),
        (
            TextSpec(kind="file", value="/home/me/my text.jsonl", key="body", bos="never"),
            "--text 'my text.jsonl' --key body --bos never --long-rows cut",
        ),
        (TextSpec(kind="dataset", value="a/b", subset="c"), "--dataset a/b --subset c --split train --long-rows cut"),
        (TextSpec(kind="dataset", value="a/b", long_rows="truncate"), "--dataset a/b --split train"),
        (TextSpec(kind="paste", value="words"), ""),
    ],
)
def test_a_text_is_named_as_the_command_line_names_it(spec: TextSpec, options: str) -> None:
    assert text_options(spec) == options
    assert "/home" not in options
    assert len(shlex.split(options)) % 2 == 0


def test_a_record_of_before_truncated_its_rows_and_one_of_windows_has_none() -> None:
    info = TextInfo(source="data set a/b", rows=2, tokens=9, fingerprint="f", options="--dataset a/b --split train")
    of_rows, of_windows = text_of(info), text_of(info, rows=False)
    assert of_rows is not None
    assert not of_rows.cuts
    assert of_windows == TextSpec(kind="dataset", value="a/b")
    cut = text_of(replace(info, options=f"{info.options} --long-rows cut"))
    assert cut is not None
    assert cut.cuts
    built_in = text_of(replace(info, options="--builtin passages"))
    assert built_in == TextSpec(kind="builtin", value="passages")
