"""Records as Plotly figures, tables and words. No streamlit, no torch."""

from shortviz.difference_chart import difference_alt, difference_figure
from shortviz.map_cells import label
from shortviz.map_chart import MapView, Scale, distance_map
from shortviz.map_tables import best_table, map_alt, map_table

__all__ = [
    "MapView",
    "Scale",
    "best_table",
    "difference_alt",
    "difference_figure",
    "distance_map",
    "label",
    "map_alt",
    "map_table",
]
