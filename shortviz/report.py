"""A run as one HTML file that a person can mail: maps, curve, tables, citations; it loads nothing from anywhere."""

from dataclasses import replace
from pathlib import Path

from shortviz import charts, criteria, loss_charts
from shortviz.agreement import agreement
from shortviz.atomic import write_atomically
from shortviz.citations import bibtex_of
from shortviz.curve import curve_from_map
from shortviz.errors import RunError
from shortviz.ledger import Ledger
from shortviz.map_cells import MEASURED
from shortviz.model_card import hub_name
from shortviz.records import BlockDistances, BlockLosses, Evaluation, ModelInfo, Run, TextInfo
from shortviz.report_html import MARK, Figures, code, facts, folded, heading, page, paragraph, table
from shortviz.words import UNKNOWN, counted, duration, layers_text, percent, size, with_error


def write_report(run: Run, target: Path, *, criterion: str = "") -> None:
    """Write the report of a run; it takes the place of an older report, never of another file.

    Raises RunError where the target is something else or the criterion was not measured, ResourceError where the disk
    will not take it.
    """
    if target.is_dir() or (target.exists() and not _is_report(target)):
        raise RunError(f"{target} is there and is not a report of shortviz; choose another --out.")
    content = report_html(run, criterion=criterion).encode()
    write_atomically(target, lambda file: file.write(content))


def report_html(run: Run, *, criterion: str = "") -> str:
    """Return the report of a run as HTML; `criterion` is the one that is drawn, the first that was measured if empty.

    Raises RunError where that criterion was not measured.
    """
    run = _for_others(run)
    figures = Figures()
    parts = [*_head(run)]
    if run.distances is not None:
        parts += _predicted(run.distances, run.model, _chosen(run.distances, criterion), figures)
    if run.losses is not None:
        parts += _measured(run.losses, run.distances, run.model, figures)
    if run.evaluations:
        parts += [heading("Blocks measured one by one"), _evaluations(run.evaluations)]
    for ledger in run.ledgers:
        parts += [heading(f"What came back after removing layers {layers_text(ledger.removed)}"), _ledger(ledger)]
    parts += [heading("Cite"), code(bibtex_of(run)), heading("Made with"), paragraph(_versions(run), note=True)]
    return page(f"Layers of {run.model.id}", parts)


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


def _head(run: Run) -> list[str]:
    model = run.model
    rows = [
        ("architecture", model.architecture),
        ("layers", f"{model.num_layers}"),
        ("parameters", f"{model.parameters:,}"),
        ("weights", f"{size(model.bytes)} as {model.dtype}"),
        ("revision", model.revision or "local or default"),
        ("measured", run.created.replace("T", " ") or "unknown"),
    ]
    return [
        heading(f"Layers of {model.id}", 1),
        paragraph(
            "Which layers of this model barely change what flows through it, and what removing them really costs."
        ),
        paragraph(
            "A block (start, n) is the n consecutive layers from start on, counted from 0. A low distance predicts "
            "that a block can go; only the measured loss says what its removal costs. ± is one standard error.",
            note=True,
        ),
        facts("Model", rows),
    ]


def _text_words(text: TextInfo, unit: str) -> str:
    return (
        f"Text: {text.source}, {text.rows:,} {unit}, {counted(text.tokens, 'token')}, BOS {text.bos}, "
        f"fingerprint {text.fingerprint[:12]}."
    )


def _predicted(distances: BlockDistances, model: ModelInfo, criterion: str, figures: Figures) -> list[str]:
    figure = charts.distance_map(distances, criterion, model, charts.MapView())
    others = [name for name in distances.criteria if name != criterion]
    return [
        heading(f"Predicted: {criteria.label(criterion)}"),
        figures.draw(figure, charts.map_alt(distances, criterion, model), _map_height(model)),
        paragraph(_text_words(distances.text, "rows"), note=True),
        _best(distances, criterion, model),
        *(folded(f"Best blocks by {criteria.label(name)}", _best(distances, name, model)) for name in others),
    ]


def _best(distances: BlockDistances, criterion: str, model: ModelInfo) -> str:
    found = charts.best_table(distances, criterion, model)
    rows = [
        [
            str(row["n"]),
            str(row["layers"]),
            with_error(row["distance"], row["stderr"]),
            str(row["ties"]),
            str(row["note"]),
        ]
        for _, row in found.iterrows()
    ]
    samples = distances.criteria[criterion].samples
    unit = "windows" if criterion in MEASURED else "rows"
    words = f"Best block of each size by {charts.label(criterion)}, over {samples:,} {unit}"
    return table(words, ["n", "layers", "value", "tied with starts", "note"], rows)


def _measured(losses: BlockLosses, distances: BlockDistances | None, model: ModelInfo, figures: Figures) -> list[str]:
    shown = loss_charts.as_map(losses, distances.norms if distances is not None else None)
    curve = curve_from_map(losses, distances, model)
    lines = loss_charts.curve_figure(curve, top=curve.base_nll + 6.0)
    behind = f"{counted(int(losses.windows.max()), 'window')} of {losses.text.max_length} tokens at most a block"
    parts = [
        heading(f"Measured: {charts.label('nll_increase')}"),
        figures.draw(
            charts.distance_map(shown, "nll_increase", model, charts.MapView()),
            charts.map_alt(shown, "nll_increase", model),
            _map_height(model),
        ),
        paragraph(
            f"{_text_words(losses.text, 'windows')} {behind}{'' if losses.complete else ', unfinished'}.", note=True
        ),
        _best(shown, "nll_increase", model),
        heading("Removal curve"),
        figures.draw(lines, loss_charts.curve_alt(curve), 560),
    ]
    if distances is not None:
        found = agreement(distances, losses, model)
        rows = [
            [
                criteria.label(one.criterion),
                with_error(one.spearman),
                with_error(one.spearman_within),
                with_error(one.mean_regret),
            ]
            for one in found
        ]
        head = ["criterion", "Spearman, all blocks", "Spearman, within n", "mean regret, nats"]
        parts += [
            heading("How well each criterion predicts the measured loss"),
            paragraph(loss_charts.agreement_alt(found)),
            table("Agreement", head, rows),
        ]
    return parts


def _evaluations(evaluations: tuple[Evaluation, ...]) -> str:
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
    head = ["removed layers", "perplexity", "NLL increase, nats (paired)", "KL, nats", "same next token", "scored on"]
    return table("Evaluations", head, rows)


def _ledger(ledger: Ledger) -> str:
    rows = [
        [
            step.label,
            with_error(step.evaluation.score.nll, step.evaluation.score.nll_stderr),
            with_error(step.evaluation.nll_increase, step.evaluation.nll_increase_stderr, sign=True),
            percent(step.recovered, step.recovered_stderr),
            duration(step.seconds) if step.treatments else UNKNOWN,
        ]
        for step in ledger.steps
    ]
    head = ["step", "NLL, nats", "increase, nats (paired)", "share won back", "time"]
    return table(f"Scored on {ledger.text.source}", head, rows)


def _map_height(model: ModelInfo) -> int:
    return min(max(480, 12 * model.num_layers), 1400)


def _versions(run: Run) -> str:
    return ", ".join(f"{name} {version}" for name, version in run.versions.items())
