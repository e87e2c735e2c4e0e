"""A figure for a paper: vector cells in the colours of the map, a white ground, the size that is promised."""

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from shortviz.analysis.curve import curve_from_map
from shortviz.figures import losses
from shortviz.figures import map as charts
from shortviz.figures.theme import HEIGHT, WIDTH, image_options, paper_figure
from shortviz.records.plan import Block
from shortviz.runs.run import example_run


def test_the_cells_of_a_map_are_shapes_in_its_own_colours() -> None:
    run = example_run()
    assert run.distances is not None
    view = charts.MapView(scale="value", selected=Block(start=13, n=3), dark=True)
    drawn = charts.distance_map(run.distances, "angular_last", run.model, view)
    found = paper_figure(drawn)
    cells = [shape for shape in found.layout.shapes if shape.layer == "below"]
    assert len(cells) == 30 * 31 // 2
    low, high = drawn.data[0].zmin, drawn.data[0].zmax
    value = run.distances.criteria["angular_last"].mean[2, 13]
    scale = [list(step) for step in drawn.data[0].colorscale]
    wanted = sample_colorscale(scale, (round(value, 5) - low) / (high - low))[0]
    assert [s.fillcolor for s in cells if (round(s.x0 + 0.47), round(s.y0 + 0.47)) == (13, 3)] == [wanted]
    assert found.layout.shapes[-1].layer != "below", "the chosen block stays outlined, on top"
    assert {trace.opacity for trace in found.data if isinstance(trace, go.Heatmap)} == {0}
    assert drawn.data[0].opacity is None, "the figure on screen is left alone"


def test_a_chart_without_cells_is_only_made_fit_for_print() -> None:
    run = example_run()
    assert run.losses is not None
    curve = curve_from_map(run.losses, run.distances, run.model)
    found = paper_figure(losses.curve_figure(curve, dark=True))
    assert (found.layout.width, found.layout.height, found.layout.paper_bgcolor) == (WIDTH, HEIGHT, "#ffffff")
    assert len(found.data) == len(curve.lines)


def test_a_png_has_four_times_the_pixels_each_way() -> None:
    assert image_options("name", "svg")["scale"] == 1
    assert image_options("name", "png") == {
        "format": "png",
        "filename": "name",
        "width": WIDTH,
        "height": HEIGHT,
        "scale": 4,
    }
