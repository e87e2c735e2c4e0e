"""Greedy continuation: the most likely token at each step, its stops and its refusals."""

import threading

import pytest
import torch

from shortviz.errors import TextError
from shortviz.measure.generation import continue_text
from shortviz.model.prune import prune
from shortviz.progress import Watch
from shortviz.records.plan import PrunePlan
from tests.support.families import CONTEXT_LENGTH, shared_handle, tiny_handle

PROMPT = "The layers of a model"


def by_hand(name: str, steps: int) -> str:
    """Take the most likely token of a full forward pass, again and again."""
    handle = shared_handle(name)
    ids = handle.tokenizer(PROMPT)["input_ids"]
    start = len(ids)
    with torch.inference_mode():
        for _ in range(steps):
            given = torch.tensor([ids], device=handle.model.device)
            ids.append(int(handle.model(input_ids=given, use_cache=False).logits[0, -1].argmax()))
            if ids[-1] == handle.model.generation_config.eos_token_id:
                break
    return handle.tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_continuation_is_the_most_likely_token_at_each_step(use_cache: bool) -> None:
    handle = shared_handle("llama")
    assert continue_text(handle, PROMPT, max_new_tokens=8, use_cache=use_cache) == by_hand("llama", 8)


def test_a_pruned_model_writes_too() -> None:
    pruned = prune(shared_handle("qwen2"), PrunePlan(num_layers=6, removed=(1,)))
    cached = continue_text(pruned, PROMPT, max_new_tokens=12)
    assert cached
    assert cached == continue_text(pruned, PROMPT, max_new_tokens=12, use_cache=False)


def test_text_streams_through_and_joined_is_the_result() -> None:
    pieces: list[str] = []
    assert continue_text(shared_handle("llama"), PROMPT, max_new_tokens=24, on_text=pieces.append) == "".join(pieces)


def test_a_stop_ends_the_text_early() -> None:
    stop = threading.Event()
    stop.set()
    handle = shared_handle("llama")
    short = continue_text(handle, PROMPT, max_new_tokens=24, watch=Watch(stop=stop))
    assert short == by_hand("llama", 1)


def test_sampling_and_penalties_of_the_model_do_not_matter() -> None:
    handle = tiny_handle("llama")
    handle.model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9, top_k=5, repetition_penalty=1.5)
    before = handle.model.generation_config.to_dict()
    assert continue_text(handle, PROMPT, max_new_tokens=8) == by_hand("llama", 8)
    assert handle.model.generation_config.to_dict() == before


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(TextError, match="The prompt is empty; write a few words"):
        continue_text(shared_handle("llama"), prompt)


def test_a_prompt_with_half_a_character_is_refused() -> None:
    with pytest.raises(TextError, match="The prompt holds half a character, or a byte that is no UTF-8 text; write it"):
        continue_text(shared_handle("llama"), "Up \udc80?")


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    with pytest.raises(TextError, match="prompt is 512 tokens long and the model's context is 512; shorten it"):
        continue_text(shared_handle("llama"), "a" * CONTEXT_LENGTH)


def test_near_the_end_of_the_context_fewer_tokens_are_written() -> None:
    handle = shared_handle("llama")
    shapes: list[int] = []
    hook = handle.model.lm_head.register_forward_hook(lambda *_: shapes.append(1))
    continue_text(handle, "a" * (CONTEXT_LENGTH - 2), max_new_tokens=20)
    hook.remove()
    assert len(shapes) <= 2
