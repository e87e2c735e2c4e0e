"""The session's state: each setter clears what depends on it, and nothing else."""

import pytest

from shortviz.records.model import ModelRef
from shortviz.records.plan import Block
from shortviz.records.text import TextSpec
from shortviz.ui.session import state as s
from shortviz.ui.session import state as visit
from shortviz.ui.session.shown import first_block
from tests.support.records import fixture_distances, fixture_model

FULL = {
    s.REF: ModelRef(id="old"),
    s.RUN: "old-run",
    s.CALIBRATION: TextSpec(kind="paste", value="old"),
    s.EVALUATION: TextSpec(kind="paste", value="old too"),
    s.TRAINING: TextSpec(kind="paste", value="old three"),
    s.CHOSEN: Block(start=3, n=2),
    s.CUT: (1, 5),
    s.WANTED: "numbers",
    s.LINKED_BLOCK: {"start": "9", "n": "9"},
    s.PROMPT: "old prompt",
    s.CRITERION: "angular_mean",
}
SETTERS = {
    "set_model": (lambda state: s.set_model(state, ModelRef(id="new")), {s.REF: ModelRef(id="new")}),
    "set_calibration": (
        lambda state: s.set_calibration(state, TextSpec(kind="paste", value="new")),
        {s.CALIBRATION: TextSpec(kind="paste", value="new")},
    ),
    "set_evaluation": (
        lambda state: s.set_evaluation(state, TextSpec(kind="paste", value="new")),
        {s.EVALUATION: TextSpec(kind="paste", value="new")},
    ),
    "set_training": (
        lambda state: s.set_training(state, TextSpec(kind="paste", value="new")),
        {s.TRAINING: TextSpec(kind="paste", value="new")},
    ),
    "set_cut": (lambda state: s.set_cut(state, (0, 2)), {s.CUT: (0, 2)}),
    "set_block": (
        lambda state: s.set_block(state, Block(start=7, n=4)),
        {s.CHOSEN: Block(start=7, n=4), s.INPUTS: 1},
    ),
    "open_run": (
        lambda state: s.open_run(state, "new-run", TextSpec(kind="paste", value="its own")),
        {s.RUN: "new-run", s.CALIBRATION: TextSpec(kind="paste", value="its own"), s.TEXT_INPUTS: 1},
    ),
    "leave_run": (s.leave_run, {}),
}


def test_every_setter_of_the_table_is_tested() -> None:
    assert set(SETTERS) == set(s.CLEARS)


@pytest.mark.parametrize("name", sorted(SETTERS))
def test_a_setter_clears_what_its_row_of_the_table_says_and_nothing_else(name: str) -> None:
    state = dict(FULL)
    setter, sets = SETTERS[name]
    setter(state)
    kept = {key: value for key, value in FULL.items() if key not in s.CLEARS[name]}
    assert state == kept | sets


def test_foreign_values_in_the_session_read_as_nothing() -> None:
    state = {
        s.REF: "demo",
        s.RUN: 3,
        s.CHOSEN: (3, 2),
        s.INPUTS: "x",
        s.WANTED: True,
        s.CALIBRATION: "x",
        s.TRAINING: 1,
    }
    assert s.training(state) == s.DEFAULT_TRAINING
    assert s.ref(state) is None
    assert s.run_key(state) is None
    assert s.block(state) is None
    assert s.wanted(state) == ""
    assert s.calibration(state).value == "python-reference"


def test_the_cut_is_the_chosen_block_until_another_one_is_looked_at() -> None:
    state: dict = {}
    assert s.cut(state) == ()
    s.set_block(state, Block(start=3, n=2))
    s.take_cut(state, (1, 5))
    assert s.cut(state) == (1, 5)
    assert s.block(state) == Block(start=3, n=2)
    s.take_cut(state, (7, 8))
    assert (s.cut(state), s.block(state)) == ((7, 8), Block(start=7, n=2))
    s.set_cut(state, (0, 2))
    state |= {s.input_key(state, "start"): 3, s.input_key(state, "n"): 1}
    s.type_block(state)
    assert s.cut(state) == (3,), "typing a block returns to it"
    assert s.cut({s.CUT: ("a",)}) == ()


def test_the_newest_job_is_the_one_started_last() -> None:
    state: dict = {}
    s.set_job(state, "load", "a")
    s.set_job(state, "measure", "b")
    s.set_job(state, "load", "c")
    assert s.newest_job(state, ("load", "measure")) == "c"
    assert s.newest_job(state, ("export",)) is None


def test_a_suggested_folder_never_replaces_a_typed_one() -> None:
    state: dict = {}
    visit.suggest_folder(state, "/a/demo-without-3")
    visit.suggest_folder(state, "/a/demo-without-4")
    assert state[s.FOLDER] == "/a/demo-without-4"
    state[s.FOLDER] = "/mine"
    visit.suggest_folder(state, "/a/demo-without-5")
    assert state[s.FOLDER] == "/mine"


def test_a_click_gives_the_number_inputs_new_keys_so_that_a_late_tick_cannot_undo_it() -> None:
    state: dict = {}
    before = s.input_key(state, "start")
    s.set_block(state, Block(start=7, n=4))
    state[before] = 2
    s.type_block(state)
    assert s.block(state) == Block(start=7, n=4)
    state |= {s.input_key(state, "start"): 3, s.input_key(state, "n"): 1}
    s.type_block(state)
    assert s.block(state) == Block(start=3, n=1)


def test_the_first_chosen_block_is_one_that_can_be_exported():
    distances = fixture_distances(16)
    free = first_block(distances, fixture_model(16))
    assert free.n == 2
    allowed = first_block(distances, fixture_model(16, illegal=((free.start, 2, "the config needs it"),)))
    assert (allowed.n, allowed.start) != (2, free.start)
    assert allowed.n == 2
    none_of_two = tuple((start, 2, "the config needs it") for start in range(15))
    assert first_block(distances, fixture_model(16, illegal=none_of_two)).n != 2
