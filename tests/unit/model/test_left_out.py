"""What of a checkpoint is not read: said once before loading, in the run, the report and the card; streamed or not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM
from transformers.models.qwen3_5 import Qwen3_5Config, Qwen3_5ForConditionalGeneration

from shortviz.model.load import estimate, load
from shortviz.progress import NOTE, Progress, Watch
from shortviz.records.model import ModelRef
from shortviz.runs.report import report_html
from shortviz.runs.run import load_run
from tests.support.command import Outcome
from tests.support.families import build_tiny, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft 0.21.2
Run = Callable[..., Outcome]
TEXT = ("--builtin", "passages/prose", "--window", "24", "--windows", "2")
SAID = "The adapter beside the weights of"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    folder = tmp_path / "plain"
    build_tiny("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def both(plain: Path, tmp_path: Path) -> Path:
    """The same checkpoint with an adapter beside it that changes what the model says."""
    folder = tmp_path / "both"
    shutil.copytree(plain, folder)
    tuned = get_peft_model(build_tiny("llama"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    tuned.save_pretrained(folder)
    assert (folder / "adapter_config.json").is_file()
    return folder


def test_the_weights_are_those_without_the_adapter_and_it_is_said_once(plain: Path, both: Path) -> None:
    heard: list[Progress] = []
    found = load(ModelRef(id=str(both)), watch=Watch(heard.append))
    expected = load(ModelRef(id=str(plain)))
    tokens = torch.arange(1, 9)[None]
    assert torch.equal(found.model(input_ids=tokens).logits, expected.model(input_ids=tokens).logits)
    said = [step.detail for step in heard if step.stage == NOTE and step.detail.startswith(SAID)]
    assert len(said) == 1
    assert (
        "is not used; name it as adapter where shortviz heal made it, else merge it into the weights with peft."
        in said[0]
    )
    assert found.info.left_out == tuple(said)
    assert estimate(ModelRef(id=str(both))).left_out == tuple(said)
    assert expected.info.left_out == ()


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_it_measures_and_cuts_as_without_the_adapter(
    plain: Path, both: Path, tmp_path: Path, shortviz: Run, stream: str
) -> None:
    numbers = []
    for folder in (plain, both):
        code, out, err = shortviz("evaluate", str(folder), "--start", "2", "--n", "1", *TEXT, stream, "--json")
        assert code == 0, err
        assert err.count(SAID) == (folder == both)
        numbers.append(json.loads(out)["nll"])
    assert numbers[0] == numbers[1]
    code, _, err = shortviz("prune", str(both), "--start", "2", "--n", "1", stream, "--out", str(tmp_path / "cut"))
    assert code == 0, err
    assert err.count(SAID) == 1
    assert SAID in (tmp_path / "cut" / "README.md").read_text()
    assert not (tmp_path / "cut" / "adapter_config.json").exists()


def test_the_run_and_its_report_say_it(both: Path, tmp_path: Path, shortviz: Run) -> None:
    run = tmp_path / "run"
    code, _, err = shortviz("measure", str(both), "--limit", "2", "--max-length", "16", "--out", str(run))
    assert code == 0, err
    assert load_run(run).model.left_out[0].startswith(SAID)
    assert SAID in report_html(load_run(run))


def test_an_adapter_alone_is_no_model(both: Path, shortviz: Run) -> None:
    (both / "config.json").unlink()
    code, _, err = shortviz("evaluate", str(both), *TEXT)
    assert code == 2
    assert "is a LoRA adapter, not a whole model" in err


def add_tensors(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> None:
    """Put tensors into a folder's one weight file, and fields into its config."""
    file = folder / "model.safetensors"
    save_file(load_file(file) | tensors, file, metadata={"format": "pt"})
    fields = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(fields))


def cut(shortviz: Run, folder: Path, out: Path, stream: str) -> str:
    """Cut a layer out and return what was said; the file of the cut has nothing that was left out."""
    code, _, err = shortviz("prune", str(folder), "--start", "1", "--n", "1", stream, "--out", str(out))
    assert code == 0, err
    return err


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
@pytest.mark.parametrize(
    "stored", ["mtp.layers.0.x.weight", "model.mtp_block.0.x.weight", "model.layers.6.eh_proj.weight"]
)
def test_prediction_heads_are_left_out_counted_and_told(
    plain: Path, tmp_path: Path, shortviz: Run, stored: str, stream: str
) -> None:
    add_tensors(plain, {stored: torch.ones(4, 4)}, num_nextn_predict_layers=1)
    said = cut(shortviz, plain, tmp_path / "cut", stream)
    sentence = f"1 tensor of prediction heads (MTP, such as {stored}) is left out"
    assert said.count(sentence) == 1
    assert sentence in (tmp_path / "cut" / "README.md").read_text()
    assert not [
        name for name in load_file(tmp_path / "cut" / "model.safetensors") if "mtp" in name or "eh_proj" in name
    ]


def test_layers_that_no_field_of_the_config_explains_are_refused(plain: Path, shortviz: Run) -> None:
    add_tensors(plain, {"model.layers.6.eh_proj.weight": torch.ones(4, 4)})
    code, _, err = shortviz("evaluate", str(plain), *TEXT)
    assert code == 2
    assert "they hold model.layers.6.eh_proj.weight, which it does not describe" in err


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_what_the_class_itself_passes_over_is_told_too(
    plain: Path, tmp_path: Path, shortviz: Run, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_tensors(plain, {"model.layers.6.odd": torch.ones(4, 4), "model.odd_part": torch.ones(4)})
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"\.odd"])
    said = cut(shortviz, plain, tmp_path / "cut", stream)
    sentence = "2 tensors that LlamaForCausalLM passes over (such as model.layers.6.odd) are left out."
    assert said.count(sentence) == 1
    assert not [name for name in load_file(tmp_path / "cut" / "model.safetensors") if "odd" in name]


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_parts_for_pictures_are_counted_where_the_text_model_does_not_read_them(
    tmp_path: Path, shortviz: Run, stream: str
) -> None:
    text = {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "head_dim": 16,
            "num_attention_heads": 2, "num_key_value_heads": 1, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
            "linear_key_head_dim": 8, "linear_value_head_dim": 8, "max_position_embeddings": 256}  # fmt: skip
    sight = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32,
             "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
             "num_position_embeddings": 16}  # fmt: skip
    whole = Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=sight))
    folder = tmp_path / "seeing"
    whole.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    count = sum(".visual." in name for name in load_file(folder / "model.safetensors"))
    said = cut(shortviz, folder, tmp_path / "cut", stream)
    assert f"{count} tensors for pictures or sound" in said
    assert "Qwen3_5ForCausalLM is the text model alone, and so is what is exported, of type qwen3_5_text" in said
    assert json.loads((tmp_path / "cut" / "config.json").read_text())["model_type"] == "qwen3_5_text"


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_a_part_for_pictures_that_takes_a_missing_package_is_refused_by_that_package_s_name(
    tmp_path: Path, shortviz: Run, stream: str
) -> None:
    text = build_tiny("gemma3n_text")
    text.save_pretrained(tmp_path / "seeing")
    tiny_tokenizer().save_pretrained(tmp_path / "seeing")
    whole = {"model_type": "gemma3n", "text_config": text.config.to_dict(), "dtype": "float32"}
    (tmp_path / "seeing" / "config.json").write_text(json.dumps(whole))
    code, _, err = shortviz("evaluate", str(tmp_path / "seeing"), *TEXT, stream)
    assert code == 2
    assert "takes a package that is not installed (TimmWrapperModel requires the timm library" in err


def split(folder: Path, change: bool = False) -> None:
    """Put the weights into two files with an index beside the whole file, one of them changed or not."""
    tensors = load_file(folder / "model.safetensors")
    halves = {"model-00001-of-00002.safetensors": sorted(tensors)[::2], "model-00002-of-00002.safetensors": []}
    halves["model-00002-of-00002.safetensors"] = sorted(tensors)[1::2]
    if change:
        first = sorted(tensors)[0]
        tensors[first] = tensors[first] + 1
    for file, names in halves.items():
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, names in halves.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_two_whole_sets_of_weights_that_differ_are_refused(plain: Path, shortviz: Run, stream: str) -> None:
    split(plain, change=True)
    code, _, err = shortviz("evaluate", str(plain), *TEXT, stream)
    assert code == 2
    assert "has two whole sets of weights that differ (lm_head.weight)" in err


def test_the_choice_among_several_sources_is_told(plain: Path, shortviz: Run) -> None:
    split(plain)
    (plain / "pytorch_model.bin").write_bytes(b"x")
    (plain / "old.gguf").write_bytes(b"x")
    (plain / "consolidated.safetensors").write_bytes(b"x")
    config = json.loads((plain / "tokenizer_config.json").read_text()) | {"chat_template": "one"}
    (plain / "tokenizer_config.json").write_text(json.dumps(config))
    (plain / "chat_template.jinja").write_text("other")
    code, _, err = shortviz("evaluate", str(plain), *TEXT)
    assert code == 0, err
    assert "is read, as transformers does; the files of model.safetensors.index.json hold the same" in err
    for what in ("safetensors", "pickled weights", "GGUF files"):
        assert f"model.safetensors is read; {what} beside it (" in err
    assert err.count(") are neither read nor compared.") == 3
    assert f"chat_template.jinja and tokenizer_config.json of {plain} disagree (about the chat template); chat" in err
    (plain / "model-00002-of-00002.safetensors").unlink()
    code, _, err = shortviz("evaluate", str(plain), *TEXT)
    assert code == 0, err
    assert "names files that are not all there" in err


def test_an_index_of_the_whole_file_alone_is_no_second_set(plain: Path) -> None:
    index = {"weight_map": dict.fromkeys(load_file(plain / "model.safetensors"), "model.safetensors")}
    (plain / "model.safetensors.index.json").write_text(json.dumps(index))
    assert estimate(ModelRef(id=str(plain))).left_out == ()


def _two_templates(folder: Path) -> None:
    several = {"chat_template": [{"name": "tools", "template": "B"}, {"name": "default", "template": "A"}]}
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | several))
    (folder / "chat_template.jinja").write_text("B")


def _other_words(folder: Path) -> None:
    ids = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "vocab.json").write_text(json.dumps(ids | {"a": 1000}))


SOURCES: dict[str, tuple[Callable[[Path], object], str]] = {
    "config": (
        lambda folder: (folder / "params.json").write_text(json.dumps({"dim": 32, "n_layers": 4})),
        "config.json and params.json of IT disagree (num_hidden_layers 6 and n_layers 4); config.json is read.",
    ),
    "words": (
        _other_words,
        "tokenizer.json and vocab.json of IT disagree ('a' is 64 and 1000); tokenizer.json is read.",
    ),
    "merges": (
        lambda folder: (folder / "merges.txt").write_text("#version: 0.2\na b\n"),
        "tokenizer.json and merges.txt of IT disagree (merge 0 is 'not there' and 'a b'); tokenizer.json is read.",
    ),
    "templates": (
        _two_templates,
        "chat_template.jinja and tokenizer_config.json of IT disagree (about the chat template); chat_template.jinja "
        "is read.",
    ),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_two_sources_that_disagree_are_told_before_loading_and_with_the_model(plain: Path, kind: str) -> None:
    change, said = SOURCES[kind]
    change(plain)
    told = (said.replace("IT", str(plain)),)
    assert estimate(ModelRef(id=str(plain))).left_out == told
    assert load(ModelRef(id=str(plain))).info.left_out == told


def test_two_sources_that_agree_are_not_told(plain: Path) -> None:
    (plain / "params.json").write_text(json.dumps({"dim": 32, "n_layers": 6, "n_heads": 2, "vocab_size": -1}))
    (plain / "vocab.json").write_text(json.dumps(json.loads((plain / "tokenizer.json").read_text())["model"]["vocab"]))
    (plain / "merges.txt").write_text("#version: 0.2\n")
    assert estimate(ModelRef(id=str(plain))).left_out == ()
