"""What the command line began the app goes on with, and back: to the same result, in fewer steps than the whole."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shortviz.errors import FieldError
from shortviz.heal import own_text
from shortviz.heal.training import Training
from shortviz.progress import Watch
from shortviz.records.heal import OwnText
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block, Removal
from shortviz.records.text import TextSpec, WindowSpec
from shortviz.repair import shrink
from shortviz.runs.run import load_run
from shortviz.service.execute import execute, new_service
from shortviz.service.ledger import Treating
from shortviz.service.place import Place
from shortviz.service.requests import TRAINING_TEXT, HealRequest, ShrinkRequest
from shortviz.service.service import RunStore, Service

MATHS = TextSpec(kind="builtin", value="passages/maths")
SMALL: dict[str, Any] = {"evaluation": MATHS, "windows": WindowSpec(window=32, windows=3)}
CHANGES = (("steps", 6), ("warmup_steps", 1), ("length", 32), ("eval_every", 2), ("rank", 4), ("learning_rate", 0.01))


def heal(checkpoint: str) -> HealRequest:
    text = TextSpec(kind="builtin", value="passages/prose", max_length=TRAINING_TEXT.max_length)
    cut = Removal(block=Block(start=2, n=2))
    return HealRequest(
        model=ModelRef(id=checkpoint), removal=cut, text=text, preset="quick", changes=CHANGES, repair="scale", **SMALL
    )


def shrinking(checkpoint: str) -> ShrinkRequest:
    text = TextSpec(kind="builtin", value="passages/prose", max_length=64)
    return ShrinkRequest(model=ModelRef(id=checkpoint), to_layers=3, text=text, fit_tokens=1024, **SMALL)


WORK = {"heal": (heal, Training, "_advance", 3, 6), "shrink": (shrinking, shrink._Shrinking, "_step", 1, 3)}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = new_service(runs=RunStore(tmp_path / "runs"))
    yield made
    made.close()


class Counter:
    """Counts the steps of a work, and asks for a stop after some of them."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.done, self.most, self.stop = 0, 0, threading.Event().set
        own: Callable[..., Any] = getattr(owner, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            found = own(*arguments, **named)
            self.done += 1
            if self.done == self.most:
                self.stop()
            return found

        patch.setattr(owner, name, counted)

    def until(self, most: int, stop: Callable[[], None]) -> None:
        """Count from 0, and stop after `most`; 0 is never."""
        self.done, self.most, self.stop = 0, most, stop


def on_the_command_line(request: Any, counter: Counter, most: int, folder: Path) -> Treating:
    stop = threading.Event()
    counter.until(most, stop.set)
    found = execute(request, Watch(stop=stop), place=Place(folder))
    assert load_run(folder).ledgers, "the run has what was done"
    return found


def in_the_app(request: Any, counter: Counter, most: int, service: Service) -> Treating:
    jobs: list[str] = []
    ready = threading.Event()

    def cancel() -> None:
        assert ready.wait(60)
        service.jobs.cancel(jobs[0])

    counter.until(most, cancel)
    jobs.append(service.submit(request, key="tiny"))
    ready.set()
    job = service.jobs.wait(jobs[0], 300)
    assert job is not None
    assert not job.error
    assert isinstance(job.result, Treating)
    return job.result


def result_of(found: Treating) -> list[float | None]:
    assert found.ledger is not None
    last = found.ledger.steps[-1].evaluation.score.nll
    history = [point.loss for point in found.history.points[1:]] if found.history is not None else []
    return [
        *history,
        *(step.nll for step in found.steps),
        *(layer for step in found.steps for layer in step.removed),
        last,
    ]


def test_a_training_that_goes_on_has_the_text_that_the_model_wrote_at_first(
    checkpoint: str, tmp_path: Path, unfinished: Callable[[], list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = OwnText(self_share=0.5, self_tokens=1500, self_length=24)
    asked = replace(heal(checkpoint), own=own)
    counter = Counter(monkeypatch, Training, "_advance")
    whole = on_the_command_line(asked, counter, 0, tmp_path / "whole")
    assert not unfinished()
    part = on_the_command_line(asked, counter, 3, tmp_path / "part")
    assert not part.complete
    assert sorted(path.name.rsplit("-", 1)[0] for path in unfinished()) == ["heal", "own-text", "repair"]
    with monkeypatch.context() as patch:
        patch.delattr(own_text, "sample")  # the model writes nothing any more
        rest = on_the_command_line(asked, counter, 0, tmp_path / "part")
    assert result_of(rest) == result_of(whole)
    assert not unfinished()
    assert rest.treatment is not None
    info = rest.treatment.text
    assert info == whole.treatment.text
    assert info.source.endswith("windows) and built-in passages/prose")
    assert info.options == ""
    assert "--self-share 0.5 --self-tokens 1500 --self-length 24" in rest.ledger.steps[-1].command
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(FieldError, match="self_share needs one process, for each of 2 would write"):
            execute(asked)


@pytest.mark.parametrize("first", ["command line", "app"])
@pytest.mark.parametrize("kind", list(WORK))
def test_what_one_began_the_other_goes_on_with(
    kind: str,
    first: str,
    checkpoint: str,
    service: Service,
    tmp_path: Path,
    unfinished: Callable[[], list[Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make, owner, name, some, every = WORK[kind]
    request, counter, run = make(checkpoint), Counter(monkeypatch, owner, name), tmp_path / "run"
    whole = on_the_command_line(request, counter, 0, tmp_path / "whole")
    assert (counter.done, whole.complete, unfinished()) == (every, True, [])

    if first == "command line":
        begun = on_the_command_line(request, counter, some, run)
    else:
        begun = in_the_app(request, counter, some, service)
    assert (counter.done, begun.complete) == (some, False)
    assert begun.work is not None
    assert begun.work.is_file()

    if first == "command line":
        ended = in_the_app(request, counter, 0, service)
    else:
        ended = on_the_command_line(request, counter, 0, run)
    assert (counter.done, ended.complete) == (every - some, True)
    assert result_of(ended) == pytest.approx(result_of(whole), abs=1e-6)
    assert unfinished() == []
