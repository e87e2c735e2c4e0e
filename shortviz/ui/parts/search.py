"""Searching further from the Map page: the best start of every size without the whole map, and greedy removal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from shortviz.criteria.base import label
from shortviz.records.formatting import counted, duration, layers_text, percent
from shortviz.records.measured import GreedyRemoval
from shortviz.records.model import ModelInfo, ModelRef
from shortviz.records.plan import Block
from shortviz.records.text import TextInfo
from shortviz.service import measure
from shortviz.service.queue import JobState
from shortviz.service.requests import CurveRequest, SearchRequest
from shortviz.service.service import Service
from shortviz.service.spelling import to_command
from shortviz.ui.parts import notes
from shortviz.ui.parts.notes import plain
from shortviz.ui.session import state as s
from shortviz.ui.session.address import go_to
from shortviz.ui.session.service import start_job
from shortviz.ui.session.shown import Shown, choose, parse_row, ref_of

if TYPE_CHECKING:
    from shortviz.measure.search import SearchResult

Jobs = Mapping[str, JobState | None]
_SEARCHED, _GREEDY = "searched by loss", "greedy removal"
_LEAST_WINDOWS: Final = 2
"""Before that many the search drops nothing."""
HEIGHT: Final = 350
"""Of a list below these controls: with them it ends where the other views do."""


def further(shown: Shown, jobs: Jobs) -> None:
    """Draw what starts a search, told beforehand what it costs."""
    model, ref = shown.model, ref_of(shown)
    if model is not None and ref is not None and model.num_layers > 1:
        with st.popover("Search further", icon=":material/travel_explore:"), st.container(gap="xsmall"):
            _starts(shown, model, ref, jobs["search"])
            _greedy(shown, model, ref, jobs["curve"])


def progress(bench: Service, jobs: Jobs, kinds: Sequence[str] = ("search", "curve")) -> None:
    """Draw how far searches are, with Stop, and why one failed."""
    for job in (jobs[kind] for kind in kinds):
        if job is not None and job.live:
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                notes.job_progress(job)
                st.button("Stop", on_click=bench.stop, args=(job.id,), key=f"stop_{job.kind}_search")
        notes.job_error(job)


def _starts(shown: Shown, model: ModelInfo, ref: ModelRef, job: JobState | None) -> None:
    st.markdown("**The best start of every size**")
    st.caption(
        "Measures every block on two windows of the evaluation text; then starts that are certainly worse drop out."
    )
    with _row():
        n = _number("Largest n", model, key="search_n")
        windows = measure.APP_WINDOWS
        request = SearchRequest(model=ref, text=s.evaluation(s.session()), windows=windows, max_n=n)
        _start("Search", request, shown, job, key="start_search")
    blocks = sum(model.num_layers - size + 1 for size in range(1, n + 1))
    blocks -= sum(size <= n for _, size, _ in model.illegal)
    low, high = _LEAST_WINDOWS * blocks, windows.windows * blocks
    st.caption(f"{counted(blocks, 'block')}: {low:,} to {high:,} evaluations of a window.{_time(shown, low, high)}")
    st.code(to_command(request), language="bash", wrap_lines=True)


def _greedy(shown: Shown, model: ModelInfo, ref: ModelRef, job: JobState | None) -> None:
    st.markdown("**Greedy removal**")
    st.caption("Removes the least harmful single layer, measures every layer that is left again, and so on.")
    losses = shown.run.losses if shown.run is not None else None
    windows = (losses.text.windows if losses is not None else None) or measure.APP_WINDOWS
    with _row():
        layers = _number("Layers to remove", model, key="greedy_layers")
        request = CurveRequest(model=ref, text=s.evaluation(s.session()), windows=windows, greedy=layers)
        _start("Remove one by one", request, shown, job, key="start_greedy", run=shown.key)
    cost = windows.windows * sum(model.num_layers - gone for gone in range(layers))
    first = "" if losses is not None else " The measured map comes first: the curve is drawn beside it."
    st.caption(f"At most {cost:,} evaluations of a window.{_time(shown, cost, cost)}{first}")
    st.code(to_command(request, out="RUN"), language="bash", wrap_lines=True)


def _row() -> DeltaGenerator:
    return st.container(horizontal=True, vertical_alignment="bottom", gap="small")


def _number(name: str, model: ModelInfo, *, key: str) -> int:
    most = model.num_layers - 1
    return int(st.number_input(name, 1, most, value=max(1, most // 3), key=key, width=160))


def _time(shown: Shown, low: int, high: int) -> str:
    """Return how long so many evaluations take, by the time that the map took where it was measured."""
    losses = shown.run.losses if shown.run is not None else None
    if losses is None or not losses.seconds or shown.bundled:
        return ""
    each = losses.seconds / max(1, int(losses.windows.sum()))
    between = "" if low == high else f"{duration(each * low)} to "
    return f" About {between}{duration(each * high)}, by the time the map took."


def _start(
    name: str, request: SearchRequest | CurveRequest, shown: Shown, job: JobState | None, *, key: str,
    run: str | None = None,
) -> None:  # fmt: skip
    def start() -> None:
        start_job(request, key=run)
        st.rerun()  # the whole page, so that it follows the job

    why = notes.why_off(shown.handle is None, job is not None and job.live)
    st.button(name, icon=":material/play_arrow:", disabled=bool(why), help=why or None, on_click=start, key=key)


def greedy_so_far(shown: Shown, jobs: Jobs) -> GreedyRemoval | None:
    """Return what is known of greedy removal: as far as it is while it runs, else what the run holds."""
    job = jobs["curve"]
    growing = job.partial if job is not None and job.live else None
    kept = shown.run.greedy if shown.run is not None else None
    return growing if isinstance(growing, GreedyRemoval) else kept


def choice(shown: Shown, jobs: Jobs, criterion: str) -> "SearchResult | GreedyRemoval | None":
    """Draw the choice between the list by the criterion and what searches found; returns what they did, if chosen."""
    job, greedy = jobs["search"], greedy_so_far(shown, jobs)
    searched = job.record if job is not None else None
    found = {name: record for name, record in ((_SEARCHED, searched), (_GREEDY, greedy)) if record is not None}
    if not found:
        return None
    own = f"by {label(criterion)}"
    lists = [own, *found]
    chosen = st.segmented_control("List", lists, default=own, required=True, key="best_list", wrap=True)
    return found.get(str(chosen))


def draw(bench: Service, found: "SearchResult | GreedyRemoval") -> None:
    """Draw what a search found; choosing a row shows its cut."""
    if isinstance(found, GreedyRemoval):
        _greedy_list(bench, found)
    else:
        _search_list(found)


def _search_list(result: "SearchResult") -> None:
    blocks = [Block(start=row.start, n=row.n) for row in result.rows]
    rows = [
        {"n": row.n, "layers": layers_text(block.layers), **_loss(row.increase, row.stderr), "windows": row.windows,
         "tied with starts": ", ".join(str(start) for start in row.tied if start != row.start)}
        for row, block in zip(result.rows, blocks, strict=True)
    ]  # fmt: skip
    st.dataframe(
        rows, key="search_table", hide_index=True, height=HEIGHT, selection_mode="single-row", column_config=_COLUMNS,
        on_select=lambda: choose(parse_row(s.session().get("search_table"), blocks)),
        alt="The best start of every size by measured loss",
    )  # fmt: skip
    share = percent(result.cells_measured / result.cells_exhaustive)
    _behind(result.text, f"{result.cells_measured:,} evaluations, {share} of measuring every block.")


def _greedy_list(bench: Service, greedy: GreedyRemoval) -> None:
    uncut, *points = greedy.line.points
    cuts = [point.removed for point in points]
    state = s.session()

    def taken() -> None:
        cut = parse_row(state.get("greedy_table"), cuts)
        if cut is not None:
            s.take_cut(state, cut)
            s.want(state, "numbers")
            st.rerun()

    st.dataframe(
        [
            {"n": point.n, "layers": layers_text(point.removed), **_loss(point.nll - uncut.nll, point.stderr)}
            for point in points
        ],
        key="greedy_table", hide_index=True, height=HEIGHT, selection_mode="single-row", column_config=_COLUMNS,
        on_select=taken, alt="The layers that greedy removal took, by how many are removed",
    )  # fmt: skip
    _behind(greedy.text, "" if greedy.complete else "Stopped before all layers asked for were gone.")
    if s.cut(state) in cuts and st.button(
        f"Take layers {layers_text(s.cut(state))} to Heal", icon=":material/healing:", key="greedy_to_heal"
    ):
        go_to(bench, state, "Heal")


def _loss(increase: float, error: float) -> dict[str, float]:
    return {"NLL increase": increase, "± error": error}


_COLUMNS: Final = {
    "NLL increase": st.column_config.NumberColumn("NLL increase, nats", format="%+.3f"),
    "± error": st.column_config.NumberColumn(format="%.3f"),
}


def _behind(text: TextInfo, more: str) -> None:
    st.caption(plain(f"A row shows its cut. Scored on {text.words}, {text.windows_words}. {more}"))
