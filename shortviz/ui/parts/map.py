"""The left side of the Map page: what stands behind the map, and its views."""

from collections.abc import Mapping, Sequence
from functools import partial

import streamlit as st

from shortviz.analysis.agreement import agreement, agreement_table
from shortviz.criteria.base import label
from shortviz.figures import losses as loss_charts
from shortviz.figures import map as charts
from shortviz.figures.cells import best_table, map_alt, map_table
from shortviz.records.formatting import count, duration
from shortviz.records.measured import BlockDistances, BlockLosses, Evaluation, windows_words
from shortviz.records.model import ModelInfo
from shortviz.records.plan import Block
from shortviz.records.run import Run
from shortviz.service.queue import JobState
from shortviz.service.service import Service
from shortviz.ui.parts import curve, search, sensitivity
from shortviz.ui.parts.notes import MEASURE_LOSS, chart, dark, missing, plain, progress_words
from shortviz.ui.parts.pointer import map_chart
from shortviz.ui.session import state as s
from shortviz.ui.session.shown import (
    FONT,
    VIEWS,
    Shown,
    choose,
    colour_of,
    criterion_of,
    drawn,
    job_of,
    parse_cell,
    parse_row,
    scale_of,
)

_AGREEMENT_COLUMNS = {
    # Short heads and narrow columns: on a phone they stand side by side.
    "mark": st.column_config.TextColumn("", width=28, help="The mark of its line in the picture of regret."),
    "criterion": st.column_config.TextColumn(width=110),
    "spearman, all blocks": st.column_config.NumberColumn(
        "rank corr.", width=66, help="Spearman's rank correlation with the measured NLL increase, over all blocks."
    ),
    "spearman, within n": st.column_config.NumberColumn(
        "within n", width=58, help="The same among blocks of one size, averaged over the sizes."
    ),
    "mean regret, nats": st.column_config.NumberColumn(
        "regret", width=52, help="What the block it calls best costs above the best measured, in nats; mean over n."
    ),
    "picks the best start": st.column_config.TextColumn(
        "hits", width=54, help="For how many sizes it picks the start with the lowest measured loss."
    ),
}


def losses_facts(losses: BlockLosses) -> str:
    """Return what text stands behind the measured map, and what is still missing."""
    text = losses.text
    whole = losses.windows[losses.windows > 0]
    least = int(whole.min()) if whole.size else 0
    windows = windows_words(int(whole.max()), text) if least else "a first look"
    words = [f"{count(int(losses.tokens.max()))} tokens a block of {plain(text.words)}, {windows}"]
    if not losses.complete:
        words.append("unfinished")
    if not least:
        words.append("no errors before two windows")
    if losses.seconds:
        words.append(f"measured in {duration(losses.seconds)}")
    return " · ".join(words)


def warning(losses: BlockLosses, distances: BlockDistances | None) -> None:
    """Warn where the losses are scored on the text that the blocks are chosen by."""
    source = losses.text.source
    if distances is not None and distances.text.source == source:
        st.caption(
            f":orange[:material/warning: The losses are scored on the calibration text, {plain(source)}: what was "
            "chosen by it looks better than it is. Choose another evaluation text on the Model page.]"
        )


def agreement_view(
    distances: BlockDistances | None, losses: BlockLosses | None, model: ModelInfo, criterion: str, chosen: Block | None
) -> None:
    """Draw how well the criteria predict the measured loss: points, regret, a table."""
    if distances is None or losses is None:
        missing(f"Agreement needs both maps: the predicted one and the measured one. {MEASURE_LOSS}")
        return
    found = agreement(distances, losses, model)
    alt = loss_charts.agreement_alt(found)
    points, regret = st.columns(2, gap="small")
    with points:
        figure = loss_charts.agreement_figure(distances, losses, criterion, chosen, dark())
        figure.update_layout(height=260, font={"family": FONT, "size": 11})
        chart(figure, "agreement_points", alt, words="")
    with regret:
        figure = loss_charts.regret_figure(found, dark())
        figure.update_layout(height=260, showlegend=False, font={"family": FONT, "size": 11})
        chart(figure, "agreement_regret", alt, words="")
    st.caption(plain(alt))
    words = agreement_table(found).assign(criterion=[label(one.criterion) for one in found])
    marks = [loss_charts.mark(index) for index in range(len(found))]
    words.insert(0, "mark", [glyph for glyph, _ in marks])
    st.dataframe(
        words.style.format(precision=3, na_rep="").apply(
            lambda _: [f"color: {colour}" for _, colour in marks], subset=["mark"]
        ),
        hide_index=True,
        height="content",
        column_config=_AGREEMENT_COLUMNS,
        alt="Rank correlation and regret of every criterion",
    )


def is_from_map(evaluation: Evaluation) -> bool:
    """Return whether an evaluation was read off the measured map."""
    return evaluation.score.forward_seconds != evaluation.score.forward_seconds


CHART_HEIGHT = 400


def facts(run: Run | None, job: JobState | None) -> None:
    """Say what text stands behind the map; while it grows, how far it is."""
    state = s.session()
    found = drawn(state, run)
    with st.container(gap=None, width="stretch"):
        if job is not None and job.live:
            st.caption(progress_words(job))
            st.progress(job.fraction)
        elif run is None or found is None:
            st.caption("Not measured yet.")
        elif job_of(state, run) == "losses" and run.losses is not None:
            st.caption(losses_facts(run.losses))
            warning(run.losses, run.distances)
        elif run.distances is not None:
            st.caption(_distance_facts(run.distances))


def _distance_facts(distances: BlockDistances) -> str:
    text = distances.text
    tokens = f", {distances.tokens_words}" if distances.tokens_words else ""
    time = f", measured in {duration(distances.seconds)}" if distances.seconds else ""
    return f"Averaged over {distances.rows_words} of {plain(text.words)}{tokens}, {plain(text.bos)}{time}."


def views(
    bench: Service, shown: Shown, jobs: Mapping[str, JobState | None], model: ModelInfo, chosen: Block | None
) -> bool:
    """Draw the chosen view of the run; False where it is not measured yet.

    Choosing in the map, the table or the list of best blocks chooses the same block.
    """
    state, run = s.session(), shown.run
    distances, losses = (run.distances, run.losses) if run is not None else (None, None)
    view = state.get(s.VIEW, VIEWS[0])
    criterion = criterion_of(state, distances) if distances is not None else ""
    if view == "Agreement":
        agreement_view(distances, losses, model, criterion, chosen)
        return True
    if view == "Curve":
        curve.draw(bench, shown, jobs)
        return True
    if view == "Texts":
        sensitivity.draw(bench, shown, distances, criterion, chosen, jobs["texts"])
        return True
    found = drawn(state, run)
    if view == "Best per n" and _searched(bench, shown, jobs):
        return True
    if found is None:
        return False
    if view == "Table":
        _table(*found)
    elif view == "Best per n":
        _best(*found, model)
    else:
        look = charts.MapView(scale=scale_of(state, run), dark=dark())
        figure = charts.distance_map(*found, model, look)
        map_chart(figure, model.num_layers, chosen, choose, key="map", alt=map_alt(*found, model))
    return True


def _table(distances: BlockDistances, criterion: str) -> None:
    table = map_table(distances, criterion)
    st.dataframe(
        table.style.format(precision=4, na_rep=""),
        key="map_table",
        height=CHART_HEIGHT, column_config={"_index": "n ↓ start →"},
        on_select=partial(_cell_chosen, distances.num_layers), selection_mode="single-cell",
        alt=f"{label(criterion)} of every block: one row per n, one column per start layer",
    )  # fmt: skip


def _searched(bench: Service, shown: Shown, jobs: Mapping[str, JobState | None]) -> bool:
    """Draw what searches further, above the list; True where it is what a search found that is shown."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        chosen = search.choice(shown, jobs, colour_of(s.session(), shown.run))
        search.further(shown, jobs)
    search.progress(bench, jobs)
    if chosen is not None:
        search.draw(bench, chosen)
    return chosen is not None


def _best(distances: BlockDistances, criterion: str, model: ModelInfo) -> None:
    table = best_table(distances, criterion, model)
    rows_needed = distances.settling.get(criterion)
    if rows_needed is not None:
        table = table.assign(needed=[rows_needed.words(int(n)) for n in table["n"]])
    blocks = [Block(start=int(start), n=int(n)) for start, n in zip(table["start"], table["n"], strict=True)]
    st.dataframe(
        table,
        key="best_table",
        column_order=("n", "layers", "distance", "stderr", "gap", "needed", "ties", "note"),
        height=search.HEIGHT,
        hide_index=True,
        on_select=partial(_row_chosen, blocks),
        selection_mode="single-row",
        column_config={
            "n": st.column_config.NumberColumn("n", width="small"),
            "distance": st.column_config.NumberColumn(label(criterion), format="%.4f"),
            "stderr": st.column_config.NumberColumn("± error", format="%.4f"),
            "gap": st.column_config.NumberColumn("gap to second", format="%.4f"),
            "needed": st.column_config.TextColumn("rows needed", help=_NEEDED_HELP),
            "ties": st.column_config.TextColumn("tied with starts"),
        },
        alt="The lowest block of every size n",
    )


_NEEDED_HELP = "Rows of this text after which the best start no longer changes, in 19 of 20 random orders of the rows."


def _cell_chosen(num_layers: int) -> None:
    choose(parse_cell(s.session().get("map_table"), num_layers, range(1, num_layers + 1)))


def _row_chosen(blocks: Sequence[Block]) -> None:
    choose(parse_row(s.session().get("best_table"), blocks))
