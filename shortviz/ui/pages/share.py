"""The Python lines and the commands that reproduce what the app measured; those of an export are in recipes."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import streamlit as st

from shortviz.analysis.agreement import agreement
from shortviz.analysis.curve import curve_from_map
from shortviz.figures import losses as loss_charts
from shortviz.figures import map as charts
from shortviz.figures.cells import map_alt
from shortviz.figures.theme import image_options, paper_figure
from shortviz.records.citations import bibtex
from shortviz.records.json import to_json
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block
from shortviz.records.run import Run
from shortviz.records.text import TextSpec, WindowSpec, text_of
from shortviz.runs.report import block_csv, report_html
from shortviz.runs.run import folder_name
from shortviz.service import measure
from shortviz.service.service import Service
from shortviz.ui.parts import ledger
from shortviz.ui.parts import map as measured
from shortviz.ui.parts.notes import plain
from shortviz.ui.session import state as s
from shortviz.ui.session.address import go_to, left_out, link
from shortviz.ui.session.shown import VIEWS, Shown, criterion_of, drawn_criterion, map_look, ref_of


def measure_python(ref: ModelRef, spec: TextSpec, criterion: str = "angular_last") -> str:
    """Return Python that measures the distance map."""
    return (
        "from shortviz import ModelRef, TextSpec, best_blocks, load, measure_distances, tokenize\n\n"
        f"model = load({_ref(ref)})\n"
        f"text = {_spec(spec)}\n"
        "distances = measure_distances(model, tokenize(text, model.tokenizer))\n"
        f"print(best_blocks(distances, {criterion!r}))\n"
    )


def measure_command(ref: ModelRef, spec: TextSpec) -> str:
    """Return the command that measures the distance map."""
    words = ["shortviz", "measure", ref.id, *_model_options(ref), *_text_options(spec), "--out", "RUN"]
    return _command(words, spec)


def evaluate_python(ref: ModelRef, block: Block, spec: TextSpec, windows: WindowSpec) -> str:
    """Return Python that measures what removing the block costs."""
    return (
        "from shortviz import Block, ModelRef, PrunePlan, TextSpec, WindowSpec\n"
        "from shortviz import evaluate, load, make_windows, prune\n\n"
        f"model = load({_ref(ref)})\n"
        f"{_plan(block)}"
        f"{_windows(spec, windows)}"
        "print(evaluate(prune(model, plan), windows, base=model))\n"
    )


def evaluate_command(ref: ModelRef, block: Block, spec: TextSpec, windows: WindowSpec) -> str:
    """Return the command that measures what removing the block costs."""
    words = ["shortviz", "evaluate", ref.id, *_model_options(ref), *_block(block), *_text_options(spec)]
    return _command([*words, *_window_options(windows)], spec)


def losses_python(ref: ModelRef, spec: TextSpec, windows: WindowSpec) -> str:
    """Return Python that measures the loss of every block, and what the removal curve is read off."""
    return (
        "from shortviz import ModelRef, TextSpec, WindowSpec, load, make_windows, measure_losses\n"
        "from shortviz.analysis.curve import curve_from_map\n\n"
        f"model = load({_ref(ref)})\n"
        f"{_windows(spec, windows)}"
        "losses = measure_losses(model, windows)\n"
        "print(losses.increase.row(1))  # nats, without each single layer\n"
        "print(curve_from_map(losses, model=model.info).lines[0])\n"
    )


def losses_command(ref: ModelRef, spec: TextSpec, windows: WindowSpec) -> str:
    """Return the command that measures the loss of every block."""
    return _losses_command("map", [ref.id, *_model_options(ref)], spec, windows)


def curve_command(ref: ModelRef, spec: TextSpec, windows: WindowSpec) -> str:
    """Return the command that measures every block and prints the removal curve."""
    return _losses_command("curve", [ref.id, *_model_options(ref)], spec, windows)


def agreement_python(ref: ModelRef, calibration: TextSpec, spec: TextSpec, windows: WindowSpec) -> str:
    """Return Python that measures both maps and compares them."""
    return (
        "from shortviz import ModelRef, TextSpec, WindowSpec\n"
        "from shortviz import load, make_windows, measure_distances, measure_losses, tokenize\n"
        "from shortviz.analysis.agreement import agreement, agreement_table\n\n"
        f"model = load({_ref(ref)})\n"
        f"calibration = {_spec(calibration)}\n"
        "distances = measure_distances(model, tokenize(calibration, model.tokenizer))\n"
        f"{_windows(spec, windows)}"
        "losses = measure_losses(model, windows)\n"
        "print(agreement_table(agreement(distances, losses, model.info)).to_string())\n"
    )


def agreement_command(ref: ModelRef, calibration: TextSpec, spec: TextSpec, windows: WindowSpec) -> str:
    """Return the commands that measure both maps into one run and show how well they agree."""
    first = measure_command(ref, calibration)
    return f"{first}\n{_losses_command('map', ['RUN'], spec, windows)}\nshortviz show RUN"


def _losses_command(command: str, model: list[str], spec: TextSpec, windows: WindowSpec) -> str:
    words = ["shortviz", command, *model, *_text_options(spec), *_window_options(windows)]
    return _command([*words, "--out", "RUN"] if model != ["RUN"] else words, spec)


def _window_options(windows: WindowSpec) -> list[str]:
    return ["--window", str(windows.window), "--windows", str(windows.windows)]


def _windows(spec: TextSpec, windows: WindowSpec) -> str:
    return (
        f"text = {_spec(spec)}\n"
        f"size = WindowSpec(window={windows.window}, windows={windows.windows})\n"
        "windows = make_windows(text, size, model.tokenizer)\n"
    )


def _plan(block: Block) -> str:
    return f"plan = PrunePlan.of_blocks(model.info.num_layers, Block(start={block.start}, n={block.n}))\n"


def _ref(ref: ModelRef) -> str:
    words = [f"id={ref.id!r}"]
    words += [f"revision={ref.revision!r}"] if ref.revision else []
    words += [f"{k}={v!r}" for k, v in (("dtype", ref.dtype), ("device", ref.device)) if v != "auto"]
    return f"ModelRef({', '.join(words)})"


def _spec(spec: TextSpec) -> str:
    words = [f"kind={spec.kind!r}", f"value={spec.value!r}"]
    words += [f"key={spec.key!r}"] if spec.key != "text" else []
    words += [f"subset={spec.subset!r}"] if spec.subset else []
    words += [f"split={spec.split!r}"] if spec.split != "train" else []
    words += [f"limit={spec.limit}"] if spec.limit is not None else []
    words += [f"max_length={spec.max_length}"] if spec.max_length != 256 else []
    words += [f"bos={spec.bos!r}"] if spec.bos != "auto" else []
    return f"TextSpec({', '.join(words)})"


def _model_options(ref: ModelRef) -> list[str]:
    words = ["--revision", ref.revision] if ref.revision else []
    for option, value in (("--dtype", ref.dtype), ("--device", ref.device)):
        words += [option, value] if value != "auto" else []
    return words


def _block(block: Block) -> list[str]:
    return ["--start", str(block.start), "--n", str(block.n)]


def _text_options(spec: TextSpec) -> list[str]:
    option = {"builtin": "--builtin", "file": "--text", "dataset": "--dataset", "paste": "--text"}[spec.kind]
    words = [option, "pasted.txt" if spec.kind == "paste" else spec.value]
    words += ["--key", spec.key] if spec.key != "text" else []
    words += ["--subset", spec.subset] if spec.subset else []
    words += ["--split", spec.split] if spec.split != "train" else []
    words += ["--limit", str(spec.limit)] if spec.limit is not None else []
    words += ["--max-length", str(spec.max_length)] if spec.max_length != 256 else []
    return words + (["--bos", spec.bos] if spec.bos != "auto" else [])


def _command(words: list[str], spec: TextSpec) -> str:
    note = "# save the pasted text as pasted.txt first\n" if spec.kind == "paste" else ""
    return note + shlex.join(words)


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
    which = measured.show(state)
    drawn = measured.drawn_values(which, criterion, distances, losses)
    if drawn is None:
        return None
    criterion = drawn_criterion(state, which, criterion, drawn)
    look = map_look(state, which, chosen, dark=False)
    return Picture(
        figure=charts.distance_map(drawn, criterion, model, look),
        words=map_alt(drawn, criterion, model),
        name=f"shortviz-{which}-{criterion}",
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
        if ref is not None:
            spec = s.evaluation(state)
            with st.popover("Copy as code", icon=":material/code:", width="content"):
                python, command = st.tabs(["Python", "Command"])
                python.code(evaluate_python(ref, block, spec, measure.APP_WINDOWS), language="python")
                command.code(evaluate_command(ref, block, spec, measure.APP_WINDOWS), language="bash")


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
        return agreement_command(*both), agreement_python(*both)
    if view == "Curve":
        return (
            curve_command(ref, evaluation, windows),
            losses_python(ref, evaluation, windows),
        )
    if measured.show(state) == "measured":
        return (
            losses_command(ref, evaluation, windows),
            losses_python(ref, evaluation, windows),
        )
    criterion = criterion_of(state, run.distances) if run is not None and run.distances is not None else "angular_last"
    return measure_command(ref, calibration), measure_python(ref, calibration, criterion)


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
        return own, measure.APP_WINDOWS
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
