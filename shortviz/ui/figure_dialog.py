"""The figure that is on screen, for a paper: light, sharp, saved by the browser as SVG or PNG."""

from dataclasses import dataclass
from typing import Any

import streamlit as st

from shortviz import charts, loss_charts
from shortviz.agreement import agreement
from shortviz.curve import curve_from_map
from shortviz.paper_figure import image_options, paper_figure
from shortviz.records import Block
from shortviz.ui import map_view, measured
from shortviz.ui import state as s
from shortviz.ui.shown import Shown
from shortviz.ui.words import plain

KINDS = {"svg": "SVG (vector)", "png": "PNG (3600 x 2560)"}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Picture:
    """A figure, what it shows in words, and the name of its file."""

    figure: Any
    words: str
    name: str


def picture(shown: Shown, state: s.State, chosen: Block | None) -> Picture | None:
    """Return the chart of the view that is on screen; None where the view has none or it is not measured."""
    run, view = shown.run, state.get(s.VIEW, map_view.VIEWS[0])
    if run is None:
        return None
    distances, losses, model = run.distances, run.losses, run.model
    criterion = map_view.criterion_of(state, distances) if distances is not None else ""
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
    drawn = measured.drawn(which, criterion, distances, losses)
    if drawn is None:
        return None
    criterion = map_view.drawn_criterion(state, which, criterion, drawn)
    look = map_view.map_look(state, which, chosen, dark=False)
    return Picture(
        figure=charts.distance_map(drawn, criterion, model, look),
        words=charts.map_alt(drawn, criterion, model),
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
