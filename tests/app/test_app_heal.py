"""The Heal page on a tiny model: repair and heal through real jobs, the ledger kept, the treated model exported."""

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shortviz.cli.main import parse
from shortviz.records.heal import OwnText
from shortviz.records.ledger import Probe, ProbeItem, ProbeScore, StepEvidence, not_better, with_evidence
from shortviz.records.plan import Block
from shortviz.records.text import TextSpec
from shortviz.runs.run import load_run, with_ledger
from shortviz.service.ledger import METHODS
from shortviz.service.service import EXAMPLE, Service
from shortviz.service.spelling import to_python
from shortviz.ui.parts.ledger import won_back
from shortviz.ui.parts.notes import plain
from shortviz.ui.session import state as s
from tests.support.app import App
from tests.support.ledgers import fixture_ledger

Start = Callable[..., App]
TRAINING = TextSpec(kind="builtin", value="python-reference", limit=24, max_length=64)


@pytest.fixture
def healing(loaded: App) -> App:
    """The Heal page with the tiny model in memory, a cut of two layers, and text of several rows."""
    loaded.state[s.TRAINING] = TRAINING
    loaded.state[s.CHOSEN] = Block(start=2, n=2)
    return loaded.page("heal")


def small(page: App, **values: float) -> App:
    """Set fields of the recipe, which are widgets of the preset."""
    for name, value in values.items():
        page.at.number_input(key=f"recipe_quick_{name}").set_value(value)
    return page.run()


def run_on_disk(tools: Service):  # noqa: ANN201  (a Run)
    (folder,) = [p for p in tools.runs.folder.glob("tiny-llama-*") if (p / "run.json").is_file()]
    return load_run(folder)


def test_before_a_model_is_loaded_the_page_shows_the_run_and_says_what_to_do(app: Start, tools: Service) -> None:
    page = app(start="12", n="4").page("heal")
    assert page.at.button(key="repair_button").disabled
    assert page.at.button(key="heal_button").disabled
    windows = tools.runs.get(EXAMPLE).ledgers[0].text.windows_words
    assert f"{windows}, the same for every step" in page.words, "the bundled run has this cut's ledger"
    page = app(start="0", n="3").page("heal")
    assert "Load the model first" in page.words


def test_the_map_says_how_repair_and_heal_differ(app: Start) -> None:
    page = app()
    repair, heal = (page.at.button(key=key).help for key in ("repair_cell", "to_heal"))
    assert repair.startswith("Load the model first")
    assert "new weights beside the cut, without training: seconds to a minute" in repair
    assert "trains a small adapter" in heal
    assert "minutes" in heal


def test_beside_a_cut_every_number_has_its_error_and_the_text_behind_it(app: Start, tools: Service) -> None:
    page = app(start="12", n="4")
    (kl,) = [m.value for m in page.at.metric if m.label == "KL, nats"]
    assert "±" in kl
    (line,) = [each for each in page.at.markdown if "material/build" in each.value]
    for step in tools.runs.get(EXAMPLE).ledgers[0].steps[2:]:
        assert f"{step.name} **" in line.value.lower()
        assert f"won back **{won_back(step)}**" in line.value
        assert f"won back **{won_back(step)}** · {step.evaluation.score.tokens:,} tokens" in line.help
    assert line.value.endswith(f"· {step.evaluation.score.tokens:,} tokens]")


def test_a_kept_ledger_is_shown_without_a_model_in_numbers_and_in_words(app: Start, tools: Service) -> None:
    run = tools.runs.get(EXAMPLE)
    assert run is not None
    tools.runs.put(EXAMPLE, with_ledger(run, fixture_ledger()))
    page = app(start="12", n="4").page("heal")
    (chart,) = page.at.get("plotly_chart")
    assert "repaired (seam refit) wins back 39.3 ± 1.2 %" in chart.proto.alt
    table = page.at.dataframe[0].value
    assert list(table["step"]) == ["uncut", "cut", "repaired (seam refit)", "healed (seam refit, then lora)"]
    assert table["won back"][2] == "39.3 ± 1.2 %"
    assert "a city" in page.words, "the continuation that was kept with the ledger"
    assert "Not in memory any more: heal again." in page.words


def test_the_evidence_of_a_ledger_is_shown_with_items_answers_and_marks(app: Start, tools: Service) -> None:
    run = tools.runs.get(EXAMPLE)
    items = (ProbeItem(question="1 + 1 =", answer="2"), ProbeItem(question="2 + 2 =", answer="4"))
    ledger = replace(run.ledgers[0], probes=(Probe(name="addition", seed=0, examples="", items=items),))
    for step, right in zip(ledger.steps[:2], ("11", "10"), strict=True):
        score = ProbeScore(probe="addition", seed=0, right=right, written=("2", "4" if right == "11" else "7"))
        ledger = with_evidence(ledger, step, StepEvidence(probes=(score,)))
    tools.runs.put(EXAMPLE, with_ledger(run, ledger))

    page = app(start="12", n="4").page("heal")

    _, table, written = (each.value for each in page.at.dataframe)
    (row,) = [list(row) for row in table.itertuples(index=False) if row[0] == "probe addition"]
    assert row[1:3] == ["2 of 2", "1 of 2 (50 ± 92 %)"]
    assert list(written["cut"]) == ["✓ 2", "✗ 7"]
    assert "seed 0; greedy" in page.words


def test_evidence_is_asked_for_of_the_cut_that_is_shown(healing: App, tools: Service) -> None:
    page = healing.click("evidence_button")

    (job,) = [each for each in tools.jobs.jobs() if each.kind == "evidence"]
    assert job.title.startswith("Evidence without layers 2-3 of ")
    assert page.at.button(key="evidence_button").disabled
    tools.jobs.cancel(job.id)


def test_repair_and_heal_add_to_one_ledger_that_is_kept_and_exported(
    healing: App, tools: Service, tmp_path: Path
) -> None:
    healing.at.number_input(key=s.FIT_TOKENS).set_value(512)
    page = healing.run().click("repair_button")
    job = page.finish("repair")
    assert job.state == "done", job.error
    settings = job.result.treatment.settings
    assert settings["fit_tokens"] + settings["held_out_tokens"] + 1 == 512, "one row of 64 is held out"
    small(page, steps=3, warmup_steps=0, batch_size=1, length=32, eval_every=1, rank=2)
    page.click("heal_button")
    job = page.finish("heal")
    assert job.state == "done", job.error
    assert [p.step for p in job.result.history.points] == [0, 1, 2, 3]
    (ledger,) = run_on_disk(tools).ledgers
    assert ledger.removed == (2, 3)
    assert ledger.steps[-1].name == "healed"
    healed = ledger.steps[-1]
    assert healed.evaluation.base == ledger.steps[0].evaluation.score
    assert healed.treatments[-1].settings["steps"] == 3
    assert [treatment.text.tokens for treatment in healed.treatments][0] == 512
    assert healed.continuation
    charts = page.at.get("plotly_chart")
    assert any("After 3 of 3 steps the held-out NLL" in chart.proto.alt for chart in charts)
    assert "tokens/s" in page.words
    assert len(page.at.dataframe[0].value) == len(ledger.steps)

    page = page.page("export")
    assert page.at.selectbox[0].label == "Which model"
    assert page.at.selectbox[0].value == ledger.best.methods
    target = tmp_path / "healed"
    page.at.text_input(key=s.FOLDER).set_value(str(target))
    page.run()
    page.click("export_button")
    done = page.finish("export")
    assert done.state == "done", done.error
    card = (target / "README.md").read_text()
    record = json.loads((target / "shortviz.json").read_text())
    kinds = [treatment["kind"] for treatment in record["treatments"]]
    assert kinds == [treatment.kind for treatment in ledger.best.treatments]
    assert "## After the cut" in card
    assert "Nothing was trained" not in card
    assert "After " in page.words


def test_a_repair_that_is_not_told_from_the_cut_says_so_first_and_is_written_only_when_that_is_ticked(
    healing: App, tools: Service, tmp_path: Path
) -> None:
    one_window = "A text of which only one window can be made says nothing of how sure its one number is. " * 5
    healing.state[s.EVALUATION] = TextSpec(kind="paste", value=one_window)
    page = healing.run().click("repair_button")
    job = page.finish("repair")
    assert job.state == "done", job.error
    (ledger,) = run_on_disk(tools).ledgers
    words = not_better(ledger, ledger.steps[-1])
    assert "1 window without a paired error" in words
    assert plain(words) in [found.value for found in page.run().at.warning]

    page = page.page("export")
    assert plain(words) in [found.value for found in page.at.warning]
    page.at.text_input(key=s.FOLDER).set_value(str(tmp_path / "repaired"))
    page.run().click("export_button")
    refused = page.finish("export")
    assert refused.state == "failed"
    assert words[:-1] in refused.error
    assert not (tmp_path / "repaired").exists()
    page.at.checkbox(key=s.ANYWAY).check()
    page.run().click("export_button")
    done = page.finish("export")
    assert done.state == "done", done.error
    assert words in (tmp_path / "repaired" / "README.md").read_text()


def test_a_healing_that_is_stopped_keeps_the_best_and_goes_on_when_asked_again(healing: App, tools: Service) -> None:
    page = small(healing, steps=2000, warmup_steps=0, batch_size=1, length=32, eval_every=1, rank=2)
    page.at.checkbox(key=s.REPAIR_FIRST).set_value(False)
    page.run()
    page.click("heal_button")
    job_id = page.state["jobs"]["heal"]
    while (found := tools.state(job_id)) is not None and found.live and found.stage != "heal":
        tools.jobs.wait(job_id, 0.2)
    page.run().click("stop_treating")
    job = page.finish("heal")
    assert job.state == "cancelled"
    steps = job.result.history.points[-1].step
    assert any("Stopped after" in info.value for info in page.at.info)
    (ledger,) = run_on_disk(tools).ledgers
    assert [step.name for step in ledger.steps] == ["uncut", "cut", "healed"]
    page.click("heal_button")
    again = tools.state(page.state["jobs"]["heal"])
    tools.jobs.cancel(page.state["jobs"]["heal"])
    assert again is not None
    job = page.finish("heal")
    assert job.result.history.points[-1].step >= steps, "from the checkpoint"


@pytest.mark.parametrize(("choice", "share"), [("What the uncut model writes", 1.0), ("Half and half", 0.5)])
def test_what_the_uncut_model_writes_is_trained_on_where_that_is_chosen_and_the_ledger_says_so(
    healing: App, tools: Service, choice: str, share: float
) -> None:
    page = small(healing, steps=2, warmup_steps=0, batch_size=1, length=32, eval_every=1, rank=2)
    assert "recipe_self_tokens" not in [w.key for w in page.at.number_input], "nothing is written unasked"
    page.at.selectbox(key=s.TRAIN_ON).select(choice)
    page.run().at.number_input(key="recipe_self_tokens").set_value(1500)
    page.at.checkbox(key=s.REPAIR_FIRST).set_value(False)
    page.run().click("heal_button")
    job = page.finish("heal")
    assert job.state == "done", job.error

    (ledger,) = run_on_disk(tools).ledgers
    healed = ledger.steps[-1]
    source = healed.treatments[-1].text.source
    assert source.startswith("text that tiny-llama wrote itself")
    assert ("and built-in python-reference" in source) == (share == 0.5)
    assert f"{healed.label} was trained on {source}" in page.words
    assert f"--self-share {share} --self-tokens 1500" in healed.command
    request = parse(shlex.split(healed.command)[1:])
    assert request.own == OwnText(self_share=share, self_tokens=1500)
    assert f"OwnText(self_share={share}, self_tokens=1500)" in to_python(request)


def test_another_session_sees_the_job_and_a_reload_keeps_the_result(
    healing: App, app: Start, tools: Service, tiny_folder: Path
) -> None:
    healing.click("repair_button")
    healing.finish("repair")
    other = app(model=str(tiny_folder), start="2", n="2")
    other.state[s.CALIBRATION] = healing.state[s.CALIBRATION]
    other.state[s.EVALUATION] = healing.state[s.EVALUATION]
    other.page("heal")
    assert len(other.at.dataframe[0].value) == len(healing.at.dataframe[0].value) >= 2


def test_the_inspector_repairs_the_cell_it_shows_on_the_same_windows(healing: App, tools: Service) -> None:
    page = healing.page("map")
    page.click("repair_cell")
    job = page.finish("repair")
    assert job.state == "done", job.error
    repaired = job.result.ledger.step("repaired")
    assert repaired is not None, job.result.note
    (fitted,) = [treatment.text for treatment in repaired.treatments]
    words = f"{repaired.label} was fitted to built-in python-reference ({fitted.tokens:,} tokens)"
    assert words in page.page("heal").words
    page = healing.page("map")
    assert repaired.evaluation.score.windows == job.result.ledger.step("cut").evaluation.score.windows
    assert "Repaired **" in page.words


def test_a_text_too_short_to_be_fitted_to_is_told_with_the_number_needed(loaded: App) -> None:
    loaded.state[s.CHOSEN] = Block(start=2, n=2)
    loaded.state[s.TRAINING] = TextSpec(kind="paste", value="Some words, and not many.")
    page = loaded.page("heal").click("repair_button")
    assert page.finish("repair").state == "failed"
    assert any("fewer than one window of 256 needs" in error for error in page.errors)


def test_settings_that_contradict_each_other_are_told_and_cannot_be_started(healing: App) -> None:
    page = small(healing, warmup_steps=60)
    assert any("The warm-up takes 60 steps of 50" in error for error in page.errors)
    assert page.at.button(key="heal_button").disabled


def test_a_repair_takes_two_rows_at_least_however_long_those_are(healing: App) -> None:
    healing.at.number_input(key=s.FIT_TOKENS).set_value(100)
    page = healing.run().click("repair_button")
    job = page.finish("repair")
    assert job.state == "done", job.error
    assert job.result.treatment.text.tokens == 2 * TRAINING.max_length


def test_a_training_without_a_repair_leaves_the_tokens_of_a_repair_alone_and_says_what_it_reads_again(
    healing: App, tools: Service
) -> None:
    healing.state[s.TRAINING] = replace(TRAINING, limit=4)
    healing.at.number_input(key=s.FIT_TOKENS).set_value(512)
    healing.at.checkbox(key=s.REPAIR_FIRST).set_value(False)
    page = small(healing, steps=24, warmup_steps=0, batch_size=4, length=32, eval_every=12, rank=2, learning_rate=0.01)
    page.click("heal_button")
    job = page.finish("heal")
    assert job.state == "done", job.error
    assert job.result.applied
    assert job.result.note.endswith("times in 24 steps.")
    assert [each.value for each in page.at.info] == [plain(job.result.note)]


def test_a_cut_that_begins_at_layer_0_is_refused_by_the_repair_in_a_sentence(healing: App) -> None:
    next(w for w in healing.at.number_input if w.label == "start").set_value(0)
    healing.run().click("repair_button")
    assert healing.finish("repair").state == "failed"
    assert any("The cut begins at layer 0" in error for error in healing.errors)


def test_the_repairs_that_the_page_offers_are_those_that_there_are() -> None:
    from shortviz.repair.repair import METHODS as KNOWN

    assert set(METHODS) == set(KNOWN)


def test_cutting_more_ends_with_a_cut_of_its_own_that_the_page_offers(healing: App, tools: Service) -> None:
    page = healing
    layers = next(w for w in page.at.number_input if w.label == "Layers that are left, of 6")
    assert layers.value == 3, "one fewer than the chosen cut leaves"
    layers.set_value(4)
    page.run().click("shrink_button")
    job = page.finish("shrink")
    assert job.state == "done", job.error
    removed = job.result.removed
    assert len(removed) == 2
    ledger = next(each for each in run_on_disk(tools).ledgers if each.removed == removed)
    assert [step.name for step in ledger.steps][:2] == ["uncut", "cut"]
    assert ledger.text.source == "pasted text"
    if removed != (2, 3):
        page.click("take_shrunk")
    assert s.cut(page.state) == removed
    assert len(page.at.dataframe[0].value) == len(ledger.steps)
