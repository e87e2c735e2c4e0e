"""The proof's own process: it loads a checkpoint the way a stranger would and answers with what it computes.

Run as a file (`python -P proof.py`), it sees torch and transformers and nothing of shortviz, so nothing of ours can
help the checkpoint along. It reads one JSON command a line on stdin and answers one JSON object a line on stdout:

    {"do": "load", "folder", "dtype", "device", "threads", ...}          -> {"stated", "missing", ...}
    {"do": "tokenize", "text"}                                                          -> {"ids", "template", "size"}
    {"do": "logits", "prompts", "addresses", "out"}           -> {}, logits in the safetensors file `out`
    {"do": "generate", "prompts", "new_tokens"}               -> {"cached", "uncached", "dtype"}

A command that fails is answered with {"error", "kind"}. End of input ends the process.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

CACHE_LINE = 64
"""Bytes: addresses equal modulo this make every vector kernel take the same path."""

_WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float64}


class Checkpoint:
    """The loaded checkpoint, with one method a command."""

    def __init__(self) -> None:
        self.model: Any = None
        self.tokenizer: Any = None

    def load(
        self,
        folder: str,
        dtype: str,
        device: str,
        threads: int,
        precision: str,
        attention: str | None,
        experts: str | None,
    ) -> dict[str, Any]:
        """Load with the plain calls, then compute in the way the asking process does: dtype, threads, kernels, device.

        `stated` is the dtype that the checkpoint says it is in, which plain loading takes.
        """
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        config = AutoConfig.from_pretrained(folder)
        stated = config.dtype or config.get_text_config(decoder=True).dtype
        self.model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), output_loading_info=True
        )
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        if attention is not None and self.model.config._attn_implementation != attention:
            self.model.set_attn_implementation(attention)
        if experts is not None and self.model.config._experts_implementation != experts:
            self.model.set_experts_implementation(experts)
        # torch folds a batched product by requires_grad, even under no_grad: other sums, other last bits (mamba).
        self.model.to(device).eval().requires_grad_(False)
        keys = {name: sorted(map(str, info[f"{name}_keys"])) for name in ("missing", "unexpected", "mismatched")}
        return keys | {"stated": None if stated is None else str(stated).removeprefix("torch.")}

    def tokenize(self, text: str) -> dict[str, Any]:
        """Return the token ids of a text, the chat template, and the size of the vocabulary."""
        return {
            "ids": self.tokenizer(text)["input_ids"],
            "template": self.tokenizer.chat_template,
            "size": len(self.tokenizer),
        }

    def logits(self, prompts: Sequence[Sequence[int]], addresses: Mapping[str, int] | None, out: str) -> dict[str, Any]:
        """Write the logits of each prompt, shape (tokens, vocabulary), in the model's dtype."""
        if addresses is not None:
            match_addresses(self.model, addresses)
        with torch.no_grad():
            save_file({str(i): next_logits(self.model, prompt) for i, prompt in enumerate(prompts)}, out)
        return {}

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> dict[str, Any]:
        """Return greedy continuations with and without a cache.

        Both are one function in exact arithmetic, but rounding can turn a near-tie, in bfloat16 easily. So a difference
        is looked at again in a wider dtype: rounding vanishes there, a fault stays.
        """
        while True:
            cached, uncached = ([self._greedy(p, new_tokens, use) for p in prompts] for use in (True, False))
            wider = _WIDER.get(self.model.dtype)
            if cached == uncached or wider is None:
                dtype = str(self.model.dtype).removeprefix("torch.")
                return {"cached": cached, "uncached": uncached, "dtype": dtype}
            self.model.to(wider)

    def _greedy(self, prompt: Sequence[int], new_tokens: int, use_cache: bool) -> list[int]:
        ids = torch.tensor([prompt], device=self.model.device)
        with torch.no_grad():
            written = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                num_beams=1,
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
                use_cache=use_cache,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=0,
            )
        tokens: list[int] = written[0, len(prompt) :].tolist()
        return tokens


def next_logits(model: PreTrainedModel, prompt: Sequence[int]) -> torch.Tensor:
    """Return the logits after each token of a prompt, shape (tokens, vocabulary), on the CPU, in the model's dtype."""
    ids = torch.tensor([prompt], device=model.device)
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits.cpu().contiguous()


def addresses_of(model: PreTrainedModel) -> dict[str, int]:
    """Return each weight's address modulo a cache line."""
    return {name: weight.data_ptr() % CACHE_LINE for name, weight in _weights(model)}


def match_addresses(model: PreTrainedModel, addresses: Mapping[str, int]) -> None:
    """Move each weight to an address that equals the given one modulo a cache line; values stay bit for bit.

    Matrix kernels choose their path, and with it the order of their sums, by alignment: a weight mapped from a file
    at an odd offset gives other last bits than the same weight on the heap (seen with MKL, float32, one token).
    """
    for name, weight in _weights(model):
        wanted = addresses.get(name)
        if wanted is None or weight.data_ptr() % CACHE_LINE == wanted:
            continue
        room = torch.empty(weight.numel() * weight.element_size() + 2 * CACHE_LINE, dtype=torch.uint8)
        skip = (wanted - room.data_ptr()) % CACHE_LINE
        moved = room[skip : skip + weight.numel() * weight.element_size()].view(weight.dtype).view(weight.shape)
        moved.copy_(weight.data)
        weight.data = moved


def _weights(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def answer(checkpoint: Checkpoint, line: str) -> dict[str, Any]:
    """Return the answer to one command line; a failure is an answer too, for the asking process to judge."""
    command = json.loads(line)
    work: Callable[..., dict[str, Any]] = getattr(checkpoint, command.pop("do"))
    try:
        return work(**command)
    except Exception as error:  # the boundary of this process: the asking one decides what it means
        return {"error": f"{type(error).__name__}: {error}", "kind": type(error).__name__}


def main() -> None:
    """Answer commands until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers
    checkpoint = Checkpoint()
    for line in sys.stdin:
        print(json.dumps(answer(checkpoint, line)), file=answers, flush=True)


if __name__ == "__main__":
    main()
