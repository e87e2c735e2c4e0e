"""Export: write a checkpoint, reload it in a fresh process, prove it equal, and only then give it its name."""

import copy
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from shortviz.export.card import CardFacts, model_card, shortviz_json
from shortviz.export.folder import (
    RECORD,
    check_target,
    filled_beside,
    fingerprints,
    folder_bytes,
    move_into_place,
    write_error,
)
from shortviz.export.proving import EXPORT_STOPPED, fresh_process, proof_prompts, prove_checkpoint
from shortviz.export.recipes import mergekit_yaml
from shortviz.model.handle import ModelHandle
from shortviz.model.spread import refuse_spread
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.measured import Evaluation, ExportReport
from shortviz.records.model import ModelInfo
from shortviz.records.plan import PrunePlan
from shortviz.records.text import TextInfo

SHARD_BYTES = 2_000_000_000
"""Largest shard: a stop or an interrupted upload costs at most this much."""
TEXT_FILES_BYTES = 32 * 1024 * 1024
"""Room for the tokenizer, configs and the card; the largest tokenizers take about 30 MB."""
_LEFTOVERS = ("quantization_config", "gguf_file", "transformers_weights", "_commit_hash")
_LOADING_ARGUMENTS = ("gguf_file", "is_local", "local_files_only", "name_or_path")
"""How our own tokenizer was loaded; transformers writes it into tokenizer_config.json."""
_POLL_SECONDS = 0.1


def export_checkpoint(
    pruned: ModelHandle,
    folder: Path,
    *,
    base_info: ModelInfo,
    text: TextInfo | None = None,
    evaluation: Evaluation | None = None,
    command: str = "",
    watch: Watch = NO_WATCH,
) -> ExportReport:
    """Return the report of a checkpoint that stock transformers loads, proved equal to the model in memory.

    `base_info` describes the uncut model, `text` the calibration text, `evaluation` the numbers for the model card,
    `command` what made a treated model, as its ledger has it. The report's `bytes` are those of the weights. Progress
    stages: `write`, `reload`, `prove logits`, `prove generation`.
    Whatever goes wrong, nothing stays behind.

    Raises ExportError where the folder is taken or cannot be written or the proof fails, ResourceError where the disk
    or the memory is too small, Stopped when asked to stop.
    """
    started = time.perf_counter()
    target = check_target(Path(folder))
    refuse_spread(pruned, "The proof of an export (which can be streamed)")
    needed = needed_bytes(pruned)
    plan = pruned.plan or PrunePlan(num_layers=base_info.num_layers, removed=())
    with filled_beside(target, needed) as room:
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
                command=command,
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
            while True:  # callbacks stay on the calling thread
                watch.check(EXPORT_STOPPED)
                watch.tell("write", done=min(folder_bytes(folder), total), total=total, unit="bytes")
                if wait([work], timeout=_POLL_SECONDS).done:
                    break
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


def stock_copy(model: PreTrainedModel) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Return a shallow copy with its own configs, for save_pretrained writes to the configs of what it saves.

    What belongs to the file the model came from (quantisation, GGUF) is left out of them.
    """
    stock = copy.copy(model)
    stock.config = copy.deepcopy(model.config)
    for name in _LEFTOVERS:
        stock.config.__dict__.pop(name, None)
    notes: tuple[str, ...] = ()
    if model.generation_config is not None:
        stock.generation_config, notes = savable(model.generation_config)
    return stock, notes


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


_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_BEAMS = ("early_stopping", "length_penalty")
_CACHE = ("cache_implementation", "cache_config")
_OUTPUTS = ("output_attentions", "output_hidden_states", "output_scores", "output_logits")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def savable(config: GenerationConfig) -> tuple[GenerationConfig, tuple[str, ...]]:
    """Return a copy that `save_pretrained` accepts, and sentences about what had to go: it refuses what loading takes.

    First only values without effect go (a temperature beside `do_sample=False`); where that is not enough, everything
    but the token ids.
    """
    found = copy.deepcopy(config)
    if _problem(found) is None:
        return found, ()
    names = (
        *(_SAMPLING if config.do_sample is not True else ()),
        *(_BEAMS if config.num_beams in (None, 1) else ()),
        *(_CACHE if config.use_cache is False else ()),
        *(_OUTPUTS if config.return_dict_in_generate is not True else ()),
        *(("pad_token_id",) if config.pad_token_id is not None and config.pad_token_id < 0 else ()),
    )
    idle = {name: getattr(found, name) for name in names if getattr(found, name, None) is not None}
    for name in idle:
        setattr(found, name, None)
    problem = _problem(found)
    if problem is None:
        dropped = ", ".join(f"{name}={value!r}" for name, value in idle.items())
        return found, (
            f"`generation_config.json` leaves out {dropped}: without effect there, and refused by transformers.",
        )
    bare = GenerationConfig(**{name: getattr(config, name) for name in _TOKENS})
    return bare, (f"`generation_config.json` holds only the token ids; the original is invalid ({problem}).",)


def _problem(config: GenerationConfig) -> str | None:
    """Return why `save_pretrained` would refuse the config; one unchanged since it was loaded is only warned about."""
    unchanged = getattr(config, "_original_object_hash", None) == hash(config)
    try:
        config.validate(strict=not unchanged)
    except ValueError as error:
        lines = [line.strip("- ") for line in str(error).splitlines() if line.strip()]
        return lines[1] if len(lines) > 1 else lines[0]
    return None
