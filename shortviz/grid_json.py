"""Distances and measured losses as JSON and back: rows n-1 of L-n+1 numbers, NaN as null. No torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from shortviz.record_json import number, read_rows_needed, read_score, rows_needed_json, score_json
from shortviz.records import BlockDistances, BlockLosses, BoundaryNorms, Floats, Grid, TextInfo


def distances_json(distances: BlockDistances) -> dict[str, Any]:
    """Return the part of a run's JSON object that tells its distances."""
    found: dict[str, Any] = {
        "distances": {name: _grid_json(grid) for name, grid in distances.criteria.items()},
        "norms": {"first": _list(distances.norms.first), "rest": _list(distances.norms.rest)},
        "seconds": distances.seconds,
        "rows": distances.samples,
        "settling": {name: rows_needed_json(one) for name, one in distances.settling.items()},
    }
    if distances.tokens_per_row is not None:
        found["tokens_per_row"] = distances.tokens_per_row
    return found


def read_distances(found: Mapping[str, Any], num_layers: int, text: TextInfo) -> BlockDistances | None:
    """Return the distances of a run's JSON object, None where it has none; raises what `parse_run` catches."""
    if not found.get("distances"):
        return None
    return BlockDistances(
        num_layers=num_layers,
        criteria={name: _grid(g, num_layers) for name, g in found["distances"].items()},
        norms=BoundaryNorms(first=_array(found["norms"]["first"]), rest=_array(found["norms"]["rest"])),
        text=text,
        seconds=float(found["seconds"]),
        rows=int(found.get("rows", 0)),
        settling={name: read_rows_needed(one) for name, one in found.get("settling", {}).items()},
        tokens_per_row=found.get("tokens_per_row"),
    )


def losses_json(losses: BlockLosses) -> dict[str, Any]:
    """Return a run's `losses`."""
    tokens = {"base": losses.base.nll, "tokens": int(losses.tokens.max())}
    size = losses.num_layers
    return {
        "nll": tokens | _grid_json(losses.nll),
        "increase": tokens | _grid_json(losses.increase),
        "kl": tokens | _grid_json(losses.kl),
        "windows": [losses.windows[n - 1, : size - n + 1].tolist() for n in range(1, size + 1)],
        "cell_tokens": [losses.tokens[n - 1, : size - n + 1].tolist() for n in range(1, size + 1)],
        "base": score_json(losses.base),
        "text": asdict(losses.text),
        "replayed": losses.replayed,
        "complete": losses.complete,
        "seconds": losses.seconds,
    }


def read_losses(found: Mapping[str, Any], size: int) -> BlockLosses:
    """Return the measured map of a run's `losses`; raises what `parse_run` catches."""
    counts = np.zeros((2, size, size), dtype=np.int64)
    for values, name in zip(counts, ("windows", "cell_tokens"), strict=True):
        for row, line in enumerate(found[name]):
            values[row, : len(line)] = line
    return BlockLosses(
        num_layers=size,
        base=read_score(found["base"]),
        nll=_grid(found["nll"], size),
        increase=_grid(found["increase"], size),
        kl=_grid(found["kl"], size),
        windows=counts[0],
        tokens=counts[1],
        text=TextInfo(**found["text"]),
        **{name: found[name] for name in ("replayed", "complete", "seconds")},
    )


def _grid_json(grid: Grid) -> dict[str, Any]:
    size = grid.num_layers
    rows = {"mean": grid.mean, "stderr": grid.stderr}
    return {"samples": grid.samples} | {
        name: [_list(values[n - 1, : size - n + 1]) for n in range(1, size + 1)] for name, values in rows.items()
    }


def _grid(found: Mapping[str, Any], size: int) -> Grid:
    mean, stderr = np.full((2, size, size), np.nan)
    for n in range(1, size + 1):
        for values, name in ((mean, "mean"), (stderr, "stderr")):
            row = _array(found[name][n - 1])
            if row.shape != (size - n + 1,):  # one number alone would spread over the whole row
                raise ValueError(f"row {n} of a {name} has {len(row)} numbers, {size - n + 1} are expected")
            values[n - 1, : size - n + 1] = row
    return Grid(mean=mean, stderr=stderr, samples=int(found["samples"]))


def _list(values: Floats) -> list[float | None]:
    return [None if math.isnan(v) else float(v) for v in values]


def _array(values: Sequence[float | None]) -> Floats:
    return np.array([number(v) for v in values], dtype=np.float64)
