"""Several processes on one measurement, and processes that are killed; the processes themselves are process_lab.py."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from shortviz.cli.main import app
from shortviz.cli.session import run_command
from tests.support.families import build_tiny, tiny_config, tiny_tokenizer
from tests.support.paths import ROOT

LAB = ROOT / "tests" / "support" / "process_lab.py"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    wide = tiny_config("llama", intermediate_size=300_000, num_hidden_layers=2)  # a layer of 115 MB in float32
    for name, model in (
        ("model", build_tiny("llama")),
        ("other", build_tiny("llama", seed=1)),
        ("wide", AutoModelForCausalLM.from_config(wide, dtype=torch.bfloat16)),
    ):
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    command = [sys.executable, str(LAB), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return folder


def read(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as found:
        return dict(found)


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    for name, values in expected.items():
        # A standard error comes from a difference of sums, in which a few digits cancel.
        floor = 1e4 * tolerance if name.endswith("stderr") else tolerance
        np.testing.assert_allclose(found[name], values, rtol=floor, atol=floor, err_msg=name)


def test_a_streamed_pass_killed_in_a_layer_goes_on_in_that_layer_with_bit_equal_numbers(lab):
    assert json.loads((lab / "killed.json").read_text()) == [-9, 0]
    assert not (lab / "never.npz").exists()
    assert json.loads((lab / "first.json").read_text()) == 3.17, "the first of layer 3's six batches"
    whole, resumed = read(lab / "ranks1.npz"), read(lab / "resumed.npz")
    assert_same(resumed, {name: whole[f"streamed.{name}"] for name in resumed}, 0.0)


@pytest.mark.parametrize("size", [2, 4])
def test_the_numbers_do_not_depend_on_the_number_of_processes(lab, size):
    assert json.loads((lab / f"ranks{size}.json").read_text()) == [0] * size
    one, several = read(lab / "ranks1.npz"), read(lab / f"ranks{size}.npz")
    assert one.keys() == several.keys()
    assert one["rows"] == 11
    assert "linear_replacement.mean" in one
    assert np.isfinite(one["losses.kl"]).any()
    assert len(one["cut.a.nll"]) == 5
    assert len(one["cut.uncut.nll"]) == 3
    assert several["complete"], "every window of the map was measured by some process"
    settled = json.loads((lab / f"settled{size}.json").read_text()) + json.loads((lab / "settled1.json").read_text())
    assert settled == [settled[0]] * 4, "rows come back in the order of one process"
    assert_same(several, one, 1e-12)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on data")
@pytest.mark.parametrize("kind", ["measured", "scored"])
def test_a_limit_reached_in_a_streamed_pass_is_told_with_what_was_expected(lab, kind):
    text = (lab / f"limited-{kind}.txt").read_text()
    assert re.match(r"ResourceError: Memory ran out while .*wide was streamed: 230 MB for weights and .* KB for", text)
    assert "expected; give " in text


def test_processes_with_other_model_files_are_told_apart_by_all_of_them(lab):
    for rank in (0, 1):
        text = (lab / f"unlike{rank}.txt").read_text()
        assert text.startswith("Process 1 of 2 has other model files than process 0")


def test_when_one_process_dies_the_others_say_so_and_a_restart_goes_on(lab):
    first, second = json.loads((lab / "died.json").read_text())
    assert first == [1, -9]
    assert (lab / "lost.txt").read_text().startswith("Another process of this measurement ended before it was done")
    assert second == [0, 0]
    assert json.loads((lab / "again0.json").read_text()) == [], "process 0 had done all its batches"
    assert json.loads((lab / "again1.json").read_text()) == [5], "process 1 had kept four rows of its five"
    whole = read(lab / "ranks1.npz")
    again = read(lab / "again.npz")
    assert_same(again, {name: whole[name] for name in again}, 1e-12)


def launched(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run two processes of the command line by torch's own launcher."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launcher, "-m", "shortviz", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120,
    )


def test_a_launched_stream_of_chosen_blocks_prints_once_what_one_process_prints(lab):
    text = ("--builtin", "passages/prose", "--window", "24", "--windows", "3")
    command = ("map", str(lab / "model"), *text, "--stream", "--blocks", "1,2", "--json")
    two = launched(*command)
    assert two.returncode == 0, two.stderr
    one = subprocess.run(
        [sys.executable, "-m", "shortviz", *command], capture_output=True, text=True, check=True, cwd=ROOT
    )
    found, expected = json.loads(two.stdout), json.loads(one.stdout)
    assert [found["blocks"][0][name] for name in ("nll", "windows", "kl")] == pytest.approx(
        [expected["blocks"][0][name] for name in ("nll", "windows", "kl")], abs=1e-12
    )


@pytest.mark.parametrize(
    "command", [("prune", "--remove", "2", "--out", "x"), ("evaluate", "--no-stream"), ("shrink", "--to-layers", "3")]
)
def test_a_command_for_one_process_refuses_a_launcher_before_it_loads(command, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.chdir(tmp_path)
    assert run_command(app, [command[0], "no-such-model", *command[1:]]) == 2
    assert "A launcher started 2 processes, and this command runs in one" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
