"""The proof: what the fresh process finds in checkpoints that were spoilt after writing, and that it is on its own."""

import ast
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shortviz.errors import ExportError, ResourceError
from shortviz.export import proof
from shortviz.export.export import write_checkpoint
from shortviz.export.proving import FreshProcess, check_generation, fresh_process, prove_checkpoint
from shortviz.model.handle import ModelHandle
from tests.support.families import build_tiny, shared_handle, tiny_handle


@pytest.fixture(scope="module")
def handle() -> ModelHandle:
    return shared_handle("llama")


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FreshProcess]:
    with fresh_process(tmp_path_factory.mktemp("proof")) as process:
        yield process


@pytest.fixture
def checkpoint(handle: ModelHandle, tmp_path: Path) -> Path:
    write_checkpoint(handle, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_a_truncated_weight_file_is_found(
    handle: ModelHandle, checkpoint: Path, child: FreshProcess, tmp_path: Path
) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ExportError, match="failed its proof.*; nothing was exported"):
        prove_checkpoint(child, handle, checkpoint, tmp_path)


def test_a_missing_weight_is_named(handle: ModelHandle, checkpoint: Path, child: FreshProcess, tmp_path: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    del weights["model.layers.3.mlp.up_proj.weight"]
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match=r"missing weights \(model\.layers\.3\.mlp\.up_proj\.weight"):
        prove_checkpoint(child, handle, checkpoint, tmp_path)


def test_one_changed_bit_is_found(handle: ModelHandle, checkpoint: Path, child: FreshProcess, tmp_path: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    row = weights["lm_head.weight"][7]
    row[0] = torch.nextafter(row[0], torch.tensor(9.0))
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match="other logits"):
        prove_checkpoint(child, handle, checkpoint, tmp_path)


def test_another_dtype_is_found(handle: ModelHandle, checkpoint: Path, child: FreshProcess, tmp_path: Path) -> None:
    config = checkpoint / "config.json"
    config.write_text(config.read_text().replace('"float32"', '"bfloat16"'))
    with pytest.raises(ExportError, match="says that it is in bfloat16 instead of float32"):
        prove_checkpoint(child, handle, checkpoint, tmp_path)


def test_another_tokenizer_is_found(handle: ModelHandle, checkpoint: Path, child: FreshProcess, tmp_path: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(ExportError, match="reloaded tokenizer has a chat template other than"):
        prove_checkpoint(child, handle, checkpoint, tmp_path)


def test_the_process_is_offline_its_death_means_memory_and_closing_ends_it(tmp_path: Path) -> None:
    with fresh_process(tmp_path) as process:
        with pytest.raises(ExportError, match="failed its proof"):
            process.ask(do="tokenize", text="before anything is loaded")
        environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        assert b"HF_HUB_OFFLINE=1" in environment
        assert b"TRANSFORMERS_OFFLINE=1" in environment
        os.kill(process.pid, 9)
        with pytest.raises(ResourceError, match="was killed, most likely for want of memory"):
            process.ask(do="tokenize", text="x")
    assert not Path(f"/proc/{process.pid}").exists()


def test_the_process_sees_nothing_of_shortviz(child: FreshProcess) -> None:
    tree = ast.parse(Path(proof.__file__).read_text(encoding="utf-8"))
    imports = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imports |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    allowed = {"torch", "transformers", "safetensors.torch", *sys.stdlib_module_names, "collections.abc"}
    assert imports <= allowed
    command = Path(f"/proc/{child.pid}/cmdline").read_bytes().split(b"\0")
    assert command[1:3] == [b"-P", proof.__file__.encode()]  # -P: the script's folder is not importable


def test_a_model_that_computes_other_than_its_weights_say_is_found(child: FreshProcess, tmp_path: Path) -> None:
    handle = tiny_handle("llama")
    handle.model.lm_head.register_forward_hook(lambda layer, args, logits: logits + 0.25)
    write_checkpoint(handle, tmp_path / "checkpoint")
    with pytest.raises(ExportError, match=r"other logits than the model in memory \(largest difference 0\.25\)"):
        prove_checkpoint(child, handle, tmp_path / "checkpoint", tmp_path)


def test_shards_are_proved_like_one_file(handle: ModelHandle, child: FreshProcess, tmp_path: Path) -> None:
    write_checkpoint(handle, tmp_path / "checkpoint", shard_bytes=100_000)
    shards = sorted(path.name for path in (tmp_path / "checkpoint").glob("*.safetensors"))
    assert shards == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert prove_checkpoint(child, handle, tmp_path / "checkpoint", tmp_path).max_logit_diff == 0.0


def test_generation_that_differs_with_a_cache_in_the_widest_dtype_is_refused() -> None:
    found = {"cached": [[1, 2, 3], [4, 5, 6]], "uncached": [[1, 2, 3], [4, 0, 6]], "dtype": "float64"}
    with pytest.raises(ExportError, match=r"after a prompt of 2 tokens, at token 1, in float64\)"):
        check_generation([[9], [9, 9]], found)
    assert check_generation([[9]], {"cached": [[1]], "uncached": [[1]], "dtype": "float32"}) == "float32"


def test_a_fault_of_the_cache_stays_in_every_dtype() -> None:
    checkpoint = proof.Checkpoint()
    checkpoint.model = build_tiny("llama")

    def spoil_cached_steps(layer: torch.nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return output.flip(-1) if output.shape[1] == 1 else output

    checkpoint.model.model.norm.register_forward_hook(spoil_cached_steps)
    found = checkpoint.generate([[5, 6, 7]], 4)
    assert found["cached"] != found["uncached"]
    assert found["dtype"] == "float64"


def test_weights_are_moved_to_the_given_addresses_without_changing_a_bit() -> None:
    model = build_tiny("gpt2")
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    wanted = {name: 8 * (i % 8) for i, name in enumerate(before)}
    proof.match_addresses(model, wanted)
    found = proof.addresses_of(model)
    assert {name: found[name] for name in wanted} == wanted
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()
