"""Searching further from the Map page: the best starts without the whole map, and greedy removal."""

from shortviz.records.formatting import layers_text
from shortviz.service.measure import APP_WINDOWS
from shortviz.service.requests import CurveRequest, SearchRequest
from shortviz.service.service import Service
from shortviz.service.spelling import to_command
from shortviz.ui.session import state as s
from tests.support.app import App, view


def lists(page: App) -> list[str]:
    return next((list(one.options) for one in page.at.segmented_control if one.key == "best_list"), [])


def choose_list(page: App, name: str) -> App:
    page.at.segmented_control(key="best_list").set_value(name)
    return page.run()


def test_a_search_is_started_from_the_page_with_its_cost_and_its_command_and_its_list_is_shown(
    measured: App, tools: Service
) -> None:
    page = view(measured, "Best per n")
    assert lists(page) == []
    page.at.number_input(key="search_n").set_value(2)
    page.run()
    assert "11 blocks: 22 to 352 evaluations of a window." in page.words
    page.click("start_search")
    job = page.finish("search")
    assert job.state == "done"
    ref = s.ref(page.state)
    assert ref is not None
    request = SearchRequest(model=ref, text=s.evaluation(page.state), windows=APP_WINDOWS, max_n=2)
    asked = tools.context(job.id)
    assert asked is not None
    assert asked.request == request
    assert to_command(request) in [one.value for one in page.at.code]
    choose_list(page, "searched by loss")
    (table,) = [one.value for one in page.at.dataframe]
    assert list(table["n"]) == [1, 2]
    assert list(table["NLL increase"]) == [row.increase for row in job.result.rows]
    assert f"{job.result.cells_measured:,} evaluations" in page.words


def test_greedy_removal_is_told_with_the_map_that_it_needs_and_its_cuts_go_to_heal(
    measured: App, tools: Service
) -> None:
    page = view(measured, "Best per n")
    page.at.number_input(key="greedy_layers").set_value(2)
    page.run()
    assert "At most 352 evaluations of a window. The measured map comes first" in page.words
    ref = s.ref(page.state)
    assert ref is not None
    request = CurveRequest(model=ref, text=s.evaluation(page.state), windows=APP_WINDOWS, greedy=2)
    assert to_command(request, out="RUN") in [one.value for one in page.at.code]
    page.click("start_greedy")
    assert page.finish("curve").state == "done"
    assert not any(one.key == "stop_curve_search" for one in page.at.button)
    choose_list(page, "greedy removal")
    (table,) = [one.value for one in page.at.dataframe]
    assert list(table["n"]) == [1, 2]
    (run,) = [tools.runs.get(folder.name) for folder in tools.runs.folder.glob("tiny-llama-*")]
    assert run is not None
    assert run.greedy is not None
    cut = run.greedy.line.points[2].removed
    assert table["layers"][1] == layers_text(cut)
    page.state[s.CUT] = cut
    page.run()
    assert page.at.button(key="greedy_to_heal").label == f"Take layers {layers_text(cut)} to Heal"


def test_without_a_model_in_memory_the_cost_is_told_and_nothing_starts(app) -> None:  # noqa: ANN001
    page = view(app(), "Best per n")
    assert page.at.button(key="start_search").disabled
    assert page.at.button(key="start_greedy").disabled
    assert "evaluations of a window" in page.words
