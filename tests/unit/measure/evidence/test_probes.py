"""Probes: the same items for a seed, the same score twice and in any batch, refused where they cannot be written."""

import copy
import re
from dataclasses import replace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from shortviz.measure.evidence.probes import MAKERS, make_probe, score_probe
from shortviz.measure.generation import continue_text
from shortviz.model.handle import ModelHandle
from shortviz.model.prune import prune
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.text import TextSpec
from shortviz.text.sources import read_rows
from tests.support.families import build_tiny, handle_of


@pytest.fixture(scope="module")
def tiny() -> ModelHandle:
    found = handle_of(build_tiny("llama"))
    return replace(found, info=replace(found.info, context_length=4096))


@pytest.mark.parametrize("name", MAKERS)
def test_the_items_of_a_seed_are_always_the_same_a_hundred_and_all_different(name: str, tiny: ModelHandle) -> None:
    probe = make_probe(name, tiny, seed=3)

    assert probe == make_probe(name, tiny, seed=3)
    assert len({item.question for item in probe.items}) == len(probe.items) == 100
    assert not any(f"{item.question} {item.answer}\n" in probe.examples for item in probe.items)
    assert (make_probe(name, tiny, seed=4).items == probe.items) is (name == "facts")  # a fixed list


@pytest.mark.parametrize("name", MAKERS)
def test_no_question_stands_in_the_text_that_treatments_learn_from(name: str, tiny: ModelHandle) -> None:
    text = "\n".join(read_rows(TextSpec(kind="builtin", value="assorted")).rows)
    questions = [item.question for item in make_probe(name, tiny).items]

    assert [one for one in questions if re.search(rf"\b{re.escape(one)}", text)] == []


def test_the_answers_are_right(tiny: ModelHandle) -> None:
    for item in make_probe("addition", tiny).items:
        one, other = item.question.removesuffix(" =").split(" + ")
        assert int(one) + int(other) == int(item.answer)
    pairs = {"(": ")", "[": "]", "{": "}", "<": ">"}
    for item in make_probe("brackets", tiny).items:
        opened = item.question.removeprefix("Open: ").removesuffix(" Close:").split()
        assert [pairs[one] for one in opened[::-1]] == item.answer.split()
    for item in make_probe("recall", tiny).items:
        asked = item.question.split()[-2]
        assert f"{asked} lives in {item.answer}." in item.question
    for item in make_probe("copy", tiny).items:
        assert item.question == f"Say: {item.answer}. Repeat:"


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_model_writes_in_any_batch_what_it_writes_alone_without_a_shared_prefix(family: str) -> None:
    handle = handle_of(build_tiny(family))
    probe = make_probe("addition", handle, items=6)
    cut = prune(handle, PrunePlan.of_blocks(handle.info.num_layers, Block(start=1, n=1)))

    for model in (handle, cut):
        found = score_probe(model, probe, batch_size=4)
        assert found == score_probe(model, probe, batch_size=4) == score_probe(model, probe, batch_size=1)
        for item, written in zip(probe.items, found.written, strict=True):
            alone = continue_text(
                model, probe.examples + item.question, max_new_tokens=6
            )  # " 123", the line's end, one more
            assert alone.split("\n")[0].strip() == written
        assert found.right == "".join("01"[w == i.answer] for w, i in zip(found.written, probe.items, strict=True))


def test_a_tokenizer_that_cannot_write_digits_refuses_that_probe_in_a_sentence(tiny: ModelHandle) -> None:
    words = [*"abcdefghijklmnopqrstuvwxyz+=:.?()[]{}<>\n", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"), "[UNK]"]
    tokenizer = Tokenizer(models.WordPiece(vocab={word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")

    probe = make_probe("addition", replace(tiny, tokenizer=plain))

    assert probe.refused == "The probe addition was not asked: this tokenizer cannot write '0123456789'."
    assert probe.items == ()


def test_a_context_that_is_too_short_refuses_the_probe(tiny: ModelHandle) -> None:
    short = replace(tiny, info=replace(tiny.info, context_length=64))

    assert "and the model's context is 64." in make_probe("recall", short).refused


def test_what_is_longer_than_the_tokenizer_likes_is_not_warned_of(
    tiny: ModelHandle, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.model_max_length = 16

    make_probe("copy", replace(tiny, tokenizer=tokenizer), items=1)
    continue_text(replace(tiny, tokenizer=tokenizer), "a long prompt " * 4, max_new_tokens=1)

    assert caplog.text == ""
