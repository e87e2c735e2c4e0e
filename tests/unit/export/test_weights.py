"""The weight files of an export: stored names and dtypes, from memory and file to file, and what rounding costs."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shortviz.errors import ExportError, ModelError
from shortviz.export.export import export_checkpoint, needed_bytes, write_checkpoint
from shortviz.export.folder import fingerprints
from shortviz.export.proving import proof_prompts
from shortviz.export.weights import Held, stored_bytes, weights_to_write, write_shard
from shortviz.model.handle import ModelHandle
from shortviz.model.headers import Entry, read_shards
from shortviz.model.load import load
from shortviz.model.prune import prune, put_weights, shared_copy
from shortviz.records.model import ModelRef
from shortviz.records.plan import PrunePlan
from shortviz.streaming.export import export_streamed
from tests.support.families import build_tiny, tiny_handle, tiny_tokenizer

PLAN = PrunePlan(num_layers=6, removed=(1, 2, 4))
OURS = {"README.md", "mergekit.yml", "shortviz.json"}
NORM, DOWN = "model.layers.1.input_layernorm.weight", "model.layers.1.mlp.down_proj.weight"


def saved(folder: Path, family: str = "llama", dtype: torch.dtype = torch.bfloat16, **changed: torch.dtype) -> Path:
    """Write a tiny checkpoint; tensors whose names hold a key of `changed` are stored in its dtype, and fill it."""
    build_tiny(family, dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    for part, other in changed.items():
        for name in (name for name in weights if part in name):
            weights[name] = weights[name].to(other) * (1 + torch.finfo(other).eps)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def changed(handle: ModelHandle, name: str) -> ModelHandle:
    """Return a copy of a model with a weight that bfloat16 does not hold."""
    copy = shared_copy(handle)
    put_weights(copy.model, {name: copy.model.get_parameter(name) * 1.001})
    return copy


def test_files_are_laid_out_as_the_safetensors_library_lays_them_out(tmp_path):
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.float64]
    dtypes += [torch.float8_e4m3fn, torch.float8_e5m2, torch.int32, torch.int16, torch.int8]
    tensors = {f"{'zyxabcdefghij'[i]}.é": torch.ones(3, i + 1).to(dtype) for i, dtype in enumerate(dtypes)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    written = []
    write_shard(tmp_path / "copy", read_shards(tmp_path, "it"), written.append)
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    assert sum(written) == sum(t.numel() * t.element_size() for t in tensors.values())


def test_tensors_of_memory_are_laid_out_as_those_of_files(tmp_path):
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.float64]
    tensors = {f"t{i}": torch.linspace(-3, 3, 2 * i + 2).to(dtype) for i, dtype in enumerate(dtypes)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    entries = read_shards(tmp_path, "it")
    held = {name: Held(tensor=tensors[name], dtype=entry.dtype) for name, entry in entries.items()}
    write_shard(tmp_path / "copy", {**held, "t1": entries["t1"]}, lambda _: None)
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_a_file_that_is_cut_short_while_it_is_copied_ends_the_copy_with_its_name(tmp_path):
    (tmp_path / "source").write_bytes(b"\0" * 10)
    entry = Entry(file=tmp_path / "source", dtype="U8", shape=(20,), start=0, num_bytes=20)
    seen: list[int] = []

    def written(count: int) -> None:
        seen.append(count)
        assert len(seen) < 9, "it would go on for ever"

    with pytest.raises(ModelError, match="source ends before its last tensor"):
        write_shard(tmp_path / "out", {"w": entry}, written)


def test_a_checkpoint_of_two_dtypes_computed_in_float32_is_written_as_it_is_stored_and_as_streamed(tmp_path):
    source = saved(tmp_path / "model", layernorm=torch.float32)
    handle = load(ModelRef(id=str(source), device="cpu"))
    assert handle.info.dtype == "float32"
    report = export_checkpoint(prune(handle, PLAN), tmp_path / "in-memory", base_info=handle.info)
    streamed = export_streamed(ModelRef(id=str(source)), lambda _: PLAN, tmp_path / "streamed")
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "in-memory"))
    assert after[NORM].dtype == torch.float32
    assert torch.equal(after[NORM], before["model.layers.3.input_layernorm.weight"])
    assert after[DOWN].dtype == torch.bfloat16
    assert report.bytes == sum(weight.nbytes for weight in after.values())
    assert report.dtypes == streamed.dtypes == f"bfloat16, 6 of {len(after)} tensors float32"
    assert report.files.keys() - OURS == {path.name for path in source.iterdir()}
    assert {k: v for k, v in report.files.items() if k not in OURS} == {
        k: v for k, v in streamed.files.items() if k not in OURS
    }
    assert json.loads((tmp_path / "in-memory" / "config.json").read_text())["dtype"] == "bfloat16"
    record = json.loads((tmp_path / "in-memory" / "shortviz.json").read_text())
    assert record["model"]["dtype"] == "bfloat16"
    assert record["proof"]["dtype"] == "float32"
    assert "rounded_weights" not in record["proof"]
    card = (tmp_path / "in-memory" / "README.md").read_text()
    assert f"dtype: {report.dtypes}, as in the source" in card
    assert "--dtype" not in card
    assert needed_bytes(prune(handle, PLAN)) < handle.info.bytes + 32 * 2**20


def test_what_memory_does_not_hold_whole_is_copied_from_the_source(tmp_path):
    source = saved(tmp_path / "model", dtype=torch.float32, mlp=torch.float64)
    handle = load(ModelRef(id=str(source), device="cpu"))
    pruned = prune(handle, PLAN)
    assert pruned.model.get_parameter(DOWN).dtype == torch.float32
    export_checkpoint(pruned, tmp_path / "out", base_info=handle.info)
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    assert after[DOWN].dtype == torch.float64
    assert torch.equal(after[DOWN], before[DOWN.replace("1", "3")])
    assert not torch.equal(after[DOWN].float().double(), after[DOWN])


def test_a_dtype_that_is_asked_for_is_written_and_stated(tmp_path):
    source = saved(tmp_path / "model", layernorm=torch.float32)
    handle = load(ModelRef(id=str(source), dtype="float16", device="cpu"))
    report = export_checkpoint(prune(handle, PLAN), tmp_path / "out", base_info=handle.info)
    assert {weight.dtype for weight in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"
    assert report.dtypes == "float16"
    assert "--dtype float16" in (tmp_path / "out" / "README.md").read_text()


def test_a_wider_dtype_that_is_asked_for_is_computed_in_and_not_written(tmp_path):
    source = saved(tmp_path / "model", layernorm=torch.float32)
    handle = load(ModelRef(id=str(source), dtype="float32", device="cpu"))
    report = export_checkpoint(prune(handle, PLAN), tmp_path / "out", base_info=handle.info)
    assert report.dtypes.startswith("bfloat16, 6 of ")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert "The dtype float32 was asked for, which holds nothing more" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(("out_dtype", "family"), [("float32", "llama"), ("float16", "llama"), ("bfloat16", "mixtral")])
def test_all_weights_are_written_in_a_dtype_that_is_chosen(tmp_path, out_dtype, family):
    source = saved(tmp_path / "model", family, layernorm=torch.float32)
    handle = load(ModelRef(id=str(source), device="cpu"))
    cut = prune(handle, PLAN)
    report = export_checkpoint(changed(cut, NORM), tmp_path / "out", base_info=handle.info, out_dtype=out_dtype)
    target = getattr(torch, out_dtype)
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    assert {weight.dtype for weight in after.values()} == {target}
    for new, old in enumerate(PLAN.kept):
        name = "model.layers.{}.post_attention_layernorm.weight"
        assert torch.equal(after[name.format(new)], before[name.format(old)].to(target))
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"].to(target))
    assert report.max_logit_diff == 0.0
    assert report.dtypes == out_dtype
    assert report.bytes == stored_bytes(cut, cut.info.bytes, out_dtype) == sum(w.nbytes for w in after.values())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == out_dtype
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"--out-dtype {out_dtype}" in card
    assert f"dtype: {out_dtype}\n" in card
    proof = json.loads((tmp_path / "out" / "shortviz.json").read_text())["proof"]
    assert ("rounded_weights" in proof) == (out_dtype != "float32")


def test_a_model_without_a_source_is_written_in_the_dtype_that_is_chosen(tmp_path):
    handle = tiny_handle("llama", torch.float32)
    report = export_checkpoint(handle, tmp_path / "out", base_info=handle.info, out_dtype="bfloat16")
    assert {weight.dtype for weight in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert report.bytes * 2 == handle.info.bytes
    assert "stored in bfloat16, as asked: that changes logits" in (tmp_path / "out" / "README.md").read_text()


def test_a_dtype_that_cannot_hold_a_weight_is_refused_and_nothing_is_left(tmp_path):
    handle = tiny_handle("llama", torch.float32)
    with torch.no_grad():
        handle.model.get_parameter(NORM)[0] = 70_000.0
    with pytest.raises(ExportError, match=rf"float16 cannot hold {re.escape(NORM)}, whose largest value is 7e\+04; "):
        export_checkpoint(handle, tmp_path / "out", base_info=handle.info, out_dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_a_streamed_export_says_that_it_does_not_use_a_dtype_that_is_asked_for(tmp_path):
    source = saved(tmp_path / "model")
    export_streamed(ModelRef(id=str(source), dtype="float32"), lambda _: PLAN, tmp_path / "out")
    assert "The dtype float32 was asked for and is not used" in (tmp_path / "out" / "README.md").read_text()


def test_a_changed_weight_is_rounded_as_its_source_is_stored_and_the_proof_says_what_that_costs(tmp_path):
    source = saved(tmp_path / "model", layernorm=torch.float32)
    handle = load(ModelRef(id=str(source), device="cpu"))
    cut = prune(handle, PLAN)
    treated = changed(changed(cut, DOWN), NORM)
    report = export_checkpoint(treated, tmp_path / "out", base_info=handle.info)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written[DOWN], treated.model.get_parameter(DOWN).bfloat16())
    assert torch.equal(written[NORM], treated.model.get_parameter(NORM))  # float32 holds it
    assert report.max_logit_diff == 0.0
    reference = shared_copy(treated)
    put_weights(reference.model, {DOWN: written[DOWN].float()})
    prompts = [torch.tensor([prompt]) for prompt in proof_prompts(treated)]
    cost = max(float((treated.model(p).logits - reference.model(p).logits).abs().max()) for p in prompts)
    proof = json.loads((tmp_path / "out" / "shortviz.json").read_text())["proof"]
    assert (proof["rounded_weights"], proof["rounded_to"]) == (1, ["bfloat16"])
    assert proof["rounding_logit_diff"] == pytest.approx(cost, rel=1e-3)
    assert cost > 1e-5
    assert 0 < proof["rounding_kl"] < cost
    assert "1 changed weight stored in bfloat16, as the source stores them" in (tmp_path / "out/README.md").read_text()


def test_a_tied_weight_that_changed_stays_tied(tmp_path):
    model = build_tiny("llama", torch.bfloat16)
    model.config.tie_word_embeddings = True
    model.tie_weights(recompute_mapping=True)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    handle = load(ModelRef(id=str(tmp_path / "model"), device="cpu"))
    treated = changed(handle, "model.embed_tokens.weight")
    treated.model.tie_weights()
    export_checkpoint(treated, tmp_path / "out", base_info=handle.info)
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")


def test_an_expert_that_changed_is_written_under_the_name_it_has_in_the_files(tmp_path):
    source = saved(tmp_path / "model", "mixtral")
    handle = load(ModelRef(id=str(source), device="cpu"))
    cut = prune(handle, PLAN)
    name = next(name for name, weight in cut.model.named_parameters() if "experts" in name and weight.ndim == 3)
    treated = changed(cut, name)
    weights = weights_to_write(treated)
    held = {key for key, item in weights.tensors.items() if isinstance(item, Held)}
    assert held
    assert held <= {key for key in load_file(source / "model.safetensors") if ".experts." in key}
    assert weights.rounded == {name: torch.bfloat16}
    assert export_checkpoint(treated, tmp_path / "out", base_info=handle.info).max_logit_diff == 0.0


def test_tensors_keep_the_names_they_have_in_the_source(tmp_path):
    """Such as gpt2's on the hub, which lack the prefix that transformers writes."""
    source = saved(tmp_path / "model", "gpt2")
    weights = load_file(source / "model.safetensors")
    bare = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
    save_file(bare, source / "model.safetensors", metadata={"format": "pt"})
    handle = load(ModelRef(id=str(source), device="cpu"))
    pruned = changed(prune(handle, PLAN), "transformer.h.1.mlp.c_fc.weight")
    export_checkpoint(pruned, tmp_path / "out", base_info=handle.info)
    assert {name for name in bare if not name.startswith(("h.3", "h.4", "h.5"))} == load_file(
        tmp_path / "out" / "model.safetensors"
    ).keys()


def test_a_source_that_is_not_whole_any_more_is_named_and_nothing_is_left(tmp_path):
    source = saved(tmp_path / "model")
    handle = load(ModelRef(id=str(source), device="cpu"))
    pruned = prune(handle, PLAN)
    content = (source / "model.safetensors").read_bytes()
    shutil.copyfile(source / "model.safetensors", tmp_path / "whole")
    (source / "model.safetensors").unlink()  # the mapped file stays with the model
    (source / "model.safetensors").write_bytes(content[:-10])
    with pytest.raises(ModelError, match="cut short"):
        export_checkpoint(pruned, tmp_path / "out", base_info=handle.info)
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_gone_is_named_and_nothing_is_left(tmp_path):
    source = saved(tmp_path / "model")
    handle = load(ModelRef(id=str(source), device="cpu"))
    pruned = prune(handle, PLAN)
    source.rename(tmp_path / "moved")
    with pytest.raises(ModelError, match=r"The folder .*model that .* was loaded from is gone"):
        export_checkpoint(pruned, tmp_path / "out", base_info=handle.info)
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


def test_a_description_of_the_cut_model_in_place_of_the_uncut_is_refused(tmp_path):
    handle = load(ModelRef(id=str(saved(tmp_path / "model")), device="cpu"))
    pruned = prune(handle, PLAN)
    with pytest.raises(ExportError, match=f"of {pruned.info.num_layers} layers, but the cut was made from one of 6:"):
        export_checkpoint(pruned, tmp_path / "out", base_info=pruned.info)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_given_as_an_object_is_written_as_it_is_in_memory(tmp_path):
    handle = tiny_handle("llama", torch.float16)
    assert handle.folder is None
    written = write_checkpoint(prune(handle, PLAN), tmp_path / "ours")
    prune(handle, PLAN).model.save_pretrained(tmp_path / "theirs")
    ours, theirs = (fingerprints(tmp_path / name)["model.safetensors"] for name in ("ours", "theirs"))
    assert ours == theirs
    assert written.weights.dtypes == "float16"
    fields = json.loads((tmp_path / "ours" / "tokenizer_config.json").read_text())
    assert fields["tokenizer_class"] == "PreTrainedTokenizerFast"
    loaded = load(ModelRef(id=str(tmp_path / "ours"), dtype="float16", device="cpu"))
    assert replace(loaded.info, id="", reason="") == replace(prune(handle, PLAN).info, id="", reason="")
