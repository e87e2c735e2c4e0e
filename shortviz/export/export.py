"""Export: write a checkpoint, reload it in a fresh process, prove it equal, and only then give it its name."""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from shortviz.errors import ExportError
from shortviz.export.card import CardFacts, model_card, shortviz_json
from shortviz.export.folder import (
    RECORD,
    check_target,
    filled_beside,
    fingerprints,
    move_into_place,
    write_error,
)
from shortviz.export.proving import (
    EXPORT_STOPPED,
    fresh_process,
    proof_prompts,
    prove_checkpoint,
    reference_logits,
)
from shortviz.export.recipes import mergekit_yaml
from shortviz.export.texts import write_texts
from shortviz.export.weights import WrittenWeights, as_written, stored_bytes, weights_to_write, write_weights
from shortviz.model.handle import ModelHandle
from shortviz.model.placement import refuse_spread
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.formatting import counted
from shortviz.records.ledger import Ledger
from shortviz.records.measured import Evaluation, ExportReport
from shortviz.records.model import STORED, ModelInfo, OutDtype
from shortviz.records.text import TextInfo

SHARD_BYTES = 2_000_000_000
"""Largest shard: a stop or an interrupted upload costs at most this much."""
TEXT_FILES_BYTES = 32 * 1024 * 1024
"""Room for the tokenizer, configs and the card; the largest tokenizers take about 30 MB."""


def export_checkpoint(
    pruned: ModelHandle,
    folder: Path,
    *,
    base_info: ModelInfo,
    text: TextInfo | None = None,
    evaluation: Evaluation | None = None,
    command: str = "",
    verdict: str = "",
    out_dtype: OutDtype = STORED,
    ledger: Ledger | None = None,
    watch: Watch = NO_WATCH,
) -> ExportReport:
    """Return the report of a checkpoint that stock transformers loads, proved equal to the model in memory.

    `base_info` describes the uncut model, `text` the calibration text, `evaluation` the numbers for the model card,
    `command` what made a treated model, as its ledger has it, `verdict` what that says against it, `out_dtype` what all
    weights are written in, `ledger` that of the cut, whose evidence the card shows. The report's `bytes` are those of
    the weights. Progress stages: `write`, `reload`, `prove logits`, `prove generation`. Whatever goes wrong, nothing
    stays behind.

    Raises ExportError where the folder is taken or cannot be written or the proof fails, ResourceError where the disk
    or the memory is too small, Stopped when asked to stop.
    """
    started = time.perf_counter()
    target = check_target(Path(folder))
    refuse_spread(pruned, "The proof of an export (which can be streamed)")
    needed = needed_bytes(pruned, out_dtype=out_dtype)
    plan = pruned.whole_plan
    if base_info.num_layers != plan.num_layers:
        raise ExportError(
            f"base_info describes a model of {base_info.num_layers} layers, but the cut was made from one of "
            f"{plan.num_layers}: give the info of the model before the cut."
        )
    with filled_beside(target, needed) as room:
        checkpoint = room / "checkpoint"
        try:
            with fresh_process(room) as child:
                written = write_checkpoint(pruned, checkpoint, out_dtype=out_dtype, watch=watch)
                expected = reference_logits(written.model, proof_prompts(pruned), watch)
                rounding = _rounding(pruned, written, expected, watch)
                proof = prove_checkpoint(
                    child, written.model, checkpoint, room, expected=expected, out_dtype=out_dtype, watch=watch
                )
            weights = written.weights
            facts = CardFacts(
                name=target.name,
                base=base_info,
                pruned=replace(pruned.info, dtype=weights.dtype, bytes=weights.num_bytes),
                plan=plan,
                text=text,
                evaluation=evaluation,
                proof=asdict(proof) | {"generation_equal": True} | rounding,
                notes=(*_told(rounding, out_dtype), *written.notes),
                treatments=pruned.treatments,
                command=command,
                dtypes=weights.dtypes,
                asked_dtype=pruned.ref.dtype,
                out_dtype=out_dtype,
                verdict=verdict,
                ledger=ledger,
            )
            files = write_card(checkpoint, facts)
        except (OSError, SafetensorError) as error:
            raise write_error(error, target, needed) from error
        watch.check(EXPORT_STOPPED)
        move_into_place(checkpoint, target)
    proved = {"max_logit_diff": proof.max_logit_diff, "generation_equal": True}
    return report_of(target, facts, files, started, proved)


def report_of(
    target: Path, facts: CardFacts, files: Mapping[str, str], started: float, proved: Mapping[str, Any]
) -> ExportReport:
    """Return the report of a written folder, begun at that moment of `time.perf_counter`; `proved` is of its proof."""
    return ExportReport(
        folder=str(target),
        removed=facts.plan.removed,
        kept=facts.plan.kept,
        parameters=facts.pruned.parameters,
        bytes=facts.pruned.bytes,
        dtypes=facts.dtypes,
        notes=facts.notes,
        files=files,
        seconds=time.perf_counter() - started,
        **proved,
    )


def needed_bytes(pruned: ModelHandle, *, fewer_bytes: int = 0, out_dtype: str = STORED) -> int:
    """Return the disk space an export takes while it runs: weights, text files, and the logits of the proof.

    The model may still become smaller by `fewer_bytes` of memory.
    """
    tokens = sum(len(prompt) for prompt in proof_prompts(pruned))
    logits = tokens * pruned.info.vocab_size * int(pruned.model.dtype.itemsize)
    return stored_bytes(pruned, pruned.info.bytes - fewer_bytes, out_dtype) + logits + TEXT_FILES_BYTES


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Written:
    """A checkpoint that was written and is to be proved."""

    model: ModelHandle
    """What the files hold: the model that was given, with changed weights rounded as they are stored."""
    weights: WrittenWeights
    notes: tuple[str, ...]
    """Sentences about what had to be changed."""


def write_checkpoint(
    pruned: ModelHandle,
    folder: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    out_dtype: str = STORED,
    watch: Watch = NO_WATCH,
) -> Written:
    """Write weights, config and tokenizer into a new folder.

    The model itself is not touched. Raises Stopped, OSError or SafetensorError, and then leaves no folder; ExportError
    where the source's config cannot describe the model.
    """
    weights = weights_to_write(pruned, out_dtype=out_dtype, watch=watch)
    try:
        folder.mkdir(parents=True)
        notes = write_texts(pruned, folder, out_dtype=out_dtype)
        write_weights(weights.tensors, folder, shard_bytes, pruned.info.parameters, watch)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Written(model=as_written(pruned, weights.rounded), weights=weights, notes=weights.notes + notes)


def _rounding(pruned: ModelHandle, written: Written, logits: Sequence[Tensor], watch: Watch) -> dict[str, Any]:
    """Return what storing changed weights costs on the prompts of the proof; empty where none was rounded.

    `logits` are those of the model as it is written.
    """
    rounded = written.weights.rounded
    if not rounded:
        return {}
    exact = reference_logits(pruned, proof_prompts(pruned), watch)
    both = [(a.double(), b.double()) for a, b in zip(exact, logits, strict=True)]
    return {
        "rounded_weights": len(rounded),
        "rounded_to": sorted({str(dtype).removeprefix("torch.") for dtype in rounded.values()}),
        "rounding_logit_diff": max(float((a - b).abs().max()) for a, b in both),
        "rounding_kl": max(float(_kl(a, b)) for a, b in both),
    }


def _kl(exact: Tensor, rounded: Tensor) -> Tensor:
    """Return the mean KL(exact || rounded) in nats a token, of logits (tokens, vocabulary)."""
    return torch.nn.functional.kl_div(
        rounded.log_softmax(-1), exact.log_softmax(-1), reduction="batchmean", log_target=True
    )


def _told(rounding: Mapping[str, Any], out_dtype: str) -> tuple[str, ...]:
    """Return what rounding cost, in a sentence."""
    if not rounding:
        return ()
    what, why = ("changed weight", "as the source stores them") if out_dtype == STORED else ("weight", "as asked")
    return (
        f"{counted(rounding['rounded_weights'], what)} stored in {' and '.join(rounding['rounded_to'])}, {why}: that "
        f"changes logits by at most {rounding['rounding_logit_diff']:.3g} (KL at most "
        f"{rounding['rounding_kl']:.2g} nats a token) on the prompts of the proof, which is of the model as it is "
        "written. What was measured was measured before.",
    )


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
