"""A run as one HTML file that a person can mail: maps, curve, tables, citations; it loads nothing from anywhere."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.io import to_html

from shortviz import criteria
from shortviz.analysis.agreement import Agreement, agreement
from shortviz.analysis.curve import curve_from_map
from shortviz.analysis.planning import cells
from shortviz.criteria.base import MEASURED, label
from shortviz.errors import RunError
from shortviz.figures import losses as loss_charts
from shortviz.figures import map as charts
from shortviz.figures.cells import as_map, best_blocks, best_words, grid_of, map_alt
from shortviz.files import write_atomically
from shortviz.records.formatting import UNKNOWN, counted, duration, layers_text, percent, size, times, with_error
from shortviz.records.ledger import Ledger, LedgerStep, accuracy_change, verdicts
from shortviz.records.measured import BlockDistances, BlockLosses, Evaluation, Grid
from shortviz.records.model import ModelInfo, hub_name
from shortviz.records.run import Run, bibtex_of
from shortviz.records.table import Table, left, right

if TYPE_CHECKING:
    import pandas as pd


# The tables of a run, in words for people and as CSV for programs. No torch.


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


def ledger_table(ledger: Ledger) -> Table:
    """Return every step of a ledger with its losses, errors and what it won back, what matters first.

    Accuracies are there where questions were asked.
    """
    rows = [_step_words(ledger, step) for step in ledger.steps]
    columns = left("step") + right("won back", "perplexity over uncut", "NLL, nats", "perplexity", "KL, nats")
    columns += right("accuracy", "change", "time")
    return Table(columns, rows, f"Scored on {ledger.text.source}").without_empty()


def _step_words(ledger: Ledger, step: LedgerStep) -> list[str]:
    found, score = step.evaluation, step.evaluation.score
    task, change = ledger.task(step), accuracy_change(ledger, step)
    asked = UNKNOWN if ledger.task(ledger.steps[0]) is not None else ""
    return [
        step.label,
        percent(step.recovered, step.recovered_stderr),
        times(found.nll_increase, found.nll_increase_stderr),
        with_error(score.nll, score.nll_stderr),
        with_error(score.perplexity, score.perplexity_stderr),
        with_error(found.kl, found.kl_stderr),
        percent(task.accuracy, task.accuracy_stderr) if task is not None else asked,
        percent(*change, sign=True) if change is not None else asked,
        duration(step.seconds) if step.treatments else UNKNOWN,
    ]


def agreement_words(found: Sequence[Agreement]) -> Table:
    """Return how well each criterion predicts the measured loss."""
    rows = [
        [
            criteria.label(one.criterion),
            *(with_error(value) for value in (one.spearman, one.spearman_within, one.mean_regret)),
            f"{sum(r.picked == r.best for r in one.regrets)} of {len(one.regrets)}",
        ]
        for one in found
    ]
    heads = right("Spearman, all", "Spearman, within n", "mean regret, nats", "picks the best start")
    return Table(left("criterion") + heads, rows, "Agreement of each criterion with the measured increase in NLL")


def evaluations_table(evaluations: Sequence[Evaluation]) -> Table:
    """Return cuts that were measured one by one."""
    rows = [
        [
            layers_text(one.removed),
            times(one.nll_increase, one.nll_increase_stderr),
            with_error(one.score.perplexity, one.score.perplexity_stderr),
            with_error(one.kl, one.kl_stderr),
            percent(one.same_top1, one.same_top1_stderr),
            f"{counted(one.score.tokens, 'token')} of {one.text.source}",
        ]
        for one in evaluations
    ]
    heads = right("perplexity over uncut (paired)", "perplexity", "KL, nats", "same next token") + left("scored on")
    return Table(left("removed layers") + heads, rows, "Evaluations")


MARK = "<!-- a report by shortviz -->"
"""Stands in every report, so that writing one over another is safe and over anything else is refused."""

_TEMPLATES = Environment(
    loader=PackageLoader("shortviz"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
"""Whatever is not marked as HTML is escaped: names come from outside."""


def write_report(run: Run, target: Path, *, criterion: str = "") -> None:
    """Write the report of a run; it takes the place of an older report, never of another file.

    Raises RunError where the target is something else or the criterion was not measured, ResourceError where the disk
    will not take it.
    """
    if target.is_dir() or (target.exists() and not _is_report(target)):
        raise RunError(f"{target} is there and is not a report of shortviz; choose another file to write.")
    content = report_html(run, criterion=criterion).encode()
    write_atomically(target, lambda file: file.write(content))


def report_html(run: Run, *, criterion: str = "") -> str:
    """Return the report of a run as HTML; `criterion` is the one that is drawn, the first that was measured if empty.

    Raises RunError where that criterion was not measured.
    """
    run, figures = _for_others(run), _Figures()
    predicted = None if run.distances is None else _predicted(run.distances, run.model, criterion, figures)
    return _TEMPLATES.get_template("report.html").render(
        run=run,
        mark=Markup(MARK),
        counted=counted,
        facts=_facts(run),
        predicted=predicted,
        measured=None if run.losses is None else _measured(run.losses, run.distances, run.model, figures),
        evaluations=evaluations_table(run.evaluations),
        ledgers=[(layers_text(ledger.removed), ledger_table(ledger), verdicts(ledger)) for ledger in run.ledgers],
        bibtex=bibtex_of(run),
    )


def _for_others(run: Run) -> Run:
    """Return the run with the name of a local model in place of its path, which is nobody else's business."""
    return replace(run, model=replace(run.model, id=hub_name(run.model) or Path(run.model.id).name))


def _is_report(target: Path) -> bool:
    with target.open("rb") as file:
        return MARK.encode() in file.read(200)


def _chosen(distances: BlockDistances, criterion: str) -> str:
    if criterion and criterion not in distances.criteria:
        known = ", ".join(distances.criteria)
        raise RunError(f"This run holds no criterion {criterion!r}; choose one of {known}.")
    return criterion or ("angular_last" if "angular_last" in distances.criteria else next(iter(distances.criteria)))


def _facts(run: Run) -> Table:
    model = run.model
    rows = [
        ("architecture", model.architecture),
        ("layers", f"{model.num_layers}"),
        ("parameters", f"{model.parameters:,}"),
        ("weights", f"{size(model.bytes)} as {model.dtype}"),
        ("revision", model.revision or "local or default"),
        ("measured", run.created.replace("T", " ") or "unknown"),
    ]
    return Table(left("", ""), rows, "Model")


def _predicted(distances: BlockDistances, model: ModelInfo, wanted: str, figures: "_Figures") -> dict[str, Any]:
    criterion = _chosen(distances, wanted)
    others = [name for name in distances.criteria if name != criterion]
    return {
        "name": criteria.label(criterion),
        "map": figures.map(distances, criterion, model),
        "best": _best(distances, criterion, model),
        "others": [(criteria.label(name), _best(distances, name, model)) for name in others],
    }


def _best(distances: BlockDistances, criterion: str, model: ModelInfo) -> Table:
    grid, measured = grid_of(distances, criterion), criterion in MEASURED
    samples = counted(grid.samples, "window" if measured else "row")
    words = f"Best block of each size by {label(criterion)}, over {samples}"
    return best_words(best_blocks(grid, model, distances.norms.sink_layers), "value", caption=words, sign=measured)


def _measured(
    losses: BlockLosses, distances: BlockDistances | None, model: ModelInfo, figures: "_Figures"
) -> dict[str, Any]:
    shown = as_map(losses, distances)
    curve = curve_from_map(losses, distances, model)
    lines = loss_charts.curve_figure(curve, top=curve.base_nll + 6.0)
    found = agreement(distances, losses, model) if distances is not None else ()
    return {
        "name": label("nll_increase"),
        "map": figures.map(shown, "nll_increase", model),
        "windows": int(losses.windows.max()),
        "best": _best(shown, "nll_increase", model),
        "curve": figures.draw(lines, loss_charts.curve_alt(curve), 560),
        "finding": loss_charts.agreement_alt(found),
        "agreement": agreement_words(found) if found else None,
    }


class _Drawn(NamedTuple):
    html: Markup
    words: str
    """What the figure shows, for those who do not see it and for print."""


class _Figures:
    """Turns Plotly figures into HTML; the first one brings the one copy of plotly.js with it."""

    def __init__(self) -> None:
        self._count = 0

    def map(self, distances: BlockDistances, criterion: str, model: ModelInfo) -> _Drawn:
        figure = charts.distance_map(distances, criterion, model, charts.MapView())
        height = min(max(480, 12 * model.num_layers), 1400)
        return self.draw(figure, map_alt(distances, criterion, model), height)

    def draw(self, figure: Any, words: str, height: int) -> _Drawn:
        self._count += 1
        figure.update_layout(height=height, paper_bgcolor="#ffffff", plot_bgcolor="#ffffff")
        drawn = to_html(
            figure,
            full_html=False,
            include_plotlyjs=self._count == 1,
            include_mathjax=False,
            div_id=f"figure-{self._count}",
            config={
                "displaylogo": False,
                "responsive": True,
                "toImageButtonOptions": {"format": "svg", "filename": f"shortviz-{self._count}"},
            },
        )
        return _Drawn(Markup(drawn), words)
