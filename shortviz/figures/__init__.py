"""Records drawn with Plotly. No torch."""
