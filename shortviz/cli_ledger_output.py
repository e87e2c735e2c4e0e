"""What the commands print of a ledger: every step with its loss, its errors and what it won back."""

import math

from shortviz.cli_output import table
from shortviz.ledger import Ledger, LedgerStep
from shortviz.ledger_steps import accuracy_change
from shortviz.planning import layers_text
from shortviz.words import duration

_LOSS = ("NLL", "+-", "increase", "+-", "perplexity", "KL", "won back", "+-")
_HEAD = (*_LOSS, "accuracy", "+-", "change", "+-", "time", "")
_OF_TASKS = (8, 9, 10, 11)


def ledger_text(ledger: Ledger) -> str:
    """Return a ledger as a table, with the text behind its numbers and what was said of each treatment."""
    text, cut = ledger.text, ledger.step("cut")
    score = cut.evaluation.score if cut is not None else None
    scored = f"{score.tokens} scored tokens in {score.windows} windows of {text.max_length}" if score else "nothing"
    rows = [_row(ledger, step) for step in ledger.steps]
    empty = [i for i in _OF_TASKS if all(row[i] == "-" for row in rows)]  # no tasks were scored: no column of dashes
    head, *rows = ([c for i, c in enumerate(row) if i not in empty] for row in (_HEAD, *rows))
    lines = [
        f"Ledger of the cut of layers {layers_text(ledger.removed)} ({len(ledger.removed)} layers)",
        table(head, rows),
        f"Over {scored}; {text.source}; BOS {text.bos}. NLL in nats a token; increase over uncut and share won back "
        "with paired errors.",
        *_questions(ledger),
    ]
    lines += [f"{step.label}: {note}" for step in ledger.steps for note in _notes(step)]
    return "\n".join(lines + _continuations(ledger))


def _row(ledger: Ledger, step: LedgerStep) -> list[str]:
    found, score = step.evaluation, step.evaluation.score
    task, change = ledger.task(step), accuracy_change(ledger, step)
    return [
        f"{score.nll:.4f}",
        _number(score.nll_stderr, ".4f"),
        _number(found.nll_increase, "+.4f"),
        _number(found.nll_increase_stderr, ".4f"),
        f"{score.perplexity:.2f}",
        _number(found.kl, ".4f"),
        _percent(step.recovered),
        _percent(step.recovered_stderr),
        _percent(task.accuracy) if task is not None else "-",
        _percent(task.accuracy_stderr) if task is not None else "-",
        _percent(change[0], "+") if change is not None else "-",
        _percent(change[1]) if change is not None else "-",
        duration(step.seconds) if step.treatments else "-",
        step.label,
    ]


def _questions(ledger: Ledger) -> list[str]:
    """Return what stands behind the accuracies, and the steps that were not asked the same questions."""
    asked = ledger.task(ledger.steps[0])
    if asked is None:
        return []
    others = [step.label for step in ledger.steps if ledger.task(step) is None]
    left = f" Not scored on them: {', '.join(others)}." if others else ""
    return [
        f"Accuracy over {asked.questions} questions of {asked.source}; change from uncut with its paired error; chance "
        f"{_percent(asked.chance)}, always the most frequent label {_percent(asked.majority)}.{left}"
    ]


def _notes(step: LedgerStep) -> list[str]:
    notes = [t.note for t in step.treatments[-1:] if t.note]
    text = step.treatments[-1].text if step.treatments else None
    return notes + ([f"fitted on {text.source}, {text.tokens:,} tokens."] if text is not None else [])


def _continuations(ledger: Ledger) -> list[str]:
    found = [f"{step.label}: {' '.join(step.continuation.split())}" for step in ledger.steps if step.continuation]
    return [f"Continuations of {ledger.prompt!r}:", *found] if found else []


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)


def _percent(share: float | None, sign: str = "") -> str:
    return "-" if share is None or math.isnan(share) else f"{100 * share:{sign}.1f} %"
