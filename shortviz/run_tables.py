"""The tables of a run, in words for people and as CSV for programs. No torch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shortviz import criteria
from shortviz.agreement import Agreement
from shortviz.ledger import Ledger, LedgerStep
from shortviz.ledger_steps import accuracy_change
from shortviz.map_cells import cells
from shortviz.records import Evaluation, Grid, Run
from shortviz.table import Table, left, right
from shortviz.words import UNKNOWN, counted, duration, layers_text, percent, with_error

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


def ledger_table(ledger: Ledger) -> Table:
    """Return every step of a ledger with its losses, errors and what it won back, what matters first.

    Accuracies are there where questions were asked.
    """
    rows = [_step_words(ledger, step) for step in ledger.steps]
    columns = left("step") + right("won back", "over uncut", "NLL, nats", "perplexity", "KL, nats")
    columns += right("accuracy", "change", "time")
    return Table(columns, rows, f"Scored on {ledger.text.source}").without_empty()


def _step_words(ledger: Ledger, step: LedgerStep) -> list[str]:
    found, score = step.evaluation, step.evaluation.score
    task, change = ledger.task(step), accuracy_change(ledger, step)
    asked = UNKNOWN if ledger.task(ledger.steps[0]) is not None else ""
    return [
        step.label,
        percent(step.recovered, step.recovered_stderr),
        with_error(found.nll_increase, found.nll_increase_stderr, sign=True),
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
            with_error(one.score.perplexity, one.score.perplexity_stderr),
            with_error(one.nll_increase, one.nll_increase_stderr, sign=True),
            with_error(one.kl, one.kl_stderr),
            percent(one.same_top1, one.same_top1_stderr),
            f"{counted(one.score.tokens, 'token')} of {one.text.source}",
        ]
        for one in evaluations
    ]
    heads = right("perplexity", "NLL increase, nats (paired)", "KL, nats", "same next token") + left("scored on")
    return Table(left("removed layers") + heads, rows, "Evaluations")
