"""What takes results away: links, figures, files, and the lines that measure what is on screen."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from shortviz.analysis.agreement import agreement
from shortviz.analysis.curve import curve_from_map
from shortviz.errors import ShortvizError
from shortviz.figures import losses as loss_charts
from shortviz.figures import map as charts
from shortviz.figures.cells import map_alt
from shortviz.figures.theme import image_options, paper_figure
from shortviz.records.formatting import layers_text
from shortviz.records.json import to_json
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block, Removal
from shortviz.records.run import Run, bibtex
from shortviz.records.text import TextSpec, WindowSpec, text_of
from shortviz.runs.library import MOST_OF_A_NOTE, with_cell_note
from shortviz.runs.report import block_csv, report_html
from shortviz.runs.run import EXAMPLES, file_name, folder_name
from shortviz.runs.zip import pack_run
from shortviz.service import measure, policy
from shortviz.service.requests import CurveRequest, EvaluateRequest, MapRequest, MeasureRequest
from shortviz.service.service import Service
from shortviz.service.spelling import to_command, to_python
from shortviz.settings import settings
from shortviz.ui.parts import ledger
from shortviz.ui.parts.notes import plain
from shortviz.ui.session import state as s
from shortviz.ui.session.address import go_to, left_out, link
from shortviz.ui.session.shown import VIEWS, Shown, criterion_of, drawn, job_of, ref_of, scale_of

# The figure that is on screen, for a paper: light, sharp, saved by the browser as SVG or PNG.

KINDS = {"svg": "SVG (vector)", "png": "PNG (3600 x 2560)"}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Picture:
    """A figure, what it shows in words, and the name of its file."""

    figure: Any
    words: str
    name: str


def picture(shown: Shown, state: s.State, chosen: Block | None) -> Picture | None:
    """Return the chart of the view that is on screen; None where the view has none or it is not measured."""
    run, view = shown.run, state.get(s.VIEW, VIEWS[0])
    if run is None:
        return None
    distances, losses, model = run.distances, run.losses, run.model
    criterion = criterion_of(state, distances) if distances is not None else ""
    if view == "Curve":
        if losses is None:
            return None
        curve = curve_from_map(losses, distances, model)
        figure = loss_charts.curve_figure(curve, top=curve.base_nll + 6.0)
        return Picture(figure=figure, words=loss_charts.curve_alt(curve), name="shortviz-curve")
    if view == "Agreement":
        if losses is None or distances is None:
            return None
        words = loss_charts.agreement_alt(agreement(distances, losses, model))
        figure = loss_charts.agreement_figure(distances, losses, criterion, chosen)
        return Picture(figure=figure, words=words, name=f"shortviz-agreement-{criterion}")
    found = drawn(state, run)
    if found is None:
        return None
    look = charts.MapView(scale=scale_of(state, run), selected=chosen)
    return Picture(
        figure=charts.distance_map(*found, model, look),
        words=map_alt(*found, model),
        name=f"shortviz-{look.scale}-{found[1]}",
    )


@st.dialog("Figure for a paper", width="large")
def figure_dialog(found: Picture) -> None:
    """Draw the figure with the one button that saves it."""
    kind = st.segmented_control(
        "File", list(KINDS), format_func=lambda name: KINDS[name], default="svg", required=True, key="figure_kind"
    )
    st.caption(":material/photo_camera: Press the camera above the figure to save it. Your browser draws the file.")
    st.plotly_chart(
        paper_figure(found.figure),
        theme=None,
        width="content",
        key="paper_figure",
        config={
            "displaylogo": False,
            "displayModeBar": True,
            "modeBarButtons": [["toImage"]],
            "toImageButtonOptions": image_options(found.name, str(kind or "svg")),
        },
        alt=found.words,
    )
    st.caption(plain(found.words))


# Taking things away: links, reproducing lines, figures, and the numbers as files.


def buttons(tools: Service, shown: Shown, block: Block) -> None:
    """Draw what can be done with the chosen block."""
    state = s.session()
    ref = ref_of(shown)
    with st.container(horizontal=True, gap="small"):
        ledger.buttons(tools, shown, block)
        if st.button("Export", icon=":material/download:", key="to_export"):
            go_to(tools, state, "Export")
        with st.popover("Copy link", icon=":material/link:"):
            st.caption("Restores this view; it starts no work.")
            st.code(link(tools, state), language=None, wrap_lines=True)
            for words in left_out(state):
                st.caption(f":material/info: {words}")
            if policy.reads_paths(settings()):
                st.caption(
                    ":material/info: It leads to this machine and its runs. For others, send the file beside it: they "
                    "import it on their Runs page."
                )
            if shown.run is not None:
                st.download_button(
                    "This run as a file",
                    data=partial(pack_run, shown.run),
                    file_name=file_name(shown.run),
                    mime="application/zip",
                    icon=":material/download:",
                    on_click="ignore",
                    key="link_run",
                )
            if shown.key is not None and shown.run is not None and policy.manages_runs(settings()):
                _note(tools, shown.key, shown.run, block)
        if ref is not None:
            request = EvaluateRequest(
                model=ref, removal=Removal(block=block), text=s.evaluation(state), windows=measure.APP_WINDOWS
            )
            with st.popover("Copy as code", icon=":material/code:", width="content"):
                python, command = st.tabs(["Python", "Command"])
                python.code(to_python(request), language="python")
                command.code(to_command(request), language="bash")


def _note(tools: Service, key: str, run: Run, block: Block) -> None:
    """Draw what a person noted on this cut; it is kept with the run and travels with it."""
    noted, field = run.cell_notes.get(layers_text(block.layers), ""), f"cell_note_{block.start}_{block.n}"

    def save() -> None:
        try:
            note = str(s.session().get(field, ""))
            tools.runs.update(key, lambda run: run and with_cell_note(run, block.layers, note))
        except ShortvizError as error:
            s.tell(s.session(), str(error))

    off, why = key in EXAMPLES, "A bundled run stays as it is: measure one of your own." if key in EXAMPLES else None
    st.text_area(f"Note on {block}", value=noted, max_chars=MOST_OF_A_NOTE, key=field, disabled=off, help=why)
    st.button("Keep the note with the run", on_click=save, key="save_cell_note", disabled=off, help=why)


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
    """Return the commands and the Python that measure what is on screen: on the run's texts where it tells them."""
    asked = requests_of(ref, state, run)
    if len(asked) > 1:
        commands = [to_command(request, out="RUN") for request in asked]
        python = [to_python(request, name) for request, name in zip(asked, ("distances", "losses"), strict=True)]
        return "\n".join([*commands, "shortviz show RUN"]), "\n".join([*python, _AGREEMENT])
    criterion = criterion_of(state, run.distances) if run is not None and run.distances is not None else "angular_last"
    reading = {
        MeasureRequest: f"from shortviz import best_blocks\n\nprint(best_blocks(run.distances, {criterion!r}))\n",
        MapRequest: "print(run.losses.increase.row(1))  # nats, without each single layer\n",
        CurveRequest: "from shortviz.analysis.curve import curve_of_run\n\nprint(curve_of_run(run).lines[0])\n",
    }
    return to_command(asked[0], out="RUN"), f"{to_python(asked[0], 'run')}\n{reading[type(asked[0])]}"


_AGREEMENT = """from shortviz.analysis.agreement import agreement, agreement_table

print(agreement_table(agreement(distances.distances, losses.losses, distances.model)).to_string())
"""


def requests_of(
    ref: ModelRef, state: s.State, run: Run | None = None
) -> tuple[MeasureRequest | MapRequest | CurveRequest, ...]:
    """Return what measures the view that is on screen."""
    view = state.get(s.VIEW)
    evaluation, windows = _evaluation(state, run)
    distances = MeasureRequest(model=ref, text=_calibration(state, run))
    losses = MapRequest(model=ref, text=evaluation, windows=windows)
    if view == "Agreement" or scale_of(state, run) == "difference":
        return distances, losses
    if view == "Curve":
        return (CurveRequest(model=ref, text=evaluation, windows=windows),)
    return (losses if job_of(state, run) == "losses" else distances,)


def _calibration(state: s.State, run: Run | None) -> TextSpec:
    own = s.calibration(state)
    found = text_of(run.text) if run is not None and run.distances is not None else None
    if run is None or found is None or _same_file(own, found):
        return own
    return replace(found, limit=found.limit or run.text.rows)


def _evaluation(state: s.State, run: Run | None) -> tuple[TextSpec, WindowSpec]:
    own = s.evaluation(state)
    info = run.losses.text if run is not None and run.losses is not None else None
    windows = info.windows if info is not None else None
    if info is None or windows is None:
        return own, measure.APP_WINDOWS
    found = text_of(info, rows=False)
    spec = own if found is None or _same_file(own, found) else replace(found, max_length=own.max_length)
    return spec, windows


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
