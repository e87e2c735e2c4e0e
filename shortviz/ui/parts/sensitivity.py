"""The Map page's view of another text: where the best start moves, and measuring several texts in one go."""

from collections.abc import Sequence

import streamlit as st

from shortviz.analysis.compare import StartShift, start_shifts
from shortviz.analysis.rows_needed import rows_needed_words
from shortviz.errors import RunError
from shortviz.figures import map as charts
from shortviz.records.formatting import counted
from shortviz.records.measured import BlockDistances
from shortviz.records.model import ModelInfo
from shortviz.records.plan import Block
from shortviz.records.run import Run
from shortviz.records.text import TextSpec
from shortviz.runs.library import folders
from shortviz.runs.run import EXAMPLES
from shortviz.service import measure, policy
from shortviz.service.queue import JobState
from shortviz.service.requests import TextsRequest
from shortviz.service.service import Service
from shortviz.settings import settings
from shortviz.text.sources import builtin_names
from shortviz.ui.parts import notes
from shortviz.ui.parts.notes import dark, missing, plain
from shortviz.ui.parts.pointer import map_chart
from shortviz.ui.session import state as s
from shortviz.ui.session.service import start_job
from shortviz.ui.session.shown import Shown, choose, parse_row

RUNS_LOOKED_AT = 12
"""The newest runs; each is a file of some hundred kilobytes."""
CHART_HEIGHT = 400


def draw(
    bench: Service,
    shown: Shown,
    distances: BlockDistances | None,
    criterion: str,
    chosen: Block | None,
    job: JobState | None,
) -> None:
    """Draw the difference between the shown distances and those of another text."""
    if distances is None or shown.model is None:
        missing("Comparing texts needs distances: colour by one and press Measure.", CHART_HEIGHT)
        return
    others = _others(bench, shown, criterion)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        key = _picker(others)
        _measure_more(bench, shown, job)
    if job is not None and job.live:
        notes.job_progress(job)
    notes.job_error(job)
    if key is None:
        missing("No distances of this model on another text: measure on more texts.", CHART_HEIGHT)
        return
    other = others[key].distances
    assert other is not None, "only runs with distances are offered"
    shifts = start_shifts(distances.criteria[criterion], other.criteria[criterion], shown.model)
    _chart(distances, other, shown.model, criterion, chosen, shifts)
    _table(distances, other, criterion, shifts)


def _others(bench: Service, shown: Shown, criterion: str) -> dict[str, Run]:
    """Return the newest runs of the same model on other texts that have the criterion."""
    found: dict[str, Run] = {}
    for key in [folder.name for folder in folders(bench.runs.folder)[:RUNS_LOOKED_AT]] + [*EXAMPLES]:
        try:
            run = bench.runs.get(key)
        except RunError:
            continue
        if run is not None and key != shown.key and _comparable(run, shown, criterion):
            found[key] = run
    return found


def _comparable(run: Run, shown: Shown, criterion: str) -> bool:
    if shown.model is None or run.distances is None or criterion not in run.distances.criteria:
        return False
    if not policy.may_show(settings(), run):
        return False
    one, other = run.model, shown.model
    return (one.id, one.num_layers, one.parameters) == (other.id, other.num_layers, other.parameters)


def _picker(others: dict[str, Run]) -> str | None:
    if not others:  # a box drawn empty would keep its nothing when there is something
        return None
    return st.selectbox(
        "Compare with",
        list(others),
        format_func=lambda key: _words(others[key]),
        key="other_run",
        persist_state="session",
        width=320,
    )


def _words(run: Run) -> str:
    rows = run.distances.samples if run.distances is not None else 0
    return f"{run.text.source}, {counted(rows, 'row')} of {run.text.max_length}"


def _measure_more(bench: Service, shown: Shown, job: JobState | None) -> None:
    live = job is not None and job.live
    off = notes.why_off(shown.handle is None, False)
    with st.popover("Measure on more texts", icon=":material/library_add:", disabled=bool(off), help=off or None):
        names = st.multiselect("Built-in texts", builtin_names(), key="more_texts", persist_state="session")
        st.caption("As many rows of as many tokens as the calibration text; each text becomes a run of its own.")
        why = off or notes.why_off(False, live) or ("" if names else "Choose texts first, above.")
        st.button(
            "Measure these texts", icon=":material/play_arrow:", disabled=bool(why), help=why or None,
            on_click=_start, args=(shown, tuple(names)), key="measure_texts",
        )  # fmt: skip
    if live and job is not None:
        st.button("Stop", icon=":material/stop:", on_click=bench.stop, args=(job.id,), key="stop_texts")


def _start(shown: Shown, names: tuple[str, ...]) -> None:
    state = s.session()
    if shown.ref is None or shown.handle is None:
        return
    own = s.calibration(state)
    same = {field: getattr(own, field) for field in ("max_length", "bos", "special_tokens")}
    texts = tuple(TextSpec(kind="builtin", value=name, limit=own.limit or 64, **same) for name in names)
    batch = measure.app_batch(shown.handle.info.device)
    start_job(TextsRequest(model=shown.ref, texts=texts, batch_size=batch))
    st.rerun()  # the whole page, so that it follows the job


def _chart(
    one: BlockDistances,
    other: BlockDistances,
    model: ModelInfo,
    criterion: str,
    chosen: Block | None,
    shifts: Sequence[StartShift],
) -> None:
    state = s.session()
    names = _names(one, other)
    grids = one.criteria[criterion], other.criteria[criterion]
    figure = charts.difference_figure(
        *grids, model, criterion=criterion, names=names, per_n=state.get(s.SCALE) != "value",
        dark=dark(),
    )  # fmt: skip
    alt = charts.difference_alt(*grids, model, criterion=criterion, names=names)
    map_chart(figure, model.num_layers, chosen, choose, key="texts_map", alt=alt, height=CHART_HEIGHT)
    st.caption(plain(alt))
    for name, distances in zip(names, (one, other), strict=True):
        found = distances.settling.get(criterion)
        if found is not None:
            st.caption(plain(f"{name}: {rows_needed_words(found, [shift.n for shift in shifts])}"))


def _names(one: BlockDistances, other: BlockDistances) -> tuple[str, str]:
    """Return short names of two texts; the row counts too where the source is the same."""
    names = [text.source.removeprefix("built-in ") for text in (one.text, other.text)]
    if names[0] == names[1]:
        names = [
            f"{name}, {counted(d.samples, 'row')} of {d.text.max_length}"
            for name, d in zip(names, (one, other), strict=True)
        ]
    return names[0], names[1]


def _table(one: BlockDistances, other: BlockDistances, criterion: str, shifts: Sequence[StartShift]) -> None:
    blocks = [Block(start=shift.other, n=shift.n) for shift in shifts]
    st.dataframe(
        [_row(shift, one, other, criterion) for shift in shifts],
        key="texts_table",
        hide_index=True,
        height=240,
        on_select=lambda: choose(parse_row(s.session().get("texts_table"), blocks)),
        selection_mode="single-row",
        column_config={"cost": st.column_config.NumberColumn("cost of the move", format="%.4f", help=_COST_HELP)},
        alt="Best start of each n on both texts",
    )


_COST_HELP = "What the other text's choice costs on this text, in the units of the criterion."


def _row(shift: StartShift, one: BlockDistances, other: BlockDistances, criterion: str) -> dict[str, object]:
    needs = [d.settling.get(criterion) for d in (one, other)]
    rows = [found.words(shift.n) if found is not None else "" for found in needs]
    return {
        "n": shift.n,
        "start here": shift.one,
        "rows needed here": rows[0],
        "start there": shift.other,
        "rows needed there": rows[1],
        "moves by": shift.moved,
        "within errors": shift.tied,
        "cost": shift.cost,
    }
