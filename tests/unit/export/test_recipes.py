"""Texts of an export: recipes that really repeat it, the model card, and generation configs that can be saved."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from shortviz.cli.main import main
from shortviz.export.card import CardFacts, model_card, shortviz_json
from shortviz.export.export import write_checkpoint
from shortviz.export.recipes import mergekit_yaml, reproduce_command, reproduce_python
from shortviz.records.ledger import (
    Probe,
    ProbeItem,
    ProbeScore,
    StepEvidence,
    Treatment,
    start_ledger,
    with_evidence,
)
from shortviz.records.measured import Evaluation, Score
from shortviz.records.model import DEMO_HUB_ID, ModelInfo
from shortviz.records.plan import PrunePlan
from shortviz.records.text import TextInfo
from tests.support.families import shared_handle

PROOF = {
    "max_logit_diff": 0.0,
    "prompt_lengths": (1, 7, 33),
    "new_tokens": 12,
    "generation_dtype": "float32",
    "generation_equal": True,
}
SCORE = Score(
    nll=3.5,
    nll_stderr=0.1,
    tokens=640,
    windows=5,
    forward_seconds=0.5,
    parameters=90,
    bytes=360,
    cache_bytes_per_token=4,
)
TEXT = TextInfo(source="built-in passages", rows=24, tokens=6000, fingerprint="ab12", bos="auto: no BOS")
EVALUATION = Evaluation(
    score=SCORE,
    text=TEXT,
    removed=(2,),
    base=replace(SCORE, nll=3.0, forward_seconds=0.6),
    nll_increase=0.5,
    nll_increase_stderr=0.02,
    kl=0.25,
    kl_stderr=0.01,
    same_top1=0.75,
)


def info(**changes: object) -> ModelInfo:
    return replace(shared_handle("llama").info, **changes)


def facts(**changes: object) -> CardFacts:
    plan = PrunePlan(num_layers=6, removed=(2,))
    base = info(id="org/model", revision="c0ffee")
    pruned = info(id="org/model", num_layers=5)
    given = {"name": "short", "base": base, "pruned": pruned, "plan": plan, "text": TEXT, "evaluation": EVALUATION}
    return CardFacts(**given | {"proof": PROOF} | changes)


def test_the_card_shows_the_evidence_that_was_measured_of_this_very_model() -> None:
    items = (ProbeItem(question="1 + 1 =", answer="2"),)
    ledger = replace(start_ledger(EVALUATION), probes=(Probe(name="addition", seed=0, examples="", items=items),))
    for step, right in zip(ledger.steps, "10", strict=True):
        score = ProbeScore(probe="addition", seed=0, right=right, written=("2",))
        ledger = with_evidence(ledger, step, StepEvidence(probes=(score,), disk_bytes=10))

    card = model_card(facts(ledger=ledger))

    assert "## What it can still do" in card
    assert "| probe addition | 1 of 1 | 0 of 1 (0.0 %) |" in card
    assert "| operations and weight bytes, computed | 100 % |" in card
    assert shortviz_json(facts(ledger=ledger))["evidence"]["steps"]["cut"]["probes"][0]["right"] == "0"
    repaired = Treatment(kind="repair", method="scale")
    for other in (facts(), facts(ledger=ledger, treatments=(repaired,))):
        assert "What it can still do" not in model_card(other)
        assert "evidence" not in shortviz_json(other)


def front_matter(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize(
    ("removed", "ranges"),
    [
        ((), [[0, 6]]),
        ((0, 1), [[2, 6]]),
        ((5,), [[0, 5]]),
        ((1, 2, 4), [[0, 1], [3, 4], [5, 6]]),
    ],
)
def test_mergekit_slices_exclude_their_end(removed: tuple[int, ...], ranges: list[list[int]]) -> None:
    recipe = yaml.safe_load(mergekit_yaml("org/model", PrunePlan(num_layers=6, removed=removed), "bfloat16"))
    assert recipe["merge_method"] == "passthrough"
    assert recipe["dtype"] == "bfloat16"
    assert [part["sources"] for part in recipe["slices"]] == [
        [{"model": "org/model", "layer_range": r}] for r in ranges
    ]


def test_mergekit_knows_the_demo_model_by_its_hub_name() -> None:
    recipe = yaml.safe_load(mergekit_yaml("demo", PrunePlan(num_layers=30, removed=(3,)), "float32"))
    assert {part["sources"][0]["model"] for part in recipe["slices"]} == {DEMO_HUB_ID}


def test_the_command_names_one_block_by_start_and_n_and_scattered_layers_one_by_one() -> None:
    block, scattered = PrunePlan(num_layers=30, removed=(12, 13)), PrunePlan(num_layers=30, removed=(3, 7, 8))
    assert reproduce_command("demo", block) == "shortviz prune demo --start 12 --n 2 --out pruned"
    command = reproduce_command("a b/m", scattered, folder="my out", revision="main", dtype="bfloat16", device="cpu")
    assert shlex.split(command) == (
        ["shortviz", "prune", "a b/m", "--remove", "3,7,8"]
        + ["--revision", "main", "--dtype", "bfloat16", "--device", "cpu", "--out", "my out"]
    )


def test_the_command_and_the_python_lines_make_the_same_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "it's a model"
    write_checkpoint(shared_handle("qwen2"), source)
    plan = PrunePlan(num_layers=6, removed=(1, 4))
    monkeypatch.chdir(tmp_path)
    command = shlex.split(reproduce_command(str(source), plan, folder="by-command"))
    assert command.pop(0) == "shortviz"
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 0
    exec(reproduce_python(str(source), plan, folder="by-python"), {})
    ours, theirs = (load_file(tmp_path / f"by-{way}" / "model.safetensors") for way in ("command", "python"))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    assert json.loads((tmp_path / "by-command" / "config.json").read_text())["num_hidden_layers"] == 4


def test_the_card_names_what_was_removed_and_every_number_with_its_error_and_text() -> None:
    card = model_card(facts())
    assert front_matter(card) == {
        "base_model": "org/model",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["layer-pruning", "pruned", "shortviz"],
    }
    for part in (
        "without 1 of its 6 decoder layers: layer 2 (start 2, n 1)",
        "at revision `c0ffee`",
        "| perplexity | 20.1 ± 2.0 → 33.1 ± 3.3 |",
        "| NLL (nats a token) | 3.00 ± 0.10 → 3.50 ± 0.10 |",
        "| perplexity against uncut, paired | × 1.65 (+0.500 ± 0.020 nats) |",
        "| KL(uncut ‖ pruned), nats a token | 0.250 ± 0.010 |",
        "| same most likely next token | 75.0 % |",
        "built-in passages, 5 windows, the first of the text (errors widened by 1.14 as there are only 5 windows: "
        "Student's t), 640 scored tokens, BOS auto: no BOS, fingerprint `ab12`",
        "Layers were chosen on built-in passages: 24 rows, 6,000 tokens",
        "AutoModelForCausalLM.from_pretrained('short')",
        "2403.17887",
    ):
        assert part in card


def test_a_card_without_errors_or_numbers_says_so() -> None:
    one_window = replace(EVALUATION, score=replace(SCORE, nll_stderr=float("nan"), windows=1), base=None)
    card = model_card(facts(evaluation=one_window))
    assert "| perplexity | 33.1 |" in card
    assert "built-in passages, 1 window (no error from one), 640 scored tokens" in card
    assert "Nothing was measured before the export." in model_card(facts(evaluation=None, text=None))
    assert json.loads(json.dumps(shortviz_json(facts(evaluation=one_window)), allow_nan=False))


def test_a_card_keeps_local_paths_to_itself(tmp_path: Path) -> None:
    for name in ("private/model", "private/model.gguf"):
        card = model_card(facts(base=info(id=str(tmp_path / name))))
        assert "base_model" not in front_matter(card)
        assert str(tmp_path) not in card
        assert f"`{Path(name).name}`, a local model" in card


def test_the_demo_model_is_named_by_its_hub_name_and_licence() -> None:
    matter = front_matter(model_card(facts(base=info(id="demo"))))
    assert (matter["base_model"], matter["license"]) == (DEMO_HUB_ID, "apache-2.0")
