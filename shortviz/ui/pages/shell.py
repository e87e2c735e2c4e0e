"""What is around every page: a session is prefilled from the address, the status line, and the address again."""

# plotly 7.1 looks for pandas among the modules at every figure, and fails on one that another thread (a job, the
# engine's import) has imported by half: it is whole before any page draws.
import pandas  # noqa: F401
import streamlit as st
from streamlit.navigation.page import StreamlitPage

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
from shortviz.ui.session import polling
from shortviz.ui.session import state as s
from shortviz.ui.session import state as visit
from shortviz.ui.session.address import (
    VIEW_PARAMETERS,
    attach_own,
    follow_address,
    linked,
    read_address,
    went_back,
    write_address,
)
from shortviz.ui.session.polling import follow
from shortviz.ui.session.service import bench, start_job
from shortviz.ui.session.shown import Shown, look, ref_of

TICK_SECONDS = 0.5


def show() -> None:
    """Draw the page that was asked for, inside what is around every page: the whole of the app's script."""
    st.set_page_config(page_title="shortviz", page_icon=":material/layers_clear:", layout="wide")
    page = _navigation()
    _open_page(page)
    page.run()
    write_address(bench(), s.session())
    polling.page_was_drawn()  # then there is time for what the next page will need


def _navigation() -> StreamlitPage:
    """Say which pages there are, and return the one that was asked for."""
    pages = [
        st.Page(learn.draw, title="Learn", icon=":material/school:", url_path="start", default=True),
        st.Page(model.draw, title="Model", icon=":material/deployed_code:", url_path="model"),
        st.Page(map_page.draw, title="Map", icon=":material/grid_on:", url_path="map"),
        st.Page(heal.draw, title="Heal", icon=":material/healing:", url_path="heal"),
        st.Page(export.draw, title="Export", icon=":material/download:", url_path="export"),
        st.Page(runs.draw, title="Runs", icon=":material/history:", url_path="runs"),
    ]
    visit.set_pages(s.session(), {page.title: page for page in pages})
    by_name = st.Page(_to_learn, title="Learn", url_path="learn", visibility="hidden")
    return st.navigation([*pages, by_name], position="top")


def _to_learn() -> None:
    """Go on to Learn from /learn: the default page is served at / alone, and people type the name they see."""
    st.switch_page(visit.page(s.session(), "Learn"), query_params=linked())


def _open_page(page: StreamlitPage) -> None:
    """Prefill a new session from the address it was opened with, and draw what is above every page.

    An address without a page opens on Learn; one that carries a view of the map, and no lesson, goes to the map.
    """
    state = s.session()
    if not visit.begun(state):
        visit.begin(state, str(st.context.cookies.get(VISITOR, "")) if policy.knows_browsers(settings()) else "")
        parameters = linked()
        read_address(bench(), state, parameters)
        attach_own(bench(), state)
        told = link_problems(bench(), state, parameters)
        if told:
            visit.tell(state, f"{visit.notice(state)} {told}".strip())
        if page.url_path == "" and s.STEP not in parameters and any(key in VIEW_PARAMETERS for key in parameters):
            st.switch_page(visit.page(state, "Map"), query_params=parameters)
    elif went_back():
        follow_address(bench(), state, linked())
    else:
        late = late_problem(bench(), state)
        if late:
            visit.tell(state, late)
    visit.keep_prompt(state)
    told = visit.notice(state)
    if told:
        notes.problem(told)
    _status_line()


def _status_line() -> None:
    """Say which model is in memory; where none is, say what is shown instead and offer to load its model."""
    tools, state = bench(), s.session()
    shown = look(tools, state)

    def line(job: JobState | None) -> None:
        if job is not None and job.live:
            _loading(tools, job)
        elif shown.handle is not None:
            st.markdown(f":material/check_circle: {notes.model_words(shown.handle.info)}")
        else:
            notes.job_error(job)
            _offer(shown)

    follow(tools, tools.state(s.job(state, "load")), line, seconds=TICK_SECONDS)


def _loading(tools: Service, job: JobState) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.progress(job.fraction, text=f"{plain(job.title)}: {notes.progress_words(job)}")
        st.button("Cancel", icon=":material/close:", on_click=tools.jobs.cancel, args=(job.id,), key="cancel_load")


def _offer(shown: Shown) -> None:
    ref = ref_of(shown)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f":material/info: {_unloaded(shown)}", width="content")
        if ref is not None:
            st.button(
                plain(f"Load {ref.id}"),
                icon=":material/memory:",
                on_click=_load,
                args=(shown,),
                key="load_shown",
            )
        st.page_link(visit.page(s.session(), "Model"), label="Choose another model", icon=":material/deployed_code:")


def _unloaded(shown: Shown) -> str:
    if shown.bundled and shown.model is not None:
        return f"No model loaded: this is the **bundled run** of the {plain(shown.model.id)} model. Load it to measure."
    if shown.run is not None and shown.model is not None:
        return f"No model loaded: this is a **saved run** of {plain(shown.model.id)}. Load it to measure more."
    return "No model loaded." if shown.ref is None else f"No model loaded; {plain(shown.ref.id)} is chosen."


def _load(shown: Shown) -> None:
    """Load the model of what is shown; its chosen block is measured when it is there."""
    ref = ref_of(shown)
    if ref is not None:
        state = s.session()
        s.load_for_run(state, ref)
        s.want(state, "numbers")
        start_job(LoadRequest(model=ref, text=s.evaluation(state)))
        st.rerun()  # the whole page, not only the fragment that the button is in
