"""How well a criterion predicts what a cut really costs: rank correlation and regret. No torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shortviz.analysis.planning import best_starts, exportable
from shortviz.records.json import Floats
from shortviz.records.measured import BlockDistances, BlockLosses, Grid
from shortviz.records.model import ModelInfo
from shortviz.records.plan import Block

if TYPE_CHECKING:
    import pandas as pd  # a third of a second, which opening a run need not wait for


@dataclass(frozen=True, kw_only=True, slots=True)
class Regret:
    """What it costs to trust a criterion for blocks of n layers."""

    n: int
    picked: int
    """Start of the block the criterion calls best."""
    best: int
    """Start of the block with the lowest measured loss."""
    nats: float
    """NLL of the picked block minus NLL of the best one."""
    stderr: float
    """Standard error of `nats`, the errors of both blocks added as if independent: an upper bound where, as usual,
    a window that is hard for one cut model is hard for the other. NaN with fewer than two windows."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Agreement:
    """One criterion beside the measured map."""

    criterion: str
    spearman: float
    """Rank correlation over all measured blocks; a large part of it is that longer blocks cost more."""
    spearman_rows: Floats
    """Rank correlation within each row n = 1 .. L, what matters for choosing a start; NaN with fewer than 3 blocks."""
    regrets: tuple[Regret, ...]

    @property
    def spearman_within(self) -> float:
        """Mean of the rank correlations within rows, each row weighted by its blocks; NaN where there is no row."""
        weights = np.arange(len(self.spearman_rows), 0, -1, dtype=float)
        known = np.isfinite(self.spearman_rows)
        return float(np.average(self.spearman_rows[known], weights=weights[known])) if known.any() else float("nan")

    @property
    def mean_regret(self) -> float:
        """Mean over n of the regret, in nats."""
        return float(np.mean([r.nats for r in self.regrets])) if self.regrets else float("nan")


def spearman(one: Floats, other: Floats) -> float:
    """Return Spearman's rank correlation over the positions where both are finite, ties at their mean rank.

    NaN with fewer than three positions, or where one side is constant.
    """
    import pandas as pd

    known = np.isfinite(one) & np.isfinite(other)
    if known.sum() < 3:
        return float("nan")
    a, b = (pd.Series(values[known]).rank().to_numpy(dtype=np.float64) for values in (one, other))
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else float("nan")


def agreement(distances: BlockDistances, losses: BlockLosses, model: ModelInfo | None = None) -> tuple[Agreement, ...]:
    """Return, for every criterion measured, how well it predicts the measured increase in NLL.

    Blocks without a measured loss are left out; with `model`, so are blocks that cannot be exported.
    """
    measured = exportable(losses.increase, model)
    best, sizes = best_starts(measured), range(1, losses.num_layers)
    found = []
    for name, grid in distances.criteria.items():
        if not grid.samples:
            continue
        picked = best_starts(grid, model)
        regrets = [_regret(n, picked[n], best[n], measured) for n in sizes if n in picked and n in best]
        found.append(
            Agreement(
                criterion=name,
                spearman=spearman(grid.mean.ravel(), measured.mean.ravel()),
                spearman_rows=np.array([spearman(grid.row(n), measured.row(n)) for n in (*sizes, losses.num_layers)]),
                regrets=tuple(regret for regret in regrets if np.isfinite(regret.nats)),
            )
        )
    return tuple(found)


def _regret(n: int, picked: int, best: int, measured: Grid) -> Regret:
    (there, there_error), (here, here_error) = (measured.at(Block(start=s, n=n)) for s in (picked, best))
    error = 0.0 if picked == best else float(np.hypot(there_error, here_error))
    return Regret(n=n, picked=picked, best=best, nats=there - here, stderr=error)


def agreement_table(found: tuple[Agreement, ...]) -> "pd.DataFrame":
    """Return one line per criterion: correlations, mean regret in nats, and how often it picks the best start."""
    import pandas as pd

    return pd.DataFrame(
        {
            "criterion": [a.criterion for a in found],
            "spearman, all blocks": [a.spearman for a in found],
            "spearman, within n": [a.spearman_within for a in found],
            "mean regret, nats": [a.mean_regret for a in found],
            "picks the best start": [
                f"{sum(r.picked == r.best for r in a.regrets)} of {len(a.regrets)}" for a in found
            ],
        }
    )
