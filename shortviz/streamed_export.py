"""export_streamed: a pruned checkpoint written file to file, no layer ever in memory, dtype and bytes untouched.

The config goes by the same table as everywhere. The proof is the ordinary one where the short model fits in memory: a
fresh process, stock transformers. Where it does not, its files are streamed and compared with the original's, the
removed layers bypassed. Quantised weights cannot be run here; their proof is that every kept byte is the original's.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from transformers import GenerationConfig

from shortviz import loading
from shortviz.architectures import pruned_config
from shortviz.checkpoint_folder import (
    check_space,
    check_target,
    filled_beside,
    move_into_place,
    sha256,
    write_error,
)
from shortviz.checkpoint_source import CheckpointSource, open_source
from shortviz.export import SHARD_BYTES, TEXT_FILES_BYTES, save_tokenizer, stock_copy, write_card
from shortviz.handle import ModelHandle
from shortviz.kept_tensors import KeptTensors, kept_tensors
from shortviz.model_card import CardFacts
from shortviz.placement import DTYPES
from shortviz.progress import NO_WATCH, Watch
from shortviz.proving import EXPORT_STOPPED
from shortviz.pruning import empty_model, pruned_info
from shortviz.quantised_config import prune_quantization
from shortviz.records import ExportReport, ModelRef, PrunePlan
from shortviz.safetensors_copy import shard_layout, write_index, write_shard
from shortviz.shards import Entry
from shortviz.streamed_proof import Proved, prove_bytes, prove_logits


def export_streamed(
    ref: ModelRef,
    plan_for: Callable[[int], PrunePlan],
    folder: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    watch: Watch = NO_WATCH,
) -> ExportReport:
    """Return the report of a pruned checkpoint, copied tensor by tensor from the files of `ref`.

    `plan_for` makes the plan from the number of layers. The dtype is that of the files, whatever `ref` says. Progress
    stages: `write`, then those of the proof. Whatever goes wrong, nothing stays behind.

    Raises what `export_checkpoint` raises; PlanError too where a quantisation config or the names in the files cannot
    be rewritten (the field is named).
    """
    started = time.perf_counter()
    target = check_target(Path(folder))
    with open_source(ref, watch=watch) as source:
        plan = plan_for(source.info.num_layers)
        pruned = _pruned(source, plan)
        kept = kept_tensors(source.model, source.name, source.entries, plan, quantised=source.quantised is not None)
        num_bytes = sum(entry.num_bytes for entry in kept.tensors.values())
        pruned = replace(pruned, info=replace(pruned.info, bytes=num_bytes))
        needed = num_bytes + TEXT_FILES_BYTES
        check_space(target, needed)
        with filled_beside(target) as room, ThreadPoolExecutor(max_workers=1) as hasher:
            checkpoint = room / "checkpoint"
            try:
                # The configs first: save_pretrained would take our weight files for leftovers of an earlier save.
                notes = kept.notes + _write_configs(source, pruned, checkpoint, plan, kept.path)
                layout = shard_layout(kept.tensors, shard_bytes)
                _write_weights(layout, checkpoint, watch)
                write_index(checkpoint, layout, pruned.info.parameters)
                # Hashing takes longer than copying; it goes on while the copy is proved.
                hashes = {name: hasher.submit(sha256, checkpoint / name) for name in layout}
                save_tokenizer(pruned, checkpoint)
                proved = _prove(source, pruned, kept, checkpoint, room, watch)
                facts = CardFacts(
                    name=target.name,
                    base=source.info,
                    pruned=pruned.info,
                    plan=plan,
                    text=None,
                    evaluation=None,
                    proof=dict(proved.facts),
                    notes=notes,
                )
                files = write_card(checkpoint, facts, {name: found.result() for name, found in hashes.items()})
            except (OSError, SafetensorError) as error:
                raise write_error(error, target, needed) from error
            watch.check(EXPORT_STOPPED)
            move_into_place(checkpoint, target)
    return ExportReport(
        folder=str(target),
        removed=plan.removed,
        kept=plan.kept,
        parameters=pruned.info.parameters,
        bytes=num_bytes,
        files=files,
        max_logit_diff=proved.max_logit_diff,
        generation_equal=proved.generation_equal,
        seconds=time.perf_counter() - started,
        proof=proved.kind,
    )


def _pruned(source: CheckpointSource, plan: PrunePlan) -> ModelHandle:
    """Return the pruned model on meta, with the generation config of the files."""
    config = pruned_config(source.model.config, plan)
    model = empty_model(source.model, config).to(DTYPES[source.ref.dtype])
    if (source.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(source.folder)
    info = pruned_info(source.info, model, plan)
    return ModelHandle(model=model, tokenizer=source.tokenizer, info=info, ref=source.ref, plan=plan)


def _write_configs(
    source: CheckpointSource, pruned: ModelHandle, checkpoint: Path, plan: PrunePlan, path: str
) -> tuple[str, ...]:
    stock, notes = stock_copy(pruned.model)
    if source.quantised is not None:
        stock.config.quantization_config = prune_quantization(dict(source.quantised), plan, path)
    with loading.quiet_transformers():
        stock.save_pretrained(checkpoint, state_dict={})  # no weights: the configs alone
    return notes


def _write_weights(layout: Mapping[str, Mapping[str, Entry]], checkpoint: Path, watch: Watch) -> None:
    total = sum(entry.num_bytes for tensors in layout.values() for entry in tensors.values())
    done = 0

    def written(count: int) -> None:
        nonlocal done
        watch.check(EXPORT_STOPPED)
        done += count
        watch.tell("write", done=done, total=total, unit="bytes")

    for name, tensors in layout.items():
        write_shard(checkpoint / name, tensors, written)


def _prove(
    source: CheckpointSource, pruned: ModelHandle, kept: KeptTensors, checkpoint: Path, room: Path, watch: Watch
) -> Proved:
    if source.opened is None:
        return prove_bytes(kept.tensors, checkpoint, watch)
    return prove_logits(source.opened, pruned, checkpoint, room, watch=watch)
