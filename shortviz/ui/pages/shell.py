"""What is around every page: a session is prefilled from the address, the status line, and the address again."""

from collections.abc import Mapping, Sequence
from importlib import resources

# plotly 7.1 looks for pandas among the modules at every figure, and fails on one that another thread (a job, the
# engine's import) has imported by half: it is whole before any page draws.
import pandas  # noqa: F401
import streamlit as st
from streamlit.navigation.page import StreamlitPage

from shortviz.runs.library import title
from shortviz.server.guard import VISITOR
from shortviz.service import policy
from shortviz.service.queue import JobState
from shortviz.service.requests import LoadRequest
from shortviz.service.service import Service
from shortviz.settings import settings
from shortviz.ui.pages import export, heal, learn, model, runs
from shortviz.ui.pages import map as map_page
from shortviz.ui.pages.links import late_problem, link_problems
from shortviz.ui.parts import notes
from shortviz.ui.parts.notes import plain
from shortviz.ui.session import opened
from shortviz.ui.session import state as s
from shortviz.ui.session.address import (
    VIEW_PARAMETERS,
    attach_own,
    follow_address,
    go_to,
    linked,
    read_address,
    went_back,
    write_address,
)
from shortviz.ui.session.service import bench, follow, page_was_drawn, start_job
from shortviz.ui.session.shown import Shown, look, ref_of

TICK_SECONDS = 0.5
_ICON = str(resources.files("shortviz") / "ui" / "assets" / "icon.svg")
"""A file: an icon by name would be fetched from a host on the internet, by every page."""
_MOST_OF_A_NAME = 36
"""Characters of a run's name beside the model's."""
ENDED: Mapping[str, str] = {"done": "done", "failed": "failed", "cancelled": "stopped"}
_AT_THE_TOP = """<style>
.st-key-status h1 { position: absolute; width: 1px; height: 1px; padding: 0; overflow: hidden; clip-path: inset(50%); }
@media (min-width: 900px) {
  .st-key-status { position: fixed; top: .55rem; right: 3.5rem; z-index: 999991; width: auto; max-width: 55vw; }
}
@media (max-width: 640px) {
  .stMainBlockContainer { padding-top: 3.9rem; }
  .st-key-status { row-gap: 0; }
  .stMainBlockContainer > .stVerticalBlock, .st-key-answer .stHorizontalBlock { row-gap: .5rem; }
  .st-key-measure { flex-flow: row; align-items: center; }
  .st-key-view label { display: none; }
  .st-key-view button { padding-inline: .45rem; }
}
</style>"""
"""Beside the navigation, in its own bar; on a phone that bar is narrow, and the line stands below it: there, what is
above a map leaves it half of the screen."""


def show() -> None:
    """Draw the page that was asked for, inside what is around every page: the whole of the app's script."""
    st.set_page_config(page_icon=_ICON, layout="wide")  # before the navigation, which would take the page's for its own
    page = _navigation()
    st.set_page_config(page_title=page.title if page.url_path == "" else f"{page.title} · shortviz")
    _open_page(page)
    page.run()
    write_address(bench(), s.session())
    page_was_drawn()  # then there is time for what the next page will need


def _navigation() -> StreamlitPage:
    """Say which pages there are, and return the one that was asked for."""
    pages = [
        st.Page(learn.draw_first, title="shortviz", icon=":material/layers_clear:", url_path="start", default=True),
        st.Page(learn.draw, title="Learn", icon=":material/school:", url_path="learn"),
        st.Page(model.draw, title="Model", icon=":material/deployed_code:", url_path="model"),
        st.Page(map_page.draw, title="Map", icon=":material/grid_on:", url_path="map"),
        st.Page(heal.draw, title="Heal", icon=":material/healing:", url_path="heal"),
        st.Page(export.draw, title="Export", icon=":material/download:", url_path="export"),
        st.Page(runs.draw, title="Runs", icon=":material/history:", url_path="runs"),
    ]
    s.set_pages(s.session(), {page.title: page for page in pages})
    return st.navigation(pages, position="top")


def _open_page(page: StreamlitPage) -> None:
    """Prefill a new session from the address it was opened with, and draw what is above every page.

    An address without a page opens the first screen; one with a lesson leads there, one with a view of the map to it.
    """
    state = s.session()
    if not s.begun(state):
        s.begin(state, str(st.context.cookies.get(VISITOR, "")) if policy.knows_browsers(settings()) else "")
        parameters = linked()
        read_address(bench(), state, parameters)
        attach_own(bench(), state)
        told = link_problems(bench(), state, parameters)
        if told:
            s.tell(state, f"{s.notice(state)} {told}".strip())
        wanted = "Learn" if s.STEP in parameters else "Map" if VIEW_PARAMETERS.intersection(parameters) else ""
        if page.url_path == "" and wanted:
            st.switch_page(s.page(state, wanted), query_params=parameters)
    elif went_back():
        follow_address(bench(), state, linked())
    else:
        late = late_problem(bench(), state)
        if late:
            s.tell(state, late)
    s.keep_prompt(state)
    if target := s.take_target(state):  # a button asked for another page
        go_to(bench(), state, target)
    told = s.notice(state)
    if told:
        notes.problem(told)
    if page.url_path != "":
        _status_line(page.title)


def _status_line(page_name: str) -> None:
    """Say at the top right which model is in memory, or offer to load it, and what runs: no line of the page goes."""
    service, state = bench(), s.session()
    shown, job = look(service, state), service.state(s.job(state, "load"))

    def line(_: JobState | None) -> None:
        live = service.running()
        for ended in (service.state(one) for one in s.follow_jobs(state, [job.id for job in live])):
            if ended is not None:
                shared = "; others go on with it" if ended.stopping else ""
                st.toast(f"{plain(ended.title)}: {ENDED[ended.state]}{shared}")
        with st.container(horizontal=True, horizontal_alignment="right", vertical_alignment="center", gap="small"):
            if live:
                _running(service, live)
            if shown.handle is not None:
                st.markdown(f":material/check_circle: {notes.model_words(shown.handle.info)}", width="content")
                _run(shown)
            elif not any(job.kind == LoadRequest.kind for job in live):
                _offer(shown)

    with st.container(key="status"):
        st.html(f"{_AT_THE_TOP}<h1>{page_name}</h1>")  # heard, not seen: the bar beside it says where one is
        follow(service, next(iter(service.running()), job), line, seconds=TICK_SECONDS)
    if shown.handle is None:
        notes.job_error(job)
    if shown.run is not None and s.run_key(state) is not None:
        for words in opened.problems(state, shown.run, shown.other):
            st.caption(f":material/info: {plain(words)}")


def _run(shown: Shown) -> None:
    """Say which run is shown, and where what is measured goes."""
    if shown.run is not None:
        words, where = opened.run_words(s.session(), shown.key, shown.run)
        st.markdown(f":material/history: {plain(_short(words))}", width="content", help=plain(f"{words}. {where}"))


def _short(name: str) -> str:
    return name if len(name) <= _MOST_OF_A_NAME else f"{name[:_MOST_OF_A_NAME]} …"


def _running(service: Service, live: Sequence[JobState]) -> None:
    """Say how many jobs run and wait; each, with its progress and its end, opens from there."""
    words = f"{live[0].title}: {live[0].fraction:.0%}" if len(live) == 1 else f"{len(live)} jobs"
    with st.popover(plain(words), icon=":material/pending:", key="running"):
        for job in live:
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                st.progress(job.fraction, text=f"{plain(job.title)}: {notes.progress_words(job)}")
                st.button("Cancel", key=f"end_{job.id}", on_click=service.stop, args=(job.id,))


def _offer(shown: Shown) -> None:
    ref = ref_of(shown)
    st.markdown(_unloaded(shown), width="content")
    if ref is not None:
        st.button(plain(f"Load {ref.id}"), icon=":material/memory:", on_click=_load, args=(shown,), key="load_shown")


def _unloaded(shown: Shown) -> str:
    if shown.run is not None and shown.model is not None:
        none = "Another model is loaded" if shown.other is not None else "No model loaded"
        kind = "bundled run" if shown.bundled else "saved run"
        if s.run_key(s.session()) is not None and not shown.bundled:
            kind = f"run {_short(title(shown.run))}"
        return f"{none}: **{plain(kind)}** of {plain(shown.model.id)}"
    return "No model loaded" if shown.ref is None else f"No model loaded; {plain(shown.ref.id)} is chosen"


def _load(shown: Shown) -> None:
    """Load the model of what is shown; its chosen block is measured when it is there."""
    ref = ref_of(shown)
    if ref is not None:
        state = s.session()
        s.load_for_run(state, ref)
        s.want(state, "numbers")
        start_job(LoadRequest(model=ref, text=s.evaluation(state)))
        st.rerun()  # the whole page, not only the fragment that the button is in
