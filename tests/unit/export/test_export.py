"""export_checkpoint: what is written, that stock transformers reads it, and what is refused."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from shortviz.errors import ExportError, NumericsError
from shortviz.export.export import export_checkpoint
from shortviz.model.handle import ModelHandle
from shortviz.model.prune import prune
from shortviz.progress import Progress, Watch
from shortviz.records.json import plain
from shortviz.records.measured import ExportReport
from shortviz.records.plan import PrunePlan
from shortviz.records.text import TextInfo
from tests.support.families import build_tiny, handle_of, tiny_handle, tiny_tokens

PLAN = PrunePlan(num_layers=6, removed=(1, 4, 5))
TEXT = TextInfo(source="built-in passages", rows=3, tokens=40, fingerprint="ab12")


@pytest.fixture(scope="module")
def handle() -> ModelHandle:
    return tiny_handle("llama")


@pytest.fixture(scope="module")
def exported(
    handle: ModelHandle, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ExportReport, list[Progress]]:
    """One whole export: the folder, the report, and the progress that was told."""
    folder = tmp_path_factory.mktemp("export") / "new" / "short llama"
    told: list[Progress] = []
    pruned = prune(handle, PLAN)
    report = export_checkpoint(pruned, folder, base_info=handle.info, text=TEXT, watch=Watch(told.append))
    return folder, report, told


def test_an_export_reports_what_it_wrote_and_proved(exported: tuple[Path, ExportReport, list[Progress]]) -> None:
    folder, report, told = exported
    assert (report.removed, report.kept) == ((1, 4, 5), (0, 2, 3))
    assert report.max_logit_diff == 0.0
    assert report.generation_equal
    last = {progress.stage: progress for progress in told}
    assert tuple(last) == ("write", "reload", "prove logits", "prove generation")
    assert all(progress.done == progress.total for progress in last.values())
    assert set(report.files) == {p.name for p in folder.iterdir()}
    for name, digest in report.files.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    weights = load_file(folder / "model.safetensors")
    assert report.parameters == sum(w.numel() for w in weights.values())
    assert report.bytes == 4 * report.parameters
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_the_json_of_an_export_has_the_stable_shape(exported: tuple[Path, ExportReport, list[Progress]]) -> None:
    found = plain(exported[1])
    assert list(found) == [
        "folder",
        "removed",
        "kept",
        "parameters",
        "bytes",
        "files",
        "max_logit_diff",
        "generation_equal",
        "seconds",
        "proof",
        "notes",
        "dtypes",
        "gate",
    ]
    assert found["dtypes"] == "float32"
    assert found["removed"] == [1, 4, 5]
    assert found["folder"] == str(exported[0])


def test_stock_transformers_loads_the_export_with_the_same_logits(
    handle: ModelHandle, exported: tuple[Path, ExportReport, list[Progress]]
) -> None:
    folder = exported[0]
    model = AutoModelForCausalLM.from_pretrained(folder)
    ours = prune(handle, PLAN).model(tiny_tokens()).logits
    # The proof compares bits at equal addresses; here addresses differ, and with them, in places, the last bits.
    torch.testing.assert_close(model(tiny_tokens()).logits, ours, rtol=0, atol=1e-5)
    assert AutoTokenizer.from_pretrained(folder)("Moon")["input_ids"] == handle.tokenizer("Moon")["input_ids"]


def test_config_and_tokenizer_carry_nothing_of_where_the_model_came_from(
    exported: tuple[Path, ExportReport, list[Progress]],
) -> None:
    folder = exported[0]
    config = json.loads((folder / "config.json").read_text())
    assert config["num_hidden_layers"] == 3
    assert config["dtype"] == "float32"
    assert config["architectures"] == ["LlamaForCausalLM"]
    for text in (json.dumps(config), (folder / "tokenizer_config.json").read_text()):
        for word in ("_name_or_path", "quantization", "gguf", "local_files_only", str(folder.parent)):
            assert word not in text


def test_every_file_of_an_export_can_be_read_by_whom_the_umask_allows(
    exported: tuple[Path, ExportReport, list[Progress]],
) -> None:
    assert len({path.stat().st_mode for path in exported[0].iterdir()}) == 1


def test_the_layer_map_and_the_mergekit_recipe_describe_the_cut(
    exported: tuple[Path, ExportReport, list[Progress]],
) -> None:
    folder = exported[0]
    record = json.loads((folder / "shortviz.json").read_text())
    assert record["layer_map"] == {"0": 0, "1": None, "2": 1, "3": 2, "4": None, "5": None}
    assert record["plan"]["removed"] == [1, 4, 5]
    assert record["text"]["fingerprint"] == "ab12"
    assert record["proof"]["max_logit_diff"] == 0.0
    assert record["versions"]["torch"] == torch.__version__
    recipe = yaml.safe_load((folder / "mergekit.yml").read_text())
    assert [s["sources"][0]["layer_range"] for s in recipe["slices"]] == [[0, 1], [2, 4]]


def test_an_uncut_model_exports_whole_into_an_empty_folder(handle: ModelHandle, tmp_path: Path) -> None:
    target = tmp_path / "empty"
    target.mkdir()
    report = export_checkpoint(handle, target, base_info=handle.info)
    assert report.removed == ()
    assert report.kept == tuple(range(6))
    assert f"All 6 layers of [{handle.info.id}]" in (target / "README.md").read_text()


def test_a_folder_that_is_not_empty_is_refused_and_kept(handle: ModelHandle, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"is not empty; choose another name, or empty it first\.$"):
        export_checkpoint(handle, tmp_path, base_info=handle.info)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_in_the_place_of_the_folder_is_refused(handle: ModelHandle, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ExportError, match="exists and is not a folder; choose another name"):
        export_checkpoint(handle, tmp_path / "out", base_info=handle.info)


def test_a_place_below_a_file_cannot_be_written(handle: ModelHandle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match=r"Nothing can be written to .*file .*choose a folder you may write to"):
        export_checkpoint(handle, tmp_path / "file" / "out", base_info=handle.info)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; runs as any other user")
def test_a_parent_without_write_permission_is_refused(handle: ModelHandle, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ExportError, match="Permission denied"):
        export_checkpoint(handle, tmp_path / "out", base_info=handle.info)
    tmp_path.chmod(0o700)


def test_a_model_with_nan_logits_is_refused(tmp_path: Path) -> None:
    model = build_tiny("llama")
    handle = handle_of(model)
    model.model.layers[2].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(NumericsError, match="logits are NaN"):
        export_checkpoint(handle, tmp_path / "out", base_info=handle.info)
    assert list(tmp_path.iterdir()) == []
