"""GGUF in, GGUF out: what is written is opened by llama.cpp itself, and computes what the cut model here computes."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from shortviz.errors import ExportError, ResourceError, Stopped
from shortviz.export.gguf import export_gguf, gguf_source
from shortviz.export.requantise import _quantised, _turned_back, _values, changed_weights, requantise
from shortviz.model.gguf.blocks import ARCHITECTURES, cut_tensors
from shortviz.model.gguf.container import GgufTensor, read_gguf, write_gguf
from shortviz.model.gguf.copies import read_model
from shortviz.model.handle import ModelHandle
from shortviz.model.load import load
from shortviz.model.prune import prune, put_weights, shared_copy
from shortviz.progress import Progress, Watch
from shortviz.records.ledger import Treatment
from shortviz.records.model import ModelRef
from shortviz.records.plan import PrunePlan
from shortviz.records.text import TextSpec, WindowSpec
from shortviz.settings import settings
from shortviz.text.tokens import make_windows
from tests.support.command import Outcome
from tests.support.gguf_families import FAMILIES, write_family
from tests.support.ggufs import write_openelm, write_tiny
from tests.support.llama_cpp import llama_cpp
from tests.support.paths import ROOT

Run = Callable[..., Outcome]
F32 = GGMLQuantizationType.F32
TOKENS = np.random.default_rng(0).integers(0, 94, 80).tolist()
"""Printable ASCII, one token a character: llama.cpp tells nothing of half a character."""


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of this module's own."""
    before = os.environ.get("SHORTVIZ_CACHE_DIR")
    os.environ["SHORTVIZ_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    settings.cache_clear()
    yield
    del os.environ["SHORTVIZ_CACHE_DIR"]
    if before is not None:
        os.environ["SHORTVIZ_CACHE_DIR"] = before
    settings.cache_clear()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama of six layers in Q8_0."""
    path = tmp_path_factory.mktemp("llama") / "tiny.gguf"
    write_tiny(path)
    return path


@pytest.fixture(scope="module")
def handle(llama: Path) -> ModelHandle:
    return load(ModelRef(id=str(llama)))


def our_losses(handle: ModelHandle, tokens: Sequence[int]) -> list[float]:
    """Return the loss, in nats, of each token but the first."""
    with torch.no_grad():
        logits = handle.model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
    found: list[float] = (-logits[:-1].gather(1, torch.tensor(tokens[1:])[:, None]))[:, 0].tolist()
    return found


def apart(left: Sequence[float], right: Sequence[float]) -> float:
    """Return how far the losses of two models are apart, token by token, on average."""
    return float(np.abs(np.subtract(left, right)).mean())


def fields_of(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize(
    ("architecture", "removed"), [("llama", (1, 2, 4)), ("qwen2", (0, 3)), ("gemma3", (1, 4)), ("lfm2", (1, 2))]
)
def test_llama_cpp_reads_a_cut_file_as_the_cut_model_it_is(
    tmp_path: Path, architecture: str, removed: tuple[int, ...]
) -> None:
    """F32, so that nothing but the order of sums can differ; every layer is another one, and one too few shows."""
    path, out = tmp_path / "tiny.gguf", tmp_path / "new" / "cut.gguf"
    write_tiny(path, architecture, kind=F32)
    base = load(ModelRef(id=str(path)))
    plan = PrunePlan(num_layers=base.info.num_layers, removed=removed)
    told: list[Progress] = []

    pruned = prune(base, plan)
    report = export_gguf(read_model(path), out, plan, pruned=pruned, watch=Watch(told.append))

    assert (report.proof, report.max_logit_diff, report.generation_equal) == ("fresh process", 0.0, True)
    assert (report.removed, report.kept) == (removed, plan.kept)
    assert report.parameters == pruned.info.parameters
    assert list(dict.fromkeys(step.stage for step in told)) == ["write", "reload", "prove logits", "prove generation"]
    assert [file.name for file in out.parent.iterdir()] == ["cut.gguf"]
    found = fields_of(out)
    assert found[f"{architecture}.block_count"] == len(plan.kept)
    assert found["shortviz.removed_layers"] == list(removed)
    assert found["shortviz.base_block_count"] == plan.num_layers
    assert found["shortviz.base"] == "tiny.gguf"
    assert found["tokenizer.chat_template"].startswith("{% for message")
    with llama_cpp(out) as model:
        theirs = model.losses(TOKENS)
    assert theirs == pytest.approx(our_losses(pruned, TOKENS), abs=0.05)
    assert apart(our_losses(base, TOKENS), theirs) > 0.1  # the uncut model is told from it


def test_every_architecture_that_is_cut_is_opened_in_llama_cpp_here() -> None:
    elsewhere = {"llama", "qwen2", "gemma3", "lfm2", "openelm"}
    assert elsewhere | set(FAMILIES) == ARCHITECTURES


@pytest.mark.parametrize("architecture", FAMILIES)
def test_llama_cpp_computes_the_same_with_layers_that_add_nothing_and_without_them(
    tmp_path: Path, architecture: str
) -> None:
    """Whatever llama.cpp derives from a block's number, the blocks that stay are to it what they were."""
    removed = (0, 1, 2, 3) if architecture.startswith("qwen35") else (1, 4)
    write_family(tmp_path / "idle.gguf", architecture, idle=removed)
    source, plan = read_model(tmp_path / "idle.gguf"), PrunePlan(num_layers=8, removed=removed)
    export_gguf(source, tmp_path / "cut.gguf", plan)
    names, cut = ["idle", "cut"], read_gguf(tmp_path / "cut.gguf")
    pattern = f"{architecture}.attention.sliding_window_pattern"
    if pattern in cut.keys:
        without = {name: key for name, key in cut.keys.items() if name != pattern}
        write_gguf(tmp_path / "unlisted.gguf", cut, without, cut.tensors)
        names.append("unlisted")
    losses = {}
    for name in names:
        with llama_cpp(tmp_path / f"{name}.gguf") as model:
            losses[name] = model.losses(TOKENS[:12])
    assert losses["cut"] == pytest.approx(losses["idle"], abs=1e-3)
    assert (architecture in ("gemma2", "gpt-oss")) == ("unlisted" in names)
    if "unlisted" in names:  # the list is read, and says what it is to say
        assert apart(losses["unlisted"], losses["idle"]) > 0.1


def test_the_cut_of_heads_by_layer_is_the_file_that_holds_those_layers_alone(tmp_path: Path, shortviz: Run) -> None:
    """OpenELM: transformers cannot load it from GGUF, so bytes are compared; llama.cpp runs both."""
    write_openelm(tmp_path / "five.gguf")
    write_openelm(tmp_path / "three.gguf", layers=(0, 2, 4))

    code, printed, _ = shortviz(
        "prune", str(tmp_path / "five.gguf"), "--remove", "1,3", "--stream", "--out", str(tmp_path / "cut.gguf")
    )

    assert code == 0
    assert "Checked that every kept byte is the original's; the weights were not run" in printed
    expected, found = (read_gguf(tmp_path / name) for name in ("three.gguf", "cut.gguf"))
    ours = {name: key for name, key in found.keys.items() if not name.startswith("shortviz.")}
    assert ours == expected.keys
    for mine, theirs in zip(found.tensors, expected.tensors, strict=True):
        assert (mine.name, mine.shape, mine.kind) == (theirs.name, theirs.shape, theirs.kind)
        assert b"".join(mine.pieces()) == b"".join(theirs.pieces())
    scores = []
    for name in ("cut.gguf", "three.gguf"):
        with llama_cpp(tmp_path / name) as model:
            scores.append(model.losses(TOKENS[:40]))
    assert scores[0] == scores[1]


def test_a_cut_of_a_cut_says_what_the_first_model_has_lost(llama: Path, tmp_path: Path) -> None:
    source = read_model(llama)
    export_gguf(source, tmp_path / "a.gguf", PrunePlan(num_layers=6, removed=(1, 3)))
    export_gguf(read_model(tmp_path / "a.gguf"), tmp_path / "b.gguf", PrunePlan(num_layers=4, removed=(0, 2)))
    found = fields_of(tmp_path / "b.gguf")
    assert found["shortviz.removed_layers"] == [0, 1, 3, 4]
    assert (found["shortviz.base"], found["shortviz.base_block_count"]) == ("tiny.gguf", 6)
    once = PrunePlan(num_layers=6, removed=(0, 1, 3, 4))
    for name, tensor in cut_tensors(source, once).items():
        mine = next(t for t in read_gguf(tmp_path / "b.gguf").tensors if t.name == name)
        assert b"".join(mine.pieces()) == b"".join(tensor.pieces())


@pytest.mark.parametrize(
    "said",
    [
        lambda w: (w.add_string("shortviz.removed_layers", "1,2"), w.add_uint32("shortviz.base_block_count", 8)),
        lambda w: (w.add_array("shortviz.removed_layers", [1, 2]), w.add_string("shortviz.base_block_count", "8")),
        lambda w: (w.add_array("shortviz.removed_layers", [0]), w.add_uint32("shortviz.base_block_count", 8)),
        lambda w: (w.add_array("shortviz.removed_layers", [1, 99]), w.add_uint32("shortviz.base_block_count", 8)),
        lambda w: (w.add_array("shortviz.removed_layers", [0]), w.add_uint32("shortviz.base_block_count", 2**32 - 1)),
        lambda w: (w.add_uint32("shortviz.treatments", 3), w.add_string("shortviz.base", "elsewhere")),
    ],
)
def test_what_a_file_says_of_itself_is_believed_only_where_it_is_so(tmp_path: Path, said: Any) -> None:
    """Another tool may have changed the blocks since."""
    write_tiny(tmp_path / "odd.gguf", keys=said)
    plan = PrunePlan(num_layers=6, removed=(1, 3))
    report = export_gguf(read_model(tmp_path / "odd.gguf"), tmp_path / "cut.gguf", plan)
    assert report.notes == ("The source's shortviz.* keys do not describe its blocks, so they are written anew.",)
    found = fields_of(tmp_path / "cut.gguf")
    assert (found["shortviz.removed_layers"], found["shortviz.base_block_count"]) == ([1, 3], 6)
    assert (found["shortviz.base"], found["shortviz.treatments"]) == ("odd.gguf", "")


def test_a_split_model_is_loaded_and_cut_into_one_file(tmp_path: Path) -> None:
    weights = write_tiny(tmp_path / "tiny.gguf", parts=2)
    base = load(ModelRef(id=str(tmp_path)))  # its only model
    assert all(torch.equal(base.model.state_dict()[name], weight) for name, weight in weights.items())
    source = gguf_source(ModelRef(id=str(tmp_path / "tiny-00002-of-00002.gguf")))
    report = export_gguf(source, tmp_path / "cut.gguf", PrunePlan(num_layers=6, removed=(2,)))
    assert report.proof == "bytes"
    assert report.bytes == sum(t.num_bytes for t in source.tensors if not t.name.startswith("blk.2."))


# Repaired and healed models.


def treated(base: ModelHandle, removed: tuple[int, ...], names: Sequence[str]) -> ModelHandle:
    """Return a cut model with some weights moved by half their size, as a repair or a healing would."""
    plan = PrunePlan(num_layers=base.info.num_layers, removed=removed)
    model = shared_copy(prune(base, plan))
    generator = torch.Generator().manual_seed(1)
    old = {name: model.model.get_parameter(name) for name in names}
    put_weights(
        model.model,
        {n: w + 0.5 * w.std() * torch.randn(w.shape, generator=generator) for n, w in old.items()},
    )
    done = Treatment(kind="repair", method="seam_refit", settings={}, seconds=0.0, text=None, note="")
    return replace(model, treatments=(done,))


CHANGED = {
    "llama": ("model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.q_proj.weight",
              "model.layers.1.self_attn.k_proj.weight", "model.norm.weight", "lm_head.weight"),
    "gemma3": ("model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.q_proj.weight",
               "model.layers.1.input_layernorm.weight", "model.norm.weight"),
}  # fmt: skip


@pytest.mark.parametrize("architecture", CHANGED)
def test_what_a_treatment_changed_is_quantised_anew_and_read_back_by_llama_cpp(
    tmp_path: Path, architecture: str
) -> None:
    path, out = tmp_path / "tiny.gguf", tmp_path / "cut.gguf"
    write_tiny(path, architecture)
    base = load(ModelRef(id=str(path)))
    model = treated(base, (2, 3), CHANGED[architecture])
    assert set(changed_weights(model, base)) == set(CHANGED[architecture])
    assert model.plan is not None
    text = TextSpec(kind="paste", value="The mill turns the river into bread. " * 30)
    windows = make_windows(text, WindowSpec(window=64, windows=4), base.tokenizer)

    report = export_gguf(read_model(path), out, model.plan, pruned=model, base=base, windows=windows)

    assert (report.max_logit_diff, report.proof) == (0.0, "fresh process")
    norms = sum("norm" in name for name in CHANGED[architecture])
    number = len(CHANGED[architecture]) - norms
    said = {f"{number} changed tensors quantised anew in the type of the original, Q8_0."}
    said |= {f"{norms} changed tensor{'s' * (norms > 1)} quantised anew in the type of the original, F32."}
    assert said <= set(report.notes)
    assert report.notes[-1].startswith("Quantising them changed the NLL by ")
    assert "4 windows of 64" in report.notes[-1]
    assert fields_of(out)["shortviz.treatments"] == "seam_refit"
    with llama_cpp(out) as opened:
        theirs = opened.losses(TOKENS)
    assert apart(our_losses(model, TOKENS), theirs) < 0.15
    assert apart(our_losses(prune(base, model.plan), TOKENS), theirs) > 0.3


def test_a_type_that_cannot_be_written_becomes_q8_0_and_that_is_said(handle: ModelHandle, llama: Path) -> None:
    """Zeros in Q6_K, which the gguf package reads and cannot write."""
    name, in_file = "model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"
    base = shared_copy(handle)
    put_weights(base.model, {name: torch.zeros_like(base.model.get_parameter(name))})
    model = treated(base, (4,), [])
    put_weights(model.model, {name: torch.randn(64, 96, generator=torch.Generator().manual_seed(2))})
    tensors = cut_tensors(read_model(llama), PrunePlan(num_layers=6, removed=(4,)))
    wide = replace(tensors[in_file], shape=(96, 64), kind=int(GGMLQuantizationType.Q6_K), file=None)
    with pytest.raises(ValueError):  # rows of 96 hold no block of 256
        requantise(model, base, tensors | {in_file: wide}, "llama")

    zeros = replace(tensors[in_file], kind=int(GGMLQuantizationType.IQ4_NL), file=None, data=bytes(64 * 3 * 18))
    made = requantise(model, base, tensors | {in_file: replace(zeros, num_bytes=len(zeros.data))}, "llama")
    assert made.notes == (
        "1 changed tensor quantised anew as Q8_0: the original's type IQ4_NL cannot be written here.",
    )
    assert made.tensors[in_file].type_name == "Q8_0"
    assert torch.allclose(made.weights[name], model.model.get_parameter(name), atol=0.02)


@pytest.mark.parametrize("kind", GGMLQuantizationType)
def test_every_type_is_written_as_itself_or_as_q8_0(kind: GGMLQuantizationType) -> None:
    """Of types that weights are loaded from: rows have whole blocks of Q8_0 wherever they have those of another."""
    row = 256
    block, block_bytes = GGML_QUANT_SIZES[kind]
    source = GgufTensor(name="x", shape=(row, 2), kind=kind, num_bytes=0, data=bytes(2 * row // block * block_bytes))
    try:
        _values(source)
    except NotImplementedError:
        return  # transformers cannot read it either
    assert block == 1 or block % 32 == 0
    values = np.random.default_rng(0).normal(0, 1, (2, row)).astype(np.float32)
    made = _quantised(source, values)
    assert made.kind in (kind, GGMLQuantizationType.Q8_0)
    assert _values(made).shape == values.shape


def test_what_is_no_order_of_the_files_numbers_is_not_turned_round() -> None:
    """Mamba's A is stored as -exp of the weight; weights that are moved, and added to, are turned round."""
    weight = np.arange(6, dtype=np.float32).reshape(2, 3) - 2
    assert _turned_back(lambda values: np.log(-values), weight, (2, 3)) is None
    assert _turned_back(lambda values: 2 * values, weight, (2, 3)) is None
    turned = _turned_back(lambda values: values.T - 1, weight, (3, 2))
    assert turned is not None
    assert np.array_equal(turned.T - 1, weight)


def test_a_file_whose_weights_are_not_the_models_is_refused(handle: ModelHandle, tmp_path: Path) -> None:
    """A check of the turned conversion: rows that transformers would order otherwise are never written."""
    other = tmp_path / "other.gguf"
    write_tiny(other, kind=GGMLQuantizationType.F16)
    model = treated(handle, (4,), ["model.layers.0.self_attn.q_proj.weight"])
    tensors = cut_tensors(read_model(other), PrunePlan(num_layers=6, removed=(4,)))
    with pytest.raises(ExportError, match=r"q_proj.weight was changed, and how blk.0.attn_q.weight of the GGUF file"):
        requantise(model, handle, tensors, "llama")


# What is refused, and what goes wrong.


def test_what_cannot_become_a_gguf_file_is_refused_in_a_sentence_with_nothing_written(
    llama: Path, checkpoint: str, shortviz: Run, tmp_path: Path
) -> None:
    there = tmp_path / "there.gguf"
    there.write_bytes(b"mine")
    cut = tmp_path / "short.gguf"
    cut.write_bytes(llama.read_bytes()[:-100])
    unknown = tmp_path / "unknown.gguf"
    unknown.write_bytes(llama.read_bytes().replace(b"llama", b"llamx"))
    before = sorted(tmp_path.iterdir())
    block, out = ("--start", "2", "--n", "2"), ("--out", str(tmp_path / "new" / "x.gguf"))
    cases = {
        (checkpoint, *block, *out): "did not come as a GGUF file, so no GGUF file of it can be cut",
        (str(llama), *block, "--out", str(there)): "is there already, and no file is written over",
        (str(llama), *block, "--out", str(tmp_path / "x-00001-of-00002.gguf")): "is the name of one file of several",
        (str(llama), *block, *out, "--archive"): "and a zip file was asked for; give another name",
        (str(cut), *block, *out): "is cut short",
        (str(unknown), *block, *out): "Whether llama.cpp derives something from a block's number in the architecture",
        (str(llama), "--start", "5", "--n", "2", *out): "start can be 0-4 for n 2",
    }
    for arguments, said in cases.items():
        code, printed, error = shortviz("prune", *arguments)
        assert (code, printed) == (2, ""), arguments
        assert said in error
        assert sorted(tmp_path.iterdir()) == before
    assert there.read_bytes() == b"mine"


def test_a_repair_of_another_model_is_refused_before_it_begins(checkpoint: str, shortviz: Run, tmp_path: Path) -> None:
    out = tmp_path / "repaired.gguf"
    code, _, error = shortviz("repair", checkpoint, "--start", "2", "--n", "2", "--export", str(out))
    assert code == 2
    assert "convert that with llama.cpp: python convert_hf_to_gguf.py FOLDER --outfile FOLDER.gguf." in error
    assert "repair" not in error.partition("Error")[0]
    assert list(tmp_path.iterdir()) == []


def test_what_a_gguf_file_cannot_hold_is_refused_before_anything_is_repaired_or_trained(
    llama: Path, shortviz: Run, tmp_path: Path
) -> None:
    unknown, out = tmp_path / "unknown.gguf", str(tmp_path / "out.gguf")
    unknown.write_bytes(llama.read_bytes().replace(b"llama", b"llamx"))
    code, _, error = shortviz("repair", str(unknown), "--start", "2", "--n", "2", "--export", out)
    assert (code, error.partition(" the architecture")[0]) == (
        2, "Whether llama.cpp derives something from a block's number in",
    )  # fmt: skip
    code, _, error = shortviz("heal", str(llama), "--start", "2", "--n", "2", "--adapter", out)
    assert (code, error) == (2, "--adapter is out.gguf, and an adapter is a folder; give another name.\n")
    assert list(tmp_path.iterdir()) == [unknown]


def test_the_json_of_a_gguf_export_is_a_report(llama: Path, shortviz: Run, tmp_path: Path) -> None:
    out = tmp_path / "cut.gguf"
    code, printed, _ = shortviz(
        "prune", str(llama), "--start", "2", "--n", "2", "--stream", "--out", str(out), "--json"
    )
    found = json.loads(printed)
    assert code == 0
    assert (found["folder"], found["max_logit_diff"], found["removed"]) == (str(out), None, [2, 3])
    assert list(found["files"]) == ["cut.gguf"]


@pytest.mark.parametrize("stage", ["write", "reload", "prove logits"])
def test_a_stop_leaves_nothing(llama: Path, handle: ModelHandle, tmp_path: Path, stage: str) -> None:
    stop, plan = threading.Event(), PrunePlan(num_layers=6, removed=(1,))
    watch = Watch(lambda step: stop.set() if step.stage == stage else None, stop)
    with pytest.raises(Stopped, match="nothing was left behind"):
        export_gguf(read_model(llama), tmp_path / "a" / "x.gguf", plan, pruned=prune(handle, plan), watch=watch)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_refused_and_one_that_fills_up_leaves_nothing(
    llama: Path, small_disk: Callable[..., Path]
) -> None:
    source, plan = read_model(llama), PrunePlan(num_layers=6, removed=(1,))
    disk = small_disk(300_000)
    (disk / "other").write_bytes(bytes(150_000))
    with pytest.raises(ResourceError, match=r"needs .* of disk, and the disk of .* has .* free"):
        export_gguf(source, disk / "x.gguf", plan)
    (disk / "other").unlink()

    def fill(step: Progress) -> None:
        with FileIO(str(disk / "other"), "w") as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                return

    with pytest.raises(ResourceError, match=r"The disk of .* is full .*; nothing was left behind"):
        export_gguf(source, disk / "x.gguf", plan, watch=Watch(fill))
    assert [file.name for file in disk.iterdir()] == ["other"]


def test_a_file_that_cannot_be_written_to_its_end_leaves_nothing(llama: Path, tmp_path: Path) -> None:
    program = """
import resource
from shortviz.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
main()
"""
    arguments = ["prune", str(llama), "--remove", "1", "--stream", "--out", str(tmp_path / "deep" / "x.gguf")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.endswith("nothing was left behind, so free some space and export again.\n")
    assert done.stderr.splitlines()[-1].startswith(f"The disk of {tmp_path}/deep is full (File too large)")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_export_leaves_nothing_under_its_name_and_the_next_one_removes_the_rest(
    llama: Path, tmp_path: Path
) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from shortviz.export.gguf import export_gguf
from shortviz.model.gguf.copies import read_model
from shortviz.progress import Watch
from shortviz.records.plan import PrunePlan

def die(step):
    if step.done > step.total // 2:
        os.kill(os.getpid(), signal.SIGKILL)

plan = PrunePlan(num_layers=6, removed=(1,))
export_gguf(read_model(Path(sys.argv[1])), Path(sys.argv[2]), plan, watch=Watch(die))
"""
    out = tmp_path / "x.gguf"
    done = subprocess.run([sys.executable, "-c", program, str(llama), str(out)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".x.gguf.partial-")
    assert 0 < (left / "x.gguf").stat().st_size < llama.stat().st_size

    export_gguf(read_model(llama), out, PrunePlan(num_layers=6, removed=(1,)))
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


def test_a_file_that_came_there_meanwhile_stays(llama: Path, tmp_path: Path) -> None:
    out, plan = tmp_path / "x.gguf", PrunePlan(num_layers=6, removed=(1,))
    with pytest.raises(ExportError, match="is there already, and no file is written over"):
        export_gguf(read_model(llama), out, plan, watch=Watch(lambda step: out.write_bytes(b"mine") and None))
    assert out.read_bytes() == b"mine"
    assert [file.name for file in tmp_path.iterdir()] == ["x.gguf"]
