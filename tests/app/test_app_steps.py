"""The models of a ledger on the page: asked questions, brought back after the server ended, the adapter alone."""

import json
from pathlib import Path

import pytest
import torch

from shortviz.heal.adapter import load_adapter
from shortviz.records.plan import Block, PrunePlan, Removal
from shortviz.records.text import TaskSpec, TextSpec
from shortviz.runs.run import load_run
from shortviz.service.measure import APP_WINDOWS
from shortviz.service.requests import HealRequest
from shortviz.service.service import RunStore, Service, run_key
from shortviz.ui.session import state as s
from tests.support.app import ROWS, App
from tests.support.families import tiny_tokens

TRAINING = TextSpec(kind="builtin", value="python-reference", limit=24, max_length=64)
CUT = (2, 3)


@pytest.fixture
def page(loaded: App) -> App:
    """The Heal page with the tiny model in memory, a cut of two layers, and text of several rows."""
    loaded.state[s.TRAINING] = TRAINING
    loaded.state[s.CHOSEN] = Block(start=CUT[0], n=len(CUT))
    return loaded.page("heal")


@pytest.fixture
def questions(tmp_path: Path) -> TaskSpec:
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ROWS))
    return TaskSpec(kind="file", value=str(file), question="goal", choices=("sol1", "sol2"))


def heal(page: App) -> App:
    values = {"steps": 3, "warmup_steps": 0, "batch_size": 1, "length": 32, "eval_every": 1, "rank": 2}
    for name, value in values.items():
        page.at.number_input(key=f"recipe_quick_{name}").set_value(value)
    page.run().click("heal_button")
    job = page.finish("heal")
    assert job.state == "done", job.error
    return page


def ledger_on_disk(tools: Service):  # noqa: ANN201  (a Ledger)
    (folder,) = [p for p in tools.runs.folder.glob("tiny-llama-*") if (p / "run.json").is_file()]
    return load_run(folder).ledgers[-1]


@torch.no_grad()
def logits(handle) -> torch.Tensor:  # noqa: ANN001  (a ModelHandle)
    return handle.model(input_ids=tiny_tokens(20, 2)).logits


def test_every_step_is_asked_the_questions_and_a_healed_model_comes_back_after_a_restart(
    page: App, tools: Service, questions: TaskSpec, tmp_path: Path
) -> None:
    heal(page)
    ledger = ledger_on_disk(tools)
    assert ledger.steps[-1].name == "healed"
    assert all(step.task is None for step in ledger.steps)
    methods = ledger.steps[-1].methods
    ref = s.ref(page.state)
    before = tools.treated.get((ref, CUT, methods))
    assert before is not None

    page.state[s.TASK] = questions
    page.run().click("ask_steps")
    job = page.finish("ask")
    assert (job.state, job.result) == ("done", len(ledger.steps)), job.error
    ledger = ledger_on_disk(tools)
    assert all(step.task is not None and step.task.questions == len(ROWS) for step in ledger.steps)
    assert "Accuracy against uncut, paired, in percentage points: " in page.words
    assert "accuracy" in page.at.dataframe[0].value

    tools.treated.clear()  # what a restart of the server takes: the models, and what was read of the runs
    tools.runs = RunStore(tools.runs.folder)
    page.run()
    brings = [button for button in page.at.button if button.label.startswith("Bring back: ")]
    assert len(brings) == len([step for step in ledger.steps if step.treatments])
    page.click(brings[-1].key)
    job = page.finish("bring")
    assert job.state == "done", job.error
    again = tools.treated.get((ref, CUT, methods))
    assert again is not before
    assert torch.equal(logits(again), logits(before))
    assert again.treatments == ledger.steps[-1].treatments

    page = page.page("export")
    assert page.at.selectbox[0].value == ledger.best.methods
    page.at.selectbox[0].set_value(methods)
    page.run()
    page.at.segmented_control(key=s.PART).set_value("adapter")
    page.run()
    target = tmp_path / "adapter"
    page.at.text_input(key=s.FOLDER).set_value(str(target))
    page.run().click("export_button")
    done = page.finish("export")
    assert (done.state, done.result) == ("done", str(target)), done.error
    from shortviz.model.prune import prune

    base = tools.models.get(ref)
    assert base is not None
    assert methods == ("lora",)
    cut = prune(base, PrunePlan(num_layers=6, removed=CUT))
    assert torch.equal(logits(load_adapter(cut, target)), logits(before))
    assert "without layers 2-3" in (target / "README.md").read_text()


def test_questions_that_are_chosen_before_are_asked_by_the_job_itself(
    page: App, tools: Service, questions: TaskSpec
) -> None:
    page.state[s.TASK] = questions
    page.run().click("repair_button")
    assert page.finish("repair").state == "done"
    steps = ledger_on_disk(tools).steps
    assert all(step.task is not None and len(step.task.right) == len(ROWS) for step in steps)
    (run,) = [tools.runs.get(p.name) for p in tools.runs.folder.glob("tiny-llama-*")]
    assert [task.removed for task in run.tasks] == [(), CUT], "a repaired model's score is not the cut's"


def test_a_training_that_helps_nothing_adds_no_step_and_says_so(page: App, tools: Service) -> None:
    ref = s.ref(page.state)
    assert ref is not None
    few = {"steps": 2, "warmup_steps": 0, "length": 32, "eval_every": 1, "rank": 2, "learning_rate": 1e-12}
    asked = HealRequest(
        model=ref, removal=Removal.of_layers(CUT), text=TRAINING, evaluation=s.evaluation(page.state),
        windows=APP_WINDOWS, changes=tuple(few.items()),
    )  # fmt: skip
    job_id = tools.submit(asked, key=run_key(ref, s.calibration(page.state)))
    while (job := tools.jobs.state(job_id)) is not None and job.live:
        tools.jobs.wait(job_id, 0.2)
    assert job is not None
    assert job.state == "done", job.error
    assert [step.name for step in ledger_on_disk(tools).steps] == ["uncut", "cut"]
    page.run()
    assert any("no step was better on held" in info.value for info in page.at.info)
