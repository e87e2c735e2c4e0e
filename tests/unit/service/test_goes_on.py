"""A measurement begun on the command line is gone on with in the app, and back: the numbers of one that was not cut."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shortviz.measure import distances, loss_map
from shortviz.progress import Progress, Watch
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block
from shortviz.records.run import Run
from shortviz.records.text import TextSpec, WindowSpec
from shortviz.runs.run import load_run
from shortviz.service.execute import execute, new_service
from shortviz.service.place import Place
from shortviz.service.requests import CurveRequest, MapRequest, MeasureRequest, Removal, RepairRequest
from shortviz.service.service import RunStore, Service, run_key
from shortviz.settings import settings

ROWS = TextSpec(kind="builtin", value="python-reference", limit=12, max_length=32)
WINDOWS = WindowSpec(window=24, windows=3)
Asked = MeasureRequest | MapRequest | CurveRequest


def measuring(checkpoint: str, batch_size: int) -> MeasureRequest:
    return MeasureRequest(model=ModelRef(id=checkpoint), text=ROWS, batch_size=batch_size)


def mapping(checkpoint: str) -> MapRequest:
    return MapRequest(model=ModelRef(id=checkpoint), text=ROWS, windows=WINDOWS)


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """The app's; checkpoints are written at every step, and no other test's are there."""
    monkeypatch.setattr(distances, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loss_map, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loss_map, "GROUP_TOKENS", 1)
    monkeypatch.setenv("SHORTVIZ_RUNS_DIR", str(tmp_path / "runs"))
    settings.cache_clear()
    made = new_service(runs=RunStore(tmp_path / "runs"))
    yield made
    made.close()
    monkeypatch.undo()
    settings.cache_clear()


def seen(
    watching: Callable[[Watch], Any], *, after: int = 0, stages: Sequence[str] = ("measure", "first look", "map")
) -> list[Any]:
    """Return what the measurement told of itself each time it had something; it is stopped at number `after`, if any.

    Steps of a map stand with their stage: the first look is counted apart, and comes first, in the alphabet too.
    """
    told: list[Any] = []
    stop = threading.Event()

    def note(step: Progress) -> None:
        if step.stage in stages and step.snapshot is not None:
            told.append((step.stage, step.done) if step.stage in ("first look", "map") else step.done)
            if len(told) == after:
                stop.set()

    watching(Watch(note, stop))
    return told


def on_the_command_line(request: Asked, folder: Path, **named: Any) -> list[Any]:
    return seen(lambda watch: execute(request, watch, place=Place(folder)), **named)


def in_the_app(request: Asked, service: Service, monkeypatch: pytest.MonkeyPatch, **named: Any) -> list[Any]:
    """The job, its watch seen and stopped; what it made is run `tiny`."""

    def watching(watch: Watch) -> None:
        run = service.jobs.submit

        def submit(kind: str, title: str, work: Callable[[Watch], Any], **named: Any) -> str:
            def both(own: Watch) -> Any:
                return work(Watch(lambda step: (own.report(step), watch.report(step))[0], watch.stop))

            return run(kind, title, both, **named)

        with monkeypatch.context() as patch:
            patch.setattr(service.jobs, "submit", submit)
            job = service.submit(request, key="tiny")
        found = service.jobs.wait(job, 120)
        assert found is not None
        assert found.state in ("done", "cancelled"), found.error

    return seen(watching, **named)


def criteria_of(run: Run | None) -> dict[str, np.ndarray]:
    assert run is not None
    assert run.distances is not None
    assert run.distances.samples == run.text.rows
    return {name: grid.mean for name, grid in run.distances.criteria.items()}


def losses_of(run: Run | None) -> dict[str, np.ndarray]:
    assert run is not None
    assert run.losses is not None
    assert run.losses.complete
    return {name: getattr(run.losses, name).mean for name in ("nll", "increase", "kl")}


def assert_same(found: dict[str, np.ndarray], whole: dict[str, np.ndarray], tolerance: float) -> None:
    assert found.keys() == whole.keys()
    for name, values in whole.items():
        np.testing.assert_allclose(found[name], values, rtol=tolerance, atol=tolerance, err_msg=name)


def left_over() -> list[str]:
    return [file.name for file in (settings().runs_dir / "unfinished").iterdir()]


def test_distances_begun_on_the_command_line_are_gone_on_with_in_the_app_in_smaller_batches(
    checkpoint: str, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert on_the_command_line(measuring(checkpoint, 4), tmp_path / "cut", after=1) == [4]
    assert in_the_app(measuring(checkpoint, 2), service, monkeypatch) == [6, 8, 10, 12], "the first four rows are kept"
    assert left_over() == []
    on_the_command_line(measuring(checkpoint, 2), tmp_path / "whole")
    # Rows of other batches are padded to other lengths: the sums differ in their last digits.
    assert_same(criteria_of(service.runs.get("tiny")), criteria_of(load_run(tmp_path / "whole")), 1e-5)


def test_distances_begun_in_the_app_are_gone_on_with_on_the_command_line(
    checkpoint: str, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert in_the_app(measuring(checkpoint, 2), service, monkeypatch, after=3) == [2, 4, 6]
    assert on_the_command_line(measuring(checkpoint, 4), tmp_path / "rest") == [10, 12]
    on_the_command_line(measuring(checkpoint, 4), tmp_path / "whole")
    assert_same(criteria_of(load_run(tmp_path / "rest")), criteria_of(load_run(tmp_path / "whole")), 1e-5)


def test_distances_gone_on_with_in_batches_of_the_same_size_are_bit_equal(
    checkpoint: str, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_the_command_line(measuring(checkpoint, 2), tmp_path / "cut", after=2)
    in_the_app(measuring(checkpoint, 2), service, monkeypatch)
    on_the_command_line(measuring(checkpoint, 2), tmp_path / "whole")
    found, whole = service.runs.get("tiny"), load_run(tmp_path / "whole")
    assert_same(criteria_of(found), criteria_of(whole), 0.0)
    assert found is not None
    assert found.distances is not None
    assert whole.distances is not None
    assert found.distances.settling["angular_last"].needed == whole.distances.settling["angular_last"].needed


@pytest.mark.parametrize("begins", ["command line", "app"])
def test_a_map_begun_on_one_side_is_gone_on_with_on_the_other(
    checkpoint: str, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: str
) -> None:
    request = mapping(checkpoint)
    if begins == "app":
        begun = in_the_app(request, service, monkeypatch, after=4)
        rest = on_the_command_line(request, tmp_path / "rest")
        found: Run | None = load_run(tmp_path / "rest")
    else:
        begun = on_the_command_line(request, tmp_path / "cut", after=4)
        rest = in_the_app(request, service, monkeypatch)
        found = service.runs.get("tiny")
    assert len(begun) == 4
    assert rest[0] > begun[-1], "nothing is done again"
    assert left_over() == []
    whole = on_the_command_line(request, tmp_path / "whole")
    assert whole == begun + rest
    assert_same(losses_of(found), losses_of(load_run(tmp_path / "whole")), 0.0)


def test_the_map_of_a_curve_goes_on_from_that_of_the_app(
    checkpoint: str, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = in_the_app(mapping(checkpoint), service, monkeypatch, after=4)
    curve = CurveRequest(model=ModelRef(id=checkpoint), text=ROWS, windows=WINDOWS)
    rest = on_the_command_line(curve, tmp_path / "curve")
    assert rest[0] > begun[-1]
    on_the_command_line(mapping(checkpoint), tmp_path / "whole")
    assert_same(losses_of(load_run(tmp_path / "curve")), losses_of(load_run(tmp_path / "whole")), 0.0)


@pytest.mark.parametrize("begins", ["app", "command line"])
def test_greedy_removal_begun_on_one_side_is_gone_on_with_on_the_other(
    checkpoint: str, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: str
) -> None:
    request = CurveRequest(model=ModelRef(id=checkpoint), text=ROWS, windows=WINDOWS, greedy=4)
    greedy: dict[str, Any] = {"stages": ("greedy",)}
    if begins == "app":
        begun = in_the_app(request, service, monkeypatch, after=2, **greedy)
        rest = on_the_command_line(request, tmp_path / "rest", **greedy)
        found: Run | None = load_run(tmp_path / "rest")
    else:
        begun = on_the_command_line(request, tmp_path / "cut", after=2, **greedy)
        rest = in_the_app(request, service, monkeypatch, **greedy)
        found = service.runs.get("tiny")
    assert (begun, rest) == ([1, 2], [3, 4]), "nothing is done again"
    assert left_over() == []
    on_the_command_line(request, tmp_path / "whole", **greedy)
    whole = load_run(tmp_path / "whole").greedy
    assert found is not None
    assert found.greedy is not None
    assert whole is not None
    assert found.greedy == whole


def test_work_that_another_process_is_at_is_not_kept_twice(checkpoint: str, service: Service, tmp_path: Path) -> None:
    from tests.support.records import fixture_run

    info = fixture_run(6).model
    with (
        Place(tmp_path / "one").checkpoint("measure", info, "text") as first,
        Place(tmp_path / "other").checkpoint("measure", info, "text") as second,
    ):
        assert first is not None
        assert second is None
    with Place(tmp_path / "other").checkpoint("measure", info, "text") as later:
        assert later == first


def test_a_run_that_was_kept_before_texts_had_these_fields_keeps_its_name() -> None:
    text = TextSpec(kind="builtin", value="passages", limit=8)
    assert run_key(ModelRef(id="demo"), text) == "demo-196e754381"  # of version 2.0, written down
    others = [replace(text, special_tokens="parsed"), replace(text, bos="never"), replace(text, limit=9)]
    assert len({run_key(ModelRef(id="demo"), one) for one in (text, *others)}) == 4


def test_another_chat_template_under_the_same_name_is_another_run(tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages }}")
    text = TextSpec(kind="dataset", value="org/chats", chat_template=str(template))
    before = run_key(ModelRef(id="demo"), text)
    template.write_text("{{ messages[0].content }}")
    assert run_key(ModelRef(id="demo"), text) != before


@pytest.mark.parametrize("method", ["seam_refit", "seam_trained"])
def test_what_was_repaired_on_the_same_rows_is_not_repaired_again(
    service: Service, checkpoint: str, method: str
) -> None:
    asked = RepairRequest(
        model=ModelRef(id=checkpoint), removal=Removal(block=Block(start=2, n=2)), text=replace(ROWS, limit=40),
        evaluation=ROWS, windows=WINDOWS, method=method, fit_tokens=1024,
    )  # fmt: skip
    stages: list[list[str]] = []
    for _ in range(2):
        told: list[str] = []
        found = execute(asked, Watch(lambda progress, told=told: told.append(progress.stage)), service=service)
        assert found.applied, found.note
        stages.append(told)

    assert "repair" in stages[0]
    assert "repair" not in stages[1]
