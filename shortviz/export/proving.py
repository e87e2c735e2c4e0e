"""The proof's asking side: a written checkpoint, opened in a fresh process, computes what the model here computes."""

import json
import math
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from shortviz.errors import ExportError, NumericsError, ResourceError
from shortviz.export import proof
from shortviz.export.texts import stated_dtype
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import placeholder_ids
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.model import STORED

SENTENCE = "The quick brown fox jumps over the lazy dog, and the river keeps on running towards the sea."
LENGTHS = (1, 7, 33)
"""Tokens of the random prompts; one token alone takes its own matrix kernels."""
NEW_TOKENS = 12
_SEED = 20240326
EXPORT_STOPPED = "The export was stopped; nothing was left behind."
_MEMORY_ERRORS = ("MemoryError", "OutOfMemoryError", "AcceleratorError")


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """What the fresh process found."""

    max_logit_diff: float
    """Largest absolute difference of logits, memory against reload; 0.0 is equal bit for bit."""
    prompt_lengths: tuple[int, ...]
    """Tokens of each prompt compared."""
    new_tokens: int
    """Tokens generated after each prompt, with and without a cache."""
    dtype: str
    """In which logits were compared: that of the model here."""
    generation_dtype: str
    """dtype in which both were equal: the checkpoint's own, or a wider one where rounding turned a near-tie."""


class FreshProcess:
    """A child process that runs proof.py; ask it, one command at a time. Use `fresh_process`."""

    def __init__(self, scratch: Path) -> None:
        self._errors = scratch / "proof.log"
        self._answers: queue.Queue[str | None] = queue.Queue()
        # -P: the folder of the script, which is the shortviz package, must not become importable piece by piece.
        with self._errors.open("wb") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-P", proof.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_child_environment(),
                start_new_session=True,  # a Ctrl-C is ours to turn into an orderly end
                encoding="utf-8",
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ask(self, watch: Watch = NO_WATCH, **command: Any) -> dict[str, Any]:
        """Return the answer to a command of proof.py.

        Raises Stopped when asked to stop, ResourceError where memory or disk ran out, ExportError where the
        checkpoint failed.
        """
        assert self._child.stdin is not None
        try:
            print(json.dumps(command), file=self._child.stdin, flush=True)
        except OSError:
            raise self._death() from None
        while True:
            watch.check(EXPORT_STOPPED)
            try:
                line = self._answers.get(timeout=0.1)
            except queue.Empty:
                continue
            if line is None:
                raise self._death()
            found: dict[str, Any] = json.loads(line)
            if "error" in found:
                raise _failure(found["kind"], found["error"])
            return found

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._child.pid

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._child.kill()
        self._child.wait()
        self._reader.join()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with suppress(OSError):  # a command that never went out
                    pipe.close()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _death(self) -> Exception:
        code = self._child.wait()
        if code == -9:
            return ResourceError(
                "The proof's process was killed, most likely for want of memory; free some and try again."
            )
        tail = self._errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        return ExportError(f"The proof's process ended with code {code} ({''.join(tail) or 'no message'}).")


@contextmanager
def fresh_process(scratch: Path) -> Iterator[FreshProcess]:
    """Give a running proof process that is gone at the end; `scratch` is a folder for its log."""
    child = FreshProcess(scratch)
    try:
        yield child
    finally:
        child.close()


def proof_prompts(pruned: ModelHandle) -> list[list[int]]:
    """Return the fixed prompts of a model: seeded random ids of several lengths, and a real sentence where it fits.

    Tokens that stand for pictures are no text and not among them.
    """
    info = pruned.info
    room = max((info.context_length or 2048) - NEW_TOKENS, 1)
    rng = np.random.default_rng(_SEED)
    lengths = sorted({min(length, room) for length in LENGTHS})
    words = np.setdiff1d(np.arange(info.vocab_size), sorted(placeholder_ids(pruned.model.config)))
    prompts = [words[rng.integers(0, len(words), length)].tolist() for length in lengths]
    sentence = pruned.tokenizer(SENTENCE)["input_ids"][:room]
    return [*prompts, sentence] if sentence and max(sentence) < info.vocab_size else prompts


def reference_logits(
    pruned: ModelHandle, prompts: Sequence[Sequence[int]], watch: Watch = NO_WATCH
) -> list[torch.Tensor]:
    """Return the logits of the model in memory for each prompt, shape (tokens, vocabulary).

    Raises NumericsError where one is NaN, Stopped when asked to stop.
    """
    found = []
    for prompt in prompts:
        watch.check(EXPORT_STOPPED)
        with pruned.lock, torch.no_grad():
            found.append(proof.next_logits(pruned.model, prompt))
        if torch.isnan(found[-1]).any():
            raise NumericsError(
                "The model's logits are NaN, so no checkpoint can be proved equal; choose other layers."
            )
    return found


def prove_checkpoint(
    child: FreshProcess,
    pruned: ModelHandle,
    folder: Path,
    scratch: Path,
    *,
    expected: Sequence[torch.Tensor] | None = None,
    out_dtype: str = STORED,
    watch: Watch = NO_WATCH,
) -> Proof:
    """Return the proof that a written folder is the model in memory, or one whose logits are `expected`.

    It loads without missing or spare weights, its tokenizer reads a sentence alike, its logits are equal bit for bit in
    the dtype that the model here computes in, and it generates the same text with a cache as without. Raises
    ExportError with the difference.
    """
    prompts = proof_prompts(pruned)
    if expected is None:
        expected = reference_logits(pruned, prompts, watch)
    watch.tell("reload", done=0, total=1, unit="steps", detail="fresh process")
    _reload(child, pruned, folder, out_dtype, watch)
    watch.tell("reload", done=1, total=1, unit="steps")
    watch.tell("prove logits", done=0, total=1, unit="steps", detail=f"{len(prompts)} prompts")
    difference = _logit_difference(child, pruned, prompts, expected, scratch, watch)
    if difference != 0.0:
        raise ExportError(
            "The reloaded checkpoint computes other logits than the model in memory "
            f"(largest difference {difference:.3g}); nothing was exported."
        )
    watch.tell("prove logits", done=1, total=1, unit="steps")
    watch.tell("prove generation", done=0, total=1, unit="steps", detail=f"{NEW_TOKENS} tokens a prompt")
    written = [prompts[len(prompts) // 2 - 1], prompts[-1]]  # a short random one, and the sentence
    dtype = check_generation(written, child.ask(watch, do="generate", prompts=written, new_tokens=NEW_TOKENS))
    watch.tell("prove generation", done=1, total=1, unit="steps")
    return Proof(
        max_logit_diff=difference,
        prompt_lengths=tuple(len(prompt) for prompt in prompts),
        new_tokens=NEW_TOKENS,
        dtype=pruned.info.dtype,
        generation_dtype=dtype,
    )


def _reload(child: FreshProcess, pruned: ModelHandle, folder: Path, out_dtype: str, watch: Watch) -> None:
    config = pruned.model.config
    found = child.ask(
        watch,
        do="load",
        folder=str(folder),
        dtype=str(pruned.model.dtype).removeprefix("torch."),
        device=pruned.info.device,
        threads=torch.get_num_threads(),
        precision=torch.get_float32_matmul_precision(),
        attention=config._attn_implementation,
        experts=config._experts_implementation,
    )
    for kind in ("missing", "unexpected", "mismatched"):
        if found[kind]:
            raise ExportError(
                f"The reloaded checkpoint has {kind} weights ({found[kind][0]}, ...); nothing was exported."
            )
    if found["stated"] != (dtype := stated_dtype(pruned, out_dtype)):
        raise ExportError(
            f"The checkpoint says that it is in {found['stated']} instead of {dtype}; nothing was exported."
        )
    read = child.ask(watch, do="tokenize", text=SENTENCE)
    tokenizer = pruned.tokenizer
    ours = {"ids": tokenizer(SENTENCE)["input_ids"], "template": tokenizer.chat_template, "size": len(tokenizer)}
    for kind, what in (("ids", "tokens"), ("template", "a chat template"), ("size", "a vocabulary")):
        if read[kind] != ours[kind]:
            raise ExportError(f"The reloaded tokenizer has {what} other than the one in memory; nothing was exported.")


def _logit_difference(
    child: FreshProcess,
    pruned: ModelHandle,
    prompts: Sequence[Sequence[int]],
    expected: Sequence[torch.Tensor],
    scratch: Path,
    watch: Watch,
) -> float:
    """Return the largest difference, comparing again at equal addresses where kernels depend on alignment."""
    on_cpu = pruned.info.device == "cpu"
    difference = math.inf
    # Of a model on meta the logits were made with every weight at an aligned address, the 0 that `addresses_of` gives.
    for addresses in (None, proof.addresses_of(pruned.model)) if on_cpu else (None,):
        out = scratch / "logits.safetensors"
        child.ask(watch, do="logits", prompts=prompts, addresses=addresses, out=str(out))
        loaded = load_file(out)
        difference = max(_difference(logits, loaded[str(i)]) for i, logits in enumerate(expected))
        del loaded
        out.unlink()
        if difference == 0.0:
            break
    return difference


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return 0.0 for equal bits, else the largest difference; infinite for another shape or dtype, or a NaN."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return math.inf
    if torch.equal(ours, theirs):
        return 0.0
    found = float((ours.double() - theirs.double()).abs().max())
    return math.inf if math.isnan(found) else found


def check_generation(prompts: Sequence[Sequence[int]], found: Mapping[str, Any]) -> str:
    """Return the dtype in which generation is equal with and without a cache; raise ExportError where it is in none."""
    for prompt, cached, uncached in zip(prompts, found["cached"], found["uncached"], strict=True):
        if cached != uncached:
            at = next(i for i, (a, b) in enumerate(zip(cached, uncached, strict=True)) if a != b)
            raise ExportError(
                "The reloaded checkpoint writes another text with a cache than without (after a prompt of "
                f"{len(prompt)} tokens, at token {at}, in {found['dtype']}); nothing was exported."
            )
    return str(found["dtype"])


def _failure(kind: str, message: str) -> Exception:
    if kind in _MEMORY_ERRORS or "allocate memory" in message:
        return ResourceError(
            "There is not enough memory to load the checkpoint a second time for its proof; free some."
        )
    if "No space left" in message or "os error 28" in message or "os error 27" in message:
        return ResourceError("The disk became full during the proof; nothing was left behind, free some space.")
    return ExportError(f"The reloaded checkpoint failed its proof ({message.splitlines()[0]}); nothing was exported.")


def _child_environment() -> dict[str, str]:
    """Return our environment without a network, progress bars or chatter."""
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }
