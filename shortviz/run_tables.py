"""The numbers of a run as CSV: one row per block, with everything that is known of it. No torch."""

from typing import TYPE_CHECKING

from shortviz.map_cells import cells
from shortviz.records import Grid, Run

if TYPE_CHECKING:
    import pandas as pd


def block_table(run: Run) -> "pd.DataFrame":
    """Return one row per block: start, n, mean and standard error by every criterion, and the measured losses.

    Columns: start, n, `<criterion>`, `<criterion>_stderr`, ..., and where the measured map is there nll, nll_increase
    and kl with their errors (nats per token), windows and tokens behind them. Not measured is empty.
    """
    import pandas as pd

    blocks = list(cells(run.model.num_layers))
    columns: dict[str, list[float]] = {"start": [b[0] for b in blocks], "n": [b[1] for b in blocks]}
    for name, grid in _grids(run).items():
        columns[name] = [float(grid.mean[n - 1, start]) for start, n in blocks]
        columns[f"{name}_stderr"] = [float(grid.stderr[n - 1, start]) for start, n in blocks]
    if run.losses is not None:
        for name, counts in (("windows", run.losses.windows), ("tokens", run.losses.tokens)):
            columns[name] = [int(counts[n - 1, start]) for start, n in blocks]
    return pd.DataFrame(columns)


def block_csv(run: Run) -> str:
    """Return the table of blocks as CSV."""
    return str(block_table(run).to_csv(index=False))


def _grids(run: Run) -> dict[str, Grid]:
    found = dict(run.distances.criteria) if run.distances is not None else {}
    if run.losses is not None:
        found |= {"nll": run.losses.nll, "nll_increase": run.losses.increase, "kl": run.losses.kl}
    return found
