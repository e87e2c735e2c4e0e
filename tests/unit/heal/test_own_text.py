"""Training text that the uncut model writes itself: the same for a seed, without duplicates, mixed in exact shares."""

import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shortviz.errors import FieldError, Stopped, TextError
from shortviz.heal import own_text
from shortviz.heal.data import pack, split_heldout
from shortviz.heal.own_text import BATCH, PROMPTS, mixed, read_prompts, write_text
from shortviz.model.handle import ModelHandle
from shortviz.progress import Watch
from shortviz.records.heal import OwnText
from shortviz.records.text import ALL_TOKENS, TextSpec
from shortviz.text.sources import TextRows
from shortviz.text.tokens import tokenize
from tests.support.families import shared_handle, tiny_handle

LIKE = TextSpec(kind="builtin", value="passages/prose", max_length=ALL_TOKENS)
OWN = OwnText(self_share=1.0, self_tokens=900, self_length=12)


@pytest.fixture(scope="module")
def base() -> ModelHandle:
    return shared_handle("llama")


def prompts(*rows: str) -> TextRows:
    return TextRows(spec=LIKE, rows=rows, source=f"{len(rows)} test prompts")


def test_the_same_seed_writes_the_same_text_and_another_one_another(base):
    before = torch.random.get_rng_state()
    first, again = (write_text(base, read_prompts(OWN), OWN, LIKE) for _ in range(2))
    assert first == again
    assert torch.equal(before, torch.random.get_rng_state()), "nobody else's random numbers are touched"
    other = replace(OWN, self_seed=1)
    assert write_text(base, read_prompts(other), other, LIKE).rows != first.rows
    assert all(row.startswith(PROMPTS) for row in first.rows), "the prompt stands in front"
    ids = tokenize(first, base.tokenizer)
    assert ids.info.tokens >= 900
    assert "sampled at temperature 1 and top p 0.95, seed 0, up to 12 tokens after each of" in ids.info.told
    assert f"{len(PROMPTS)} built-in prompts, which stand in front; {len(first.rows)} texts" in ids.info.told
    assert ids.info.options == "", "no option alone names it"


def test_greedy_texts_that_are_the_same_are_dropped_and_counted_and_each_prompt_has_its_one(base):
    own = replace(OWN, self_temperature=0.0, self_tokens=10_000)
    found = write_text(base, prompts("One day a", "Two days or", "One day a"), own, LIKE)
    assert len(found.rows) == len(set(found.rows)) == 2
    assert found.told[0] == "greedy, up to 12 tokens after each of 3 test prompts, which stand in front"
    assert found.told[1] == "2 texts, 1 duplicate dropped"
    assert found.told[2].startswith("nothing new came after ")


def test_sampling_that_always_says_the_same_comes_to_an_end(base):
    own = replace(OWN, self_top_p=1e-6, self_tokens=10_000)
    found = write_text(base, prompts("One day a", "Two days or"), own, LIKE)
    assert len(found.rows) == 2
    dropped = 2 * 2 * BATCH - 2  # two turns of both prompts, of which one text each is new
    assert found.told[1] == f"2 texts, {dropped} duplicates dropped"


def test_batches_are_full_and_every_prompt_comes_equally_often(base):
    rows = tokenize(read_prompts(OWN), base.tokenizer).rows
    batches = own_text._batches(rows, 0, 0, False)
    assert {len(batch) for batch in batches} == {BATCH}
    found = Counter(tuple(row) for batch in batches for row in batch.tolist())
    assert found == dict.fromkeys(map(tuple, rows), BATCH)
    assert len(own_text._batches(rows, 0, 0, True)) == len({len(row) for row in rows})


def test_a_stopped_writing_goes_on_to_the_text_that_would_have_come(base, tmp_path):
    whole = write_text(base, read_prompts(OWN), OWN, LIKE)
    stop, path = threading.Event(), tmp_path / "own.safetensors"

    def press(progress):
        if progress.done > 300:
            stop.set()

    with pytest.raises(Stopped, match="what it wrote is kept"):
        write_text(base, read_prompts(OWN), OWN, LIKE, checkpoint=path, watch=Watch(press, stop))
    seen = []
    found = write_text(base, read_prompts(OWN), OWN, LIKE, checkpoint=path, watch=Watch(lambda p: seen.append(p.done)))
    assert found == whole
    assert seen[0] > 300, "what was kept was not written again"


def test_what_is_complete_is_read_and_not_written_again(base, tmp_path, monkeypatch):
    path = tmp_path / "own.safetensors"
    whole = write_text(base, read_prompts(OWN), OWN, LIKE, checkpoint=path)
    monkeypatch.delattr(own_text, "sample")
    assert write_text(base, read_prompts(OWN), OWN, LIKE, checkpoint=path) == whole


def test_every_prompt_and_every_window_opens_with_the_bos_where_the_policy_says_so():
    base = tiny_handle("llama", bos=True)
    bos = base.tokenizer.bos_token_id
    written = tokenize(write_text(base, read_prompts(OWN), OWN, LIKE), base.tokenizer)
    plain = tokenize(LIKE, base.tokenizer)
    for text in (None, plain):
        tokens, _ = mixed(written, text, 0.5 if text else 1.0, 16)
        train, held = split_heldout(tokens, window=16)
        windows = np.concatenate([pack(train, 16), held.tokens])
        assert (windows[:, 0] == bos).all()
        assert not (windows[:, 1:] == bos).any()
    without = replace(LIKE, bos="never")
    bare = tokenize(write_text(base, read_prompts(OWN), OWN, without), base.tokenizer)
    assert bare.opening == ()
    assert bare.rows[0][0] != bos


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_the_share_counts_windows_exactly_in_what_trains_and_what_is_held_out(base, share):
    written = tokenize(write_text(base, read_prompts(OWN), OWN, LIKE), base.tokenizer)
    plain = tokenize(LIKE, base.tokenizer)
    tokens, which = mixed(written, plain, share, 16)
    mine, others = pack(written, 16), pack(plain, 16)
    total = len(tokens.rows)
    assert sum(which) == round(share * total)
    assert total == int(min(len(mine) / share, len(others) / (1 - share)) + 1e-9), "as many as both have for it"
    own = [row for row, is_own in zip(tokens.rows, which, strict=True) if is_own]
    rest = [row for row, is_own in zip(tokens.rows, which, strict=True) if not is_own]
    assert np.array_equal(own, mine[: len(own)])
    assert np.array_equal(rest, others[: len(rest)])
    assert np.array_equal(pack(tokens, 16), tokens.rows), "a window is of one text alone"
    train, held = split_heldout(tokens, window=16)
    assert len(train.rows) + len(held.tokens) == total
    for first in range(0, total - 20, 7):
        assert abs(sum(which[first : first + 20]) - 20 * share) <= 1, "evenly, all along"
    assert tokens.info.source == (
        f"text that tiny-llama wrote itself ({sum(which)} of {total} windows) and built-in passages/prose"
    )


def test_prompts_are_lines_of_a_text_or_rows_of_a_table(tmp_path):
    lines, rows = tmp_path / "lines.txt", tmp_path / "rows.jsonl"
    lines.write_text("One day\n\n  \nTwo days\n")
    rows.write_text('{"text": "One\\nday"}\n{"text": ""}\n{"text": "Two days"}\n')
    found = read_prompts(OwnText(prompts=str(lines)))
    assert found.rows == ("One day", "Two days")
    assert found.source == "2 prompts of the file lines.txt"
    assert read_prompts(OwnText(prompts=str(rows))).rows == ("One\nday", "Two days")


def refused(path: Path, content: str) -> str:
    path.write_text(content)
    with pytest.raises(TextError) as caught:
        read_prompts(OwnText(prompts=str(path)))
    return str(caught.value)


def test_prompts_that_cannot_be_gone_on_from_are_refused(base, tmp_path):
    assert refused(tmp_path / "no.txt", "\n \n") == "The file no.txt is empty; give some text."
    chats = '{"messages": [{"role": "user", "content": "Hello"}]}\n'
    assert "holds chats, and prompts are continued as plain text" in refused(tmp_path / "chats.jsonl", chats)
    with pytest.raises(TextError, match="up to 600 tokens long and the model's context is 512; shorten them to at"):
        write_text(base, prompts("x" * 600), OWN, LIKE)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("self_share", share) for share in (0.0, -0.5, 1.5, float("nan"))),
        *(("self_temperature", value) for value in (-1.0, float("inf"))),
        *(("self_top_p", value) for value in (0.0, 1.1)),
        *((name, 0) for name in ("self_tokens", "self_length")),
        ("self_seed", -1),
    ],
)
def test_settings_out_of_range_are_refused_by_their_field(field, value):
    with pytest.raises(FieldError, match=f"^{field} is .*; it must be"):
        OwnText(**{field: value})
