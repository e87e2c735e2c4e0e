"""Export: write a checkpoint, reload it in a fresh process, prove it equal, and only then give it its name."""

import copy
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from shortviz.checkpoint_folder import (
    check_space,
    check_target,
    filled_beside,
    fingerprints,
    folder_bytes,
    move_into_place,
    remove_leftovers,
    write_error,
    zip_checkpoint,
)
from shortviz.generation_defaults import savable
from shortviz.handle import ModelHandle
from shortviz.model_card import CardFacts, model_card, shortviz_json
from shortviz.progress import NO_WATCH, Watch
from shortviz.proving import EXPORT_STOPPED, fresh_process, proof_prompts, prove_checkpoint
from shortviz.recipes import loading_python, mergekit_yaml, reproduce_command, reproduce_python
from shortviz.records import Evaluation, ExportReport, ModelInfo, PrunePlan, TextInfo
from shortviz.spreading import refuse_spread

__all__ = [
    "export_checkpoint",
    "loading_python",
    "mergekit_yaml",
    "reproduce_command",
    "reproduce_python",
    "write_checkpoint",
    "zip_checkpoint",
]

SHARD_BYTES = 2_000_000_000
"""Largest shard: a stop or an interrupted upload costs at most this much."""
TEXT_FILES_BYTES = 32 * 1024 * 1024
"""Room for the tokenizer, configs and the card; the largest tokenizers take about 30 MB."""
_LEFTOVERS = ("quantization_config", "gguf_file", "transformers_weights", "_commit_hash")
_LOADING_ARGUMENTS = ("gguf_file", "is_local", "local_files_only", "name_or_path")
"""How our own tokenizer was loaded; transformers writes it into tokenizer_config.json."""
_POLL_SECONDS = 0.1
RECORD = "shortviz.json"


def export_checkpoint(
    pruned: ModelHandle,
    folder: Path,
    *,
    base_info: ModelInfo,
    text: TextInfo | None = None,
    evaluation: Evaluation | None = None,
    watch: Watch = NO_WATCH,
) -> ExportReport:
    """Return the report of a checkpoint that stock transformers loads, proved equal to the model in memory.

    `base_info` describes the uncut model, `text` the calibration text, `evaluation` the numbers for the model card. The
    report's `bytes` are those of the weights. Progress stages: `write`, `reload`, `prove logits`, `prove generation`.
    Whatever goes wrong, nothing stays behind.

    Raises ExportError where the folder is taken or cannot be written or the proof fails, ResourceError where the disk
    or the memory is too small, Stopped when asked to stop.
    """
    started = time.perf_counter()
    target = check_target(Path(folder))
    refuse_spread(pruned, "The proof of an export (which can be streamed)")
    needed = needed_bytes(pruned)
    remove_leftovers(target.parent)
    check_space(target, needed)
    plan = pruned.plan or PrunePlan(num_layers=base_info.num_layers, removed=())
    with filled_beside(target) as room:
        checkpoint = room / "checkpoint"
        try:
            with fresh_process(room) as child:
                notes = write_checkpoint(pruned, checkpoint, watch=watch)
                proof = prove_checkpoint(child, pruned, checkpoint, room, watch=watch)
            facts = CardFacts(
                name=target.name,
                base=base_info,
                pruned=pruned.info,
                plan=plan,
                text=text,
                evaluation=evaluation,
                proof=asdict(proof) | {"generation_equal": True},
                notes=notes,
                treatments=pruned.treatments,
            )
            files = write_card(checkpoint, facts)
        except (OSError, SafetensorError) as error:
            raise write_error(error, target, needed) from error
        watch.check(EXPORT_STOPPED)
        move_into_place(checkpoint, target)
    return ExportReport(
        folder=str(target),
        removed=plan.removed,
        kept=plan.kept,
        parameters=pruned.info.parameters,
        bytes=pruned.info.bytes,
        files=files,
        max_logit_diff=proof.max_logit_diff,
        generation_equal=True,
        seconds=time.perf_counter() - started,
    )


def needed_bytes(pruned: ModelHandle) -> int:
    """Return the disk space an export takes while it runs: weights, text files, and the logits of the proof."""
    tokens = sum(len(prompt) for prompt in proof_prompts(pruned))
    logits = tokens * pruned.info.vocab_size * int(pruned.model.dtype.itemsize)
    return pruned.info.bytes + logits + TEXT_FILES_BYTES


def write_checkpoint(
    pruned: ModelHandle, folder: Path, *, shard_bytes: int = SHARD_BYTES, watch: Watch = NO_WATCH
) -> tuple[str, ...]:
    """Write weights, configs and tokenizer into a new folder; return sentences about what had to be changed.

    The model itself is not touched. Raises Stopped, OSError or SafetensorError, and then leaves no folder.
    """
    stock, notes = stock_copy(pruned.model)
    total = pruned.info.bytes
    with ThreadPoolExecutor(max_workers=1) as writer, _no_progress_bars():
        work = writer.submit(stock.save_pretrained, folder, max_shard_size=shard_bytes)
        try:
            _wait_for(work, folder, total, watch)
            work.result()
            save_tokenizer(pruned, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # a writer between two shards fails on the next, and ends
            raise
    watch.tell("write", done=total, total=total, unit="bytes")
    return notes


def save_tokenizer(pruned: ModelHandle, folder: Path) -> None:
    """Write the tokenizer, without a trace of how our own was loaded."""
    pruned.tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: value for name, value in config.items() if name not in _LOADING_ARGUMENTS}
    path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _wait_for(work: Future[Any], folder: Path, total: int, watch: Watch) -> None:
    """Report how much is written until the writer is done; callbacks stay on the calling thread."""
    while True:
        watch.check(EXPORT_STOPPED)
        written = folder_bytes(folder) if folder.is_dir() else 0
        watch.tell("write", done=min(written, total), total=total, unit="bytes")
        if wait([work], timeout=_POLL_SECONDS).done:
            return


def stock_copy(model: PreTrainedModel) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Return a shallow copy with its own configs, for save_pretrained writes to the configs of what it saves."""
    stock = copy.copy(model)
    stock.config = _stock_config(model.config)
    notes: tuple[str, ...] = ()
    if model.generation_config is not None:
        stock.generation_config, notes = savable(model.generation_config)
    return stock, notes


def _stock_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a copy without what belongs to the file the model came from (quantisation, GGUF)."""
    stock = copy.deepcopy(config)
    for name in _LEFTOVERS:
        if name in stock.__dict__:
            delattr(stock, name)
    return stock


def write_card(checkpoint: Path, facts: CardFacts, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Write the card, the mergekit recipe and the record, and make all files as readable as the umask lets them be.

    Returns the SHA-256 of every file, as the record holds them too; those in `known` are not computed again.
    """
    recipe = mergekit_yaml(facts.base.id, facts.plan, facts.pruned.dtype)
    for name, text in (("README.md", model_card(facts)), ("mergekit.yml", recipe)):
        (checkpoint / name).write_text(text, encoding="utf-8")
    files = fingerprints(checkpoint, known=known)
    record = json.dumps(shortviz_json(facts) | {"files": files}, indent=2, allow_nan=False) + "\n"
    (checkpoint / RECORD).write_text(record, encoding="utf-8")
    mode = (checkpoint / "README.md").stat().st_mode
    for path in (p for p in checkpoint.rglob("*") if p.is_file()):  # a folder must stay one that can be entered
        path.chmod(mode)  # safetensors makes its files readable by their owner alone, whatever the umask says
    return dict(sorted((files | {RECORD: hashlib.sha256(record.encode()).hexdigest()}).items()))


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
