"""Watch: tells whoever waits, hears the stop, and speaks of a part of the work as of the whole."""

import threading
from dataclasses import replace

import pytest

from shortviz.errors import Stopped
from shortviz.progress import NO_WATCH, NOTE, Progress, Watch

HALF = Progress(stage="measure", done=1, total=2, unit="rows")


def test_what_is_told_arrives_as_a_progress() -> None:
    seen: list[Progress] = []
    watch = Watch(seen.append)
    watch.tell("measure", done=1, total=2, unit="rows")
    watch.tell("write", done=3, total=4, unit="bytes", detail="a file", snapshot=lambda: "so far")
    watch.report(HALF)
    assert seen[0] == seen[2] == HALF
    assert seen[1].snapshot is not None
    assert (seen[1].stage, seen[1].detail, seen[1].snapshot()) == ("write", "a file", "so far")


def test_a_stop_is_heard_only_once_it_was_asked_for() -> None:
    stop = threading.Event()
    watch = Watch(stop=stop)
    watch.check("The export was stopped.")
    assert not watch.stopped
    stop.set()
    assert watch.stopped
    with pytest.raises(Stopped, match=r"^The export was stopped\.$"):
        watch.check("The export was stopped.")


def test_without_anybody_who_waits_nothing_happens() -> None:
    for watch in (NO_WATCH, NO_WATCH.mapped(lambda progress: progress), NO_WATCH.labelled(detail="x")):
        watch.tell("measure", done=0, total=0, unit="rows")
        watch.check("never said")
        assert not watch.stopped


def test_a_part_of_the_work_tells_as_the_whole_and_hears_the_same_stop() -> None:
    seen: list[Progress] = []
    stop = threading.Event()
    watch = Watch(seen.append, stop)
    second = watch.mapped(lambda progress: replace(progress, done=2 + progress.done, total=4))
    second.labelled(detail="text 2 of 2", snapshot=None).report(replace(HALF, snapshot=lambda: "a part's"))
    assert seen == [replace(HALF, done=3, total=4, detail="text 2 of 2")]
    stop.set()
    assert second.stopped


def test_what_is_said_on_the_way_is_passed_on_as_it_is() -> None:
    seen: list[Progress] = []
    watch = Watch(seen.append).mapped(lambda progress: replace(progress, done=9, total=9))
    watch.labelled(stage="measure text 1", detail="text 1 of 2").say("One window gives no error bars.")
    assert [(step.stage, step.detail, step.total) for step in seen] == [(NOTE, "One window gives no error bars.", 0)]
