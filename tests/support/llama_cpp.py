"""What llama.cpp itself says of a GGUF file: it loads, continues a prompt, and scores given tokens.

Its log goes to the file descriptor 2 of this process. A server listens on a loopback port of its own.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xllamacpp

_FORCED = 1e4
"""Added to a token's logit, so that greedy sampling takes it; the log-probability told is that before it was added."""


class LlamaCpp:
    """A loaded model."""

    def __init__(self, path: Path, context: int = 256) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup, params.verbosity = context, 1, False, -1
        params.n_gpu_layers = 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        self._server = xllamacpp.Server(params)

    def _complete(self, tokens: Sequence[int], number: int, bias: list[Any]) -> dict[str, Any]:
        found = self._server.handle_completions(
            {
                "prompt": [int(token) for token in tokens],
                "max_tokens": number,
                "temperature": 0,
                "logprobs": 1,
                "logit_bias": bias,
            }
        )
        assert "choices" in found, found
        choice: dict[str, Any] = found["choices"][0]
        return choice

    def continuation(self, tokens: Sequence[int], number: int) -> list[int]:
        """Return the most likely tokens, one after the other, until the model ends its text."""
        return [entry["id"] for entry in self._complete(tokens, number, [])["logprobs"]["content"]]

    def losses(self, tokens: Sequence[int]) -> list[float]:
        """Return the loss, in nats, of each token but the first."""
        losses = []
        for place in range(1, len(tokens)):
            wanted = int(tokens[place])
            (entry,) = self._complete(tokens[:place], 1, [[wanted, _FORCED]])["logprobs"]["content"]
            assert entry["id"] == wanted
            losses.append(-entry["logprob"])
        return losses


@contextmanager
def llama_cpp(path: Path, context: int = 256) -> Iterator[LlamaCpp]:
    """Open a GGUF file with llama.cpp."""
    model = LlamaCpp(path, context)
    try:
        yield model
    finally:
        del model._server
