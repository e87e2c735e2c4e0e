"""What a model writes: the greedy continuation of a prompt, before and after a cut, and sampled ones of many."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers import StoppingCriteriaList, TextStreamer

from shortviz.errors import TextError
from shortviz.model.handle import ModelHandle
from shortviz.progress import NO_WATCH, Watch
from shortviz.text.sources import whole_characters


class _Streamer(TextStreamer):  # type: ignore[misc]  # transformers comes without types
    """Hands finished words to a function instead of printing them."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._on_text(text)


def continue_text(
    handle: ModelHandle,
    prompt: str,
    *,
    max_new_tokens: int = 48,
    use_cache: bool = True,
    on_text: Callable[[str], None] | None = None,
    watch: Watch = NO_WATCH,
) -> str:
    """Return what the model writes after a prompt: its most likely token at each step, by its own `generate`.

    The prompt is taken as it is, without a chat template, and is not part of the result. `on_text` gets each new piece
    of text (whole words) as it is made; joined, the pieces are the result. After a stop the text so far is
    returned. Near the end of the model's context fewer than `max_new_tokens` are written.

    Raises TextError for an empty prompt and for one that fills the context.
    """
    tokens = _prompt_tokens(handle, prompt)
    room = max_new_tokens if handle.info.context_length is None else handle.info.context_length - tokens.shape[1]
    streamer = None if on_text is None else _Streamer(handle.tokenizer, on_text)
    config = greedy(handle, min(max_new_tokens, room), use_cache=use_cache)
    written = _generate(handle, tokens, watch, streamer, config)
    text: str = handle.tokenizer.decode(written[0, tokens.shape[1] :], skip_special_tokens=True)
    return text


def sample(
    handle: ModelHandle, prompts: torch.Tensor, *, max_new_tokens: int, temperature: float, top_p: float,
    watch: Watch = NO_WATCH,
) -> list[list[int]]:  # fmt: skip
    """Return what the model writes after each prompt, (prompts, tokens), up to where it ends its text.

    The random numbers are torch's; at temperature 0 the most likely token is taken. After a stop less is returned.
    """
    config = greedy(handle, max_new_tokens)
    if temperature:
        config.update(do_sample=True, temperature=temperature, top_p=top_p, top_k=0)
    written = _generate(handle, prompts.to(handle.model.device), watch, None, config)
    ends = handle.model.generation_config.eos_token_id
    stops = set(ends if isinstance(ends, list) else [ends])
    rows = written[:, prompts.shape[1] :].tolist()
    return [row[: next((i for i, token in enumerate(row) if token in stops), len(row))] for row in rows]


def _generate(
    handle: ModelHandle, tokens: torch.Tensor, watch: Watch, streamer: _Streamer | None, config: Any
) -> torch.Tensor:
    """Return prompts of equal length and what the model's own `generate` adds to them."""

    def asked(ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(ids),), watch.stopped, dtype=torch.bool, device=ids.device)

    with handle.lock, torch.inference_mode():
        written: torch.Tensor = handle.model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([asked]),
            streamer=streamer,
        )
    return written


def greedy(handle: ModelHandle, max_new_tokens: int, *, use_cache: bool = True) -> Any:
    """Return the settings by which a model's own `generate` takes its most likely token at each step."""
    config = copy.deepcopy(handle.model.generation_config)
    config.update(
        do_sample=False,
        num_beams=1,
        # Neutral values: None would be filled from the model's own sampling settings.
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        max_length=None,
        max_new_tokens=max_new_tokens,
        use_cache=use_cache,
        pad_token_id=_pad_token(handle),
    )
    return config


def _prompt_tokens(handle: ModelHandle, prompt: str) -> torch.Tensor:
    """Return the prompt's token ids, shape (1, tokens), or raise TextError."""
    if not prompt.strip():
        raise TextError("The prompt is empty; write a few words for the model to continue.")
    if whole_characters(prompt)[1]:
        raise TextError("The prompt holds half a character, or a byte that is no UTF-8 text; write it anew.")
    ids = handle.tokenizer(prompt, verbose=False)["input_ids"]  # of a long prompt we say it in a sentence
    if not ids:
        raise TextError(f"The prompt {prompt!r} gives no tokens with this tokenizer; write something else.")
    context = handle.info.context_length
    if context is not None and len(ids) >= context:
        raise TextError(
            f"The prompt is {len(ids)} tokens long and the model's context is {context}; shorten it to at most "
            f"{context - 1}."
        )
    return torch.tensor([ids], device=handle.model.device)


def _pad_token(handle: ModelHandle) -> int:
    """Return the token that fills up after the end; with one prompt it is never seen, but `generate` asks for it."""
    ends = handle.model.generation_config.eos_token_id
    found = [handle.tokenizer.pad_token_id, *(ends if isinstance(ends, list) else [ends]), 0]
    return next(int(token) for token in found if token is not None)
