"""Lessons on measured loss: where the distance parts from it, and what happens as more is removed."""

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from shortviz import criteria, lesson_answer_charts, lesson_charts, loss_charts
from shortviz.curve import curve_from_map
from shortviz.lesson_data import KINDS, lesson_data
from shortviz.planning import best_start
from shortviz.records import Block, Grid
from shortviz.table import Table, right
from shortviz.ui import state as s
from shortviz.ui.learn_parts import bundled, bundled_distances, bundled_losses, chart, dark, for_real
from shortviz.ui.selection import parse_selection
from shortviz.words import counted, layer_words, with_error

CRITERIA = ("angular_last", "angular_mean", "block_influence")
POINTS = "learn_points"
SPOTLIGHT = "learn_spotlight"


def loss(words: DeltaGenerator, picture: DeltaGenerator) -> None:
    """Draw predicted against measured, with the sink layer in the light."""
    run, distances, losses = bundled(), bundled_distances(), bundled_losses()
    layers, state = run.model.num_layers, s.session()
    sink = next(iter(distances.norms.sink_layers), layers // 2)
    with words:
        st.markdown(
            "The map **predicts**. To **measure**, take the block out and score the model on text that it was not "
            "chosen "
            "on: the increase of its loss, in nats per token. Each point is a block; were the prediction perfect, the "
            "points would lie on one rising line."
        )
        name = st.selectbox("Predicted by", CRITERIA, format_func=criteria.label, key="learn_criterion")
        layer = st.number_input("Ring this single layer", 0, layers - 1, value=sink, key=SPOTLIGHT, width=200)
        grid = distances.criteria[name]
        st.markdown(_neighbours(grid, losses.increase, int(layer)))
        st.markdown(
            f"**Where they part.** Layer {sink} writes the attention sink. Its angle is like its neighbours'; its loss "
            "is not. A criterion that looks only at directions of later tokens cannot see it."
        )
        for_real(
            f"Measure layer {layer} on the map", Block(start=int(layer), n=1), show="measured", view="Map", scale="raw"
        )
    with picture:
        figure = loss_charts.agreement_figure(distances, losses, name, Block(start=int(layer), n=1), dark())
        figure.update_layout(height=lesson_charts.HEIGHT, font={"family": lesson_charts.FONT, "size": 12})
        st.plotly_chart(
            figure,
            theme=None,
            key=POINTS,
            config={"displaylogo": False},
            on_select=lambda: _ring(state, layers),
            selection_mode="points",
            alt=_loss_alt(grid, losses.increase, sink),
        )
        st.caption(
            f"{_loss_alt(grid, losses.increase, sink)} "
            f"Measured on {counted(losses.text.tokens, 'token')} of {losses.text.source}."
        )


def _neighbours(grid: Grid, increase: Grid, layer: int) -> str:
    rows = []
    for i in range(max(0, layer - 1), min(grid.num_layers, layer + 2)):
        block = Block(start=i, n=1)
        name = f"**{i}**" if i == layer else str(i)
        rows.append([name, with_error(*grid.at(block)), with_error(*increase.at(block), sign=True)])
    return Table(right("layer", "angle, of π", "measured increase, nats"), rows).markdown()


def _loss_alt(grid: Grid, increase: Grid, sink: int) -> str:
    block = Block(start=sink, n=1)
    return (
        f"Layer {sink} is number {grid.rank(block)} of {grid.num_layers} by the prediction and number "
        f"{increase.rank(block)} by the measured loss, which is {with_error(*increase.at(block))} nats higher without "
        "it."
    )


def _ring(state: s.State, layers: int) -> None:
    block = parse_selection(state.get(POINTS), layers)
    if block is not None and block.n == 1:
        state[SPOTLIGHT] = block.start


def curve(words: DeltaGenerator, picture: DeltaGenerator) -> None:
    """Draw loss and right answers against the number of layers removed."""
    run, distances, losses, data = bundled(), bundled_distances(), bundled_losses(), lesson_data()
    sizes = [len(a.removed) for a in data.cuts if a.removed]
    with words:
        st.markdown(
            "Remove the best block of each size. The **loss** below rises steadily. What the model can *do*, above, "
            f"falls in steps and at different moments: {len(data.questions)} short questions, a quarter of each kind, "
            "right "
            "when the most likely continuation begins with the answer."
        )
        n = st.select_slider("Layers removed", sizes, value=sizes[1], key="learn_n")
        answers = next(a for a in data.cuts if len(a.removed) == n)
        start = answers.removed[0]
        increase = losses.increase.at(Block(start=start, n=n))
        st.markdown(
            f"Without {layer_words(start, n)} the loss is {with_error(*increase)} nats higher; answered rightly: "
            + ", ".join(f"{kind} {data.right(answers, kind)[0]} of {data.right(answers, kind)[1]}" for kind in KINDS)
            + "."
        )
        st.markdown(
            "In large models the paper finds the same shape, later: question answering stays flat until a quarter to a "
            "half of the layers are gone, then drops at once, while the healed loss rises smoothly."
        )
        best = best_start(losses.increase, n, run.model)
        block = Block(start=start if best is None else best, n=n)
        for_real("Open the curve of all strategies", block, show="measured", view="Curve")
    with picture:
        figure = lesson_answer_charts.curve_figure(data, curve_from_map(losses, distances, run.model), n, dark=dark())
        chart(figure, "learn_curve", lesson_answer_charts.curve_alt(data))
