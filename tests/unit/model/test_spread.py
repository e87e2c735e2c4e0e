"""Models spread over two devices give the numbers of the model on one, and what cannot be spread says so."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import dispatch_model

from shortviz import HealSettings, evaluate, export_checkpoint, heal, measure_distances, measure_losses, prune
from shortviz.cli.main import app
from shortviz.cli.session import run_command
from shortviz.compat import ShortTransformer, get_angular_distance_ith_token
from shortviz.errors import ModelError, ResourceError
from shortviz.measure.tasks import score_tasks
from shortviz.model import load
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import layer_stack
from shortviz.model.placement import Placement, choose_placement, devices_of, refuse_offloaded
from shortviz.records.model import SPREAD, ModelRef
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.text import TaskRow, TaskRows, TextInfo, TokenSet, WindowSet
from shortviz.repair.repair import repair
from tests.support.bypass import verify_prune
from tests.support.families import NUM_LAYERS, build_tiny, handle_of, tiny_handle, tiny_tokenizer, tiny_tokens
from tests.support.logical_devices import logical_devices

FAMILIES = ("llama", "gpt2", "gemma3_text", "bloom")
"""Tied and own heads, another residual argument, two rotary modules, a tuple of outputs."""


@pytest.fixture
def devices() -> Iterator[tuple[torch.device, torch.device]]:
    """Two devices that refuse to mix, as long as a test lasts."""
    with logical_devices() as both:
        yield both


def _spread(name: str, devices: tuple[torch.device, torch.device]) -> ModelHandle:
    """Return a tiny model with its first two layers on one device and the rest, and the final norm, on the other."""
    model = build_tiny(name, torch.float64)
    path = layer_stack(model).path
    owner = path.rpartition(".")[0]
    places = {f"{path}.{i}": devices[0 if i < 2 else 1] for i in range(NUM_LAYERS)}
    beside = [n for n, _ in model.get_submodule(owner).named_children() if f"{owner}.{n}" != path]
    places |= {f"{owner}.{n}": devices[1 if n in ("norm", "ln_f") else 0] for n in beside}
    places["lm_head"] = devices[0]
    dispatch_model(model, places, main_device=devices[0], skip_keys=model._skip_keys_device_placement)
    return handle_of(model, f"tiny-{name}")


def _rows() -> TokenSet:
    generator = np.random.default_rng(2)
    rows = tuple(generator.integers(0, 256, length).astype(np.int64) for length in (40, 24, 33))
    return TokenSet(rows=rows, info=TextInfo(source="random", rows=3, tokens=97, fingerprint="r"))


def _windows() -> WindowSet:
    tokens = np.random.default_rng(3).integers(0, 256, (2, 32)).astype(np.int64)
    return WindowSet(tokens=tokens, info=TextInfo(source="random", rows=2, tokens=64, fingerprint="w"))


def test_the_two_devices_refuse_to_mix(devices: tuple[torch.device, torch.device]) -> None:
    a, b = (torch.arange(3.0, device=device) for device in devices)
    with pytest.raises(RuntimeError, match=r"same device, but aten\.add\.Tensor got fpga:0, fpga:1"):
        a + b
    with pytest.raises(RuntimeError, match="same device"):
        torch.nn.functional.linear(a[None], torch.ones(2, 3))
    assert (a + b.to(a.device)).device == devices[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_spread_model_measures_what_the_whole_one_does(name: str, devices: tuple[torch.device, torch.device]) -> None:
    whole, spread = tiny_handle(name, torch.float64), _spread(name, devices)
    assert spread.info.device == "fpga:0, fpga:1"
    rows = _rows()
    expected, found = measure_distances(whole, rows, batch_size=2), measure_distances(spread, rows, batch_size=2)
    for criterion, grid in expected.criteria.items():
        np.testing.assert_allclose(found.criteria[criterion].mean, grid.mean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_losses_of_a_spread_model_are_those_of_the_whole_one(
    name: str, devices: tuple[torch.device, torch.device]
) -> None:
    whole, spread = tiny_handle(name, torch.float64), _spread(name, devices)
    expected, found = measure_losses(whole, _windows()), measure_losses(spread, _windows())
    assert found.replayed == expected.replayed
    for kind in ("nll", "kl"):
        np.testing.assert_allclose(getattr(found, kind).mean, getattr(expected, kind).mean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("block", [Block(start=1, n=1), Block(start=3, n=3)])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_cut_spread_model_has_hooks_of_its_own(
    name: str, block: Block, devices: tuple[torch.device, torch.device]
) -> None:
    plan = PrunePlan.of_blocks(NUM_LAYERS, block)
    whole, spread = tiny_handle(name, torch.float64), _spread(name, devices)
    cut = prune(spread, plan)
    assert verify_prune(spread, cut, tiny_tokens(12).numpy()) == 0.0
    expected, found = (evaluate(prune(h, plan), _windows(), base=h) for h in (whole, spread))
    assert (found.score.nll, found.kl) == pytest.approx((expected.score.nll, expected.kl), abs=1e-12)
    again = prune(cut, PrunePlan(num_layers=NUM_LAYERS - block.n, removed=(0,)))
    assert verify_prune(spread, again, tiny_tokens(12).numpy()) == 0.0
    assert devices_of(spread.model) == devices, "the original stays where it was"


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_spread_model_answers_questions_as_the_whole_one_does(
    name: str, devices: tuple[torch.device, torch.device]
) -> None:
    shared = "A long beginning that the choices share, so that its keys and values are kept for them. " * 2
    rows = tuple(
        TaskRow(where=f"row {i}", context=f"{shared}{i}?", choices=("yes", "not at all", "no"), label=i % 3)
        for i in range(5)
    )
    task = TaskRows(rows=rows, source="questions of a test", fingerprint="t", delimiter=" ")
    expected, found = (score_tasks(h, task) for h in (tiny_handle(name, torch.float64), _spread(name, devices)))
    for ours, theirs in zip(found.predictions, expected.predictions, strict=True):
        assert ours.log_likelihoods == pytest.approx(theirs.log_likelihoods, abs=1e-12)


def test_the_seed_s_calls_work_on_a_spread_model(devices: tuple[torch.device, torch.device]) -> None:
    whole, spread = tiny_handle("llama", torch.float64), _spread("llama", devices)
    expected, found = (ShortTransformer.from_model(h.model, tokenizer=tiny_tokenizer()) for h in (whole, spread))
    rows = ["A first row of text.", "And a second one, a little longer."]
    for distance in ("angular_last", get_angular_distance_ith_token(-1)):
        np.testing.assert_allclose(
            found.analyse_layers(rows, distance=distance), expected.analyse_layers(rows, distance=distance), atol=1e-6
        )
    expected.prune(start_layer=1, block_size=2)
    found.prune(start_layer=1, block_size=2)
    ids = tiny_tokens(8)
    with torch.no_grad():
        logits = found(ids.to(devices[0])).logits.cpu()
        torch.testing.assert_close(logits, expected(ids).logits, rtol=0, atol=1e-12)
    assert devices_of(spread.model) == devices, "the given model stays where it was"


def test_a_spread_model_writes_the_text_of_the_whole_one(devices: tuple[torch.device, torch.device]) -> None:
    plan = PrunePlan(num_layers=NUM_LAYERS, removed=(2,))
    whole, spread = (prune(handle, plan) for handle in (tiny_handle("llama", torch.float64), _spread("llama", devices)))
    ids = tiny_tokens(10)
    for use_cache in (True, False):
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "use_cache": use_cache}
        found = spread.model.generate(ids.to(devices[0]), attention_mask=torch.ones_like(ids).to(devices[0]), **options)
        expected = whole.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert torch.equal(found.cpu(), expected)


def test_what_needs_one_device_refuses_a_spread_model(
    devices: tuple[torch.device, torch.device], tmp_path: Path
) -> None:
    spread = _spread("llama", devices)
    cut = prune(spread, PrunePlan(num_layers=NUM_LAYERS, removed=(2,)))
    with pytest.raises(ModelError, match="A repair needs a model on one device, and tiny-llama is spread over fp"):
        repair(cut, spread, _rows())
    with pytest.raises(ModelError, match="Healing needs a model on one device"):
        heal(cut, _rows(), HealSettings(), heldout=_windows())
    with pytest.raises(ModelError, match="which can be streamed"):
        export_checkpoint(cut, tmp_path / "out", base_info=spread.info)
    assert not list(tmp_path.iterdir())


def test_a_model_that_accelerate_put_on_the_disk_in_part_is_refused(tmp_path: Path) -> None:
    model = build_tiny("llama")
    places = {f"model.layers.{i}": "cpu" if i < 4 else "disk" for i in range(NUM_LAYERS)}
    places |= {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    dispatch_model(model, places, offload_dir=tmp_path)
    with pytest.raises(
        ResourceError, match=r"no room for 57 of 57 weights of this \(model.embed_tokens.weight, \.\.\.\); stream it"
    ):
        refuse_offloaded("this", model)


@pytest.mark.skipif(torch.cuda.is_available(), reason="accelerate would find room on the GPU")
def test_what_accelerate_s_own_map_puts_on_the_cpu_is_refused(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    placed = Placement(dtype=torch.float32, device=cpu, reason="as asked for.", spread=(cpu, cpu))
    monkeypatch.setattr(load, "choose_placement", lambda _: placed)
    with pytest.raises(ResourceError, match=r"no room for 57 of 57 weights of .*model\.embed_tokens.*stream it"):
        load.load(ModelRef(id=checkpoint))


def test_to_spread_over_the_gpus_takes_several() -> None:
    if torch.cuda.is_available() and torch.cuda.device_count() > 1:
        pytest.skip("this machine has several GPUs")
    with pytest.raises(ModelError, match="The device spread puts a model on several GPUs, and this machine has"):
        choose_placement(ModelRef(id="demo", device=SPREAD))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("repair", "--start", "1", "--n", "1"), "A repair needs the model on one device, and --device is spread"),
        (("shrink", "--to-layers", "3"), "Shrinking needs the model on one device"),
        (("heal", "--start", "1", "--n", "1"), "Healing needs the model on one device"),
        (("prune", "--start", "1", "--n", "1", "--out", "new"), "An export, which can be streamed, needs"),
        (("measure",), "The device spread puts a model on several GPUs"),
    ],
)
def test_the_command_line_says_what_is_not_spread_before_it_loads(
    command: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(app, [command[0], "no-such-model", *command[1:], "--device", "spread"]) == 2
    assert said in capsys.readouterr().err
