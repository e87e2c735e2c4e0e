"""The Runs page: open, rename, compare, delete and undo, import and export."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from shortviz.records.formatting import layers_text
from shortviz.runs.run import save_run
from shortviz.runs.zip import pack_run, unpack_run
from shortviz.service.service import Service
from shortviz.settings import settings
from shortviz.ui.session import state as s
from tests.support.app import App, outlined
from tests.support.records import fixture_run

Start = Callable[..., App]


@pytest.fixture
def runs(tools: Service, app: Start) -> App:
    """The page with two saved runs of twelve layers and one of six."""
    for key, layers, seed in (("first", 12, "a"), ("second", 12, "b"), ("small", 6, "c")):
        run = fixture_run(layers)
        text = replace(run.text, fingerprint=seed * 64, source=f"file {key}.txt")
        save_run(replace(run, name=f"Run {key}", text=text), tools.runs.folder / key)
    return app(first_page="runs")


def pick(page: App, *keys: str) -> App:
    page.at.multiselect(key=s.PICKED).set_value(list(keys))
    return page.run()


def listed(page: App) -> list[str]:
    return list(page.at.dataframe[0].value["name"])


def test_all_runs_are_listed_and_the_bundled_ones_come_last(runs: App) -> None:
    names = listed(runs)
    assert set(names[:3]) == {"Run first", "Run second", "Run small"}
    assert all(name.endswith("(bundled)") for name in names[3:])
    assert names[3:]


def test_runs_of_one_name_are_told_apart_by_when_they_were_made(tools: Service, runs: App) -> None:
    for key, created in (("first", "2026-11-01T10:00:00+00:00"), ("second", "2026-11-02T11:30:00+00:00")):
        tools.runs.update(key, partial(replace, name="Alike", created=created))
    names = listed(runs.run())
    assert {"Alike · 2026-11-01 10:00", "Alike · 2026-11-02 11:30", "Run small"} <= set(names)
    assert {"Alike · 2026-11-01 10:00", "Alike · 2026-11-02 11:30"} <= set(runs.at.multiselect(key=s.PICKED).options)


def test_a_chosen_run_opens_on_the_map(runs: App) -> None:
    opened = pick(runs, "first").click("open_run")
    assert opened.state[s.RUN] == "first"
    assert "(12 layers)" in opened.at.get("plotly_chart")[0].proto.alt


def test_a_run_is_renamed(tools: Service, runs: App) -> None:
    page = pick(runs, "first")
    page.at.text_input(key="name_of_first").set_value("Another  name")
    page.click("save_name")
    assert "Another name" in listed(page)
    assert tools.runs.get("first").name == "Another name"


def test_a_run_without_a_name_is_known_by_model_text_and_date(tools: Service, runs: App) -> None:
    page = pick(runs, "first")
    page.at.text_input(key="name_of_first").set_value("  ")
    page.click("save_name")
    run = tools.runs.get("first")
    assert run.name == ""
    assert f"{run.model.id} · {run.text.source}" in listed(page)[0]


def test_tags_and_a_note_are_kept_with_a_run_and_travel_with_it(tools: Service, runs: App) -> None:
    page = pick(runs, "first")
    page.at.text_input(key="tags_of_first").set_value("paper,  first try , paper")
    page.at.text_area(key="note_of_first").set_value("Before the tokenizer was changed.")
    page.click("save_name")
    travelled = unpack_run(pack_run(tools.runs.get("first")), "it")
    assert travelled.tags == ("paper", "first try")
    assert travelled.note == "Before the tokenizer was changed."
    page.at.text_input(key="tags_of_first").set_value("x" * 121)
    page.click("save_name")
    assert "A tag has at most 120 characters" in page.errors[0]


def test_a_note_on_a_cut_is_kept_with_the_run(tools: Service, runs: App) -> None:
    page = pick(runs, "first").click("open_run").page("map")
    block = s.block(page.state)
    assert block is not None
    field = f"cell_note_{block.start}_{block.n}"
    page.at.text_area(key=field).set_value("loses the plural")
    page.click("save_cell_note")
    assert tools.runs.get("first").cell_notes == {layers_text(block.layers): "loses the plural"}
    page.at.text_area(key=field).set_value(" ")
    page.click("save_cell_note")
    assert tools.runs.get("first").cell_notes == {}


def test_undo_brings_deleted_runs_back_as_they_were(tools: Service, runs: App) -> None:
    files = [tools.runs.folder / key / "run.json" for key in ("first", "small")]
    before = [file.read_bytes() for file in files]
    page = pick(runs, "first", "small").click("remove_run")
    assert listed(page)[0] == "Run second"
    assert "Deleted: Run first, Run small" in page.words
    assert not any(file.exists() for file in files)
    page.click("undo_remove")
    assert {"Run first", "Run small"} <= set(listed(page))
    assert [file.read_bytes() for file in files] == before
    assert "Deleted" not in page.words


def test_bundled_runs_cannot_be_deleted_or_renamed(runs: App) -> None:
    page = pick(runs, "example")
    assert page.at.button(key="remove_run").disabled


def test_two_runs_are_compared_with_one_scale_one_outline_and_their_difference(runs: App) -> None:
    page = pick(runs, "first", "second")
    page.at.segmented_control(key="compare_scale").set_value("value")
    page.run()
    charts = [spec(chart) for chart in page.at.get("plotly_chart")]
    assert len(charts) == 3
    one, other, _ = charts
    assert (one["data"][0]["zmin"], one["data"][0]["zmax"]) == (other["data"][0]["zmin"], other["data"][0]["zmax"])
    outlines = outlined(page)
    assert len(outlines) == 3
    assert outlines[0] == outlines[1] == outlines[2]
    assert "Run second minus Run first" in page.words


def test_runs_of_different_depth_have_maps_but_no_difference(runs: App) -> None:
    page = pick(runs, "first", "small")
    assert len(page.at.get("plotly_chart")) == 2
    assert "No difference map: Run first has 12 layers, Run small 6" in page.words


def test_typing_a_block_outlines_it_in_every_map(runs: App) -> None:
    page = pick(runs, "first", "second")
    page.number("start").set_value(2)
    page.run()
    page.number("n").set_value(3)
    page.run()
    assert outlined(page) == [[2, 3]] * 3


def test_a_run_that_is_already_here_is_recognised_whatever_it_is_called(tools: Service, runs: App) -> None:
    before = sorted(p.name for p in tools.runs.folder.iterdir())
    packed = pack_run(replace(tools.runs.get("first"), name="Other name", note="mine"))
    runs.at.file_uploader(key="import_run").set_value([("taken.shortviz.zip", packed, "application/zip")])
    page = runs.run()
    assert page.state[s.PICKED] == ["first"]
    assert sorted(p.name for p in tools.runs.folder.iterdir()) == before


def test_an_exported_run_is_imported_as_a_new_one(tools: Service, runs: App) -> None:
    run = replace(tools.runs.get("first"), created="2026-01-02T03:04:05+00:00")
    runs.at.file_uploader(key="import_run").set_value([("taken.shortviz.zip", pack_run(run), "application/zip")])
    page = runs.run()
    assert page.errors == []
    (key,) = page.state[s.PICKED]
    assert key not in ("first", "second", "small")
    assert tools.runs.get(key).name == "Run first"


def test_a_file_that_is_no_run_is_refused_and_nothing_is_kept(tools: Service, runs: App) -> None:
    before = sorted(p.name for p in tools.runs.folder.iterdir())
    runs.at.file_uploader(key="import_run").set_value([("bad.json", b'{"model": 1}', "application/json")])
    page = runs.run()
    assert page.errors == ["The file bad.json says None layers; a run has 1 to 512."]
    assert sorted(p.name for p in tools.runs.folder.iterdir()) == before


def test_where_strangers_meet_others_texts_stay_unseen_and_nothing_is_changed(
    tools: Service, runs: App, app: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHORTVIZ_HOSTED", "1")
    settings.cache_clear()
    try:
        page = pick(app(first_page="runs"), "example")
        assert all(name.endswith("(bundled)") for name in listed(page))
        keys = {b.key for b in page.at.button}
        assert not {"remove_run", "save_name"} & keys
        assert not page.at.file_uploader
    finally:
        monkeypatch.undo()
        settings.cache_clear()


def spec(chart):  # noqa: ANN001, ANN201  (AppTest's elements have no public type)
    import json

    return json.loads(chart.proto.spec)
