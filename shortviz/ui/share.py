"""Taking things away: links, reproducing lines, figures, and the numbers as files."""

from dataclasses import replace
from pathlib import Path

import streamlit as st

from shortviz.citations import bibtex
from shortviz.record_json import to_json
from shortviz.records import Block, ModelRef, Run, TextSpec, WindowSpec
from shortviz.report import report_html
from shortviz.run_tables import block_csv
from shortviz.runs import folder_name
from shortviz.text_options import text_of
from shortviz.ui import inspect_actions, measured, snippets, treat_buttons
from shortviz.ui import state as s
from shortviz.ui.address import go_to, left_out, link
from shortviz.ui.figure_dialog import figure_dialog, picture
from shortviz.ui.map_view import criterion_of
from shortviz.ui.resources import Bench
from shortviz.ui.shown import Shown, ref_of


def buttons(tools: Bench, shown: Shown, block: Block) -> None:
    """Draw what can be done with the chosen block."""
    state = s.session()
    ref = ref_of(shown)
    with st.container(horizontal=True, gap="small"):
        treat_buttons.buttons(tools, shown, block)
        if st.button("Export", icon=":material/download:", key="to_export"):
            go_to(tools, state, "pages/export.py")
        with st.popover("Copy link", icon=":material/link:"):
            st.caption("Restores this view; it starts no work.")
            st.code(link(tools, state), language=None, wrap_lines=True)
            for words in left_out(state):
                st.caption(f":material/info: {words}")
        if ref is not None:
            spec = s.evaluation(state)
            with st.popover("Copy as code", icon=":material/code:", width="content"):
                python, command = st.tabs(["Python", "Command"])
                python.code(snippets.evaluate_python(ref, block, spec, inspect_actions.APP_WINDOWS), language="python")
                command.code(snippets.evaluate_command(ref, block, spec, inspect_actions.APP_WINDOWS), language="bash")


def downloads(shown: Shown) -> None:
    """Draw what takes the map away: its figure, its numbers, a report, the lines that measure it, what to cite."""
    state = s.session()
    run = shown.run
    if run is None or (run.distances is None and run.losses is None):
        return
    with st.container(horizontal=True, gap="xsmall", width="content"):
        if st.button("Figure", key="figure_button", help="SVG or PNG for a paper, drawn by your browser."):
            found = picture(shown, state, s.block(state))
            if found is None:
                st.toast("This view has no figure yet; choose the map, agreement or curve.", icon=":material/image:")
            else:
                figure_dialog(found)
        with st.popover("Data", help="The numbers of this run as files, and all of it as one page."):
            _file("CSV, one row a block", lambda: block_csv(run), "blocks.csv", "text/csv")
            _file("JSON, the whole run", lambda: to_json(run), "run.json", "application/json")
            criterion = criterion_of(state, run.distances) if run.distances is not None else ""
            name = f"{folder_name(run)}.html"
            _file("Report, a page to mail", lambda: report_html(run, criterion=criterion), name, "text/html")
        ref = ref_of(shown)
        if ref is not None:
            with st.popover("Code", help="The command and the Python lines that measure this, and what to cite."):
                _code(shown, ref)


def _file(label: str, data: object, name: str, mime: str) -> None:
    st.download_button(
        label,
        data=data,  # type: ignore[arg-type]  # a callable: made when it is asked for
        file_name=name,
        mime=mime,
        icon=":material/download:",
        on_click="ignore",
        width="stretch",
    )


def _code(shown: Shown, ref: ModelRef) -> None:
    command, python, cite = st.tabs(["Command", "Python", "Cite"])
    lines = code_of(ref, s.session(), shown.run)
    if shown.run is not None and s.calibration(s.session()).kind != "paste" and text_of(shown.run.text) is None:
        st.caption(":material/info: The run does not tell where its text is: these lines take this session's.")
    command.code(lines[0], language="bash", wrap_lines=True)
    python.code(lines[1], language="python")
    cite.code(cite_of(shown, s.session()), language="bibtex", wrap_lines=True)


def code_of(ref: ModelRef, state: s.State, run: Run | None = None) -> tuple[str, str]:
    """Return the command and Python that measure what is on screen: on the run's texts where it tells them."""
    view = state.get(s.VIEW)
    calibration, (evaluation, windows) = _calibration(state, run), _evaluation(state, run)
    if view == "Agreement" or measured.show(state) == "difference":
        both = (ref, calibration, evaluation, windows)
        return snippets.agreement_command(*both), snippets.agreement_python(*both)
    if view == "Curve":
        return (
            snippets.curve_command(ref, evaluation, windows),
            snippets.losses_python(ref, evaluation, windows),
        )
    if measured.show(state) == "measured":
        return (
            snippets.losses_command(ref, evaluation, windows),
            snippets.losses_python(ref, evaluation, windows),
        )
    criterion = criterion_of(state, run.distances) if run is not None and run.distances is not None else "angular_last"
    return snippets.measure_command(ref, calibration), snippets.measure_python(ref, calibration, criterion)


def _calibration(state: s.State, run: Run | None) -> TextSpec:
    own = s.calibration(state)
    found = text_of(run.text) if run is not None and run.distances is not None else None
    if run is None or found is None or _same_file(own, found):
        return own
    return replace(found, limit=found.limit or run.text.rows)


def _evaluation(state: s.State, run: Run | None) -> tuple[TextSpec, WindowSpec]:
    own = s.evaluation(state)
    info = run.losses.text if run is not None and run.losses is not None else None
    if info is None or info.max_length is None:
        return own, inspect_actions.APP_WINDOWS
    found = text_of(info)
    spec = own if found is None or _same_file(own, found) else replace(found, max_length=own.max_length)
    return spec, WindowSpec(window=info.max_length, windows=info.rows)


def _same_file(own: TextSpec, found: TextSpec) -> bool:
    """Return whether the session knows where the file of a record lies, which the record does not tell."""
    return own.kind == found.kind == "file" and Path(own.value).name == found.value


def cite_of(shown: Shown, state: s.State) -> str:
    """Return the BibTeX entries of the methods in the view that is on screen."""
    distances = shown.distances
    if distances is None:
        return bibtex()
    every = state.get(s.VIEW) in ("Agreement", "Curve")
    names = distances.criteria if every else [criterion_of(state, distances)]
    return bibtex(names, sink=bool(distances.norms.sink_layers))
