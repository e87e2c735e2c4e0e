"""What the commands print of a ledger: every step with its loss, its errors and what it won back."""

from shortviz.cli_output import table
from shortviz.ledger import Ledger, LedgerStep
from shortviz.ledger_steps import accuracy_change
from shortviz.words import UNKNOWN, counted, duration, layers_text, percent, with_error

_HEAD = ("NLL", "increase", "perplexity", "KL", "won back", "accuracy", "change", "time", "")
_OF_TASKS = (5, 6)


def ledger_text(ledger: Ledger) -> str:
    """Return a ledger as a table, with the text behind its numbers and what was said of each treatment."""
    text, cut = ledger.text, ledger.step("cut")
    score = cut.evaluation.score if cut is not None else None
    scored = (
        f"{counted(score.tokens, 'scored token')} in {counted(score.windows, 'window')} of {text.max_length}"
        if score
        else "nothing"
    )
    rows = [_row(ledger, step) for step in ledger.steps]
    empty = [
        i for i in _OF_TASKS if all(row[i] == UNKNOWN for row in rows)
    ]  # no tasks were scored: no column of dashes
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
        with_error(score.nll, score.nll_stderr),
        with_error(found.nll_increase, found.nll_increase_stderr, sign=True),
        with_error(score.perplexity, score.perplexity_stderr),
        with_error(found.kl, found.kl_stderr),
        percent(step.recovered, step.recovered_stderr),
        percent(task.accuracy, task.accuracy_stderr) if task is not None else UNKNOWN,
        percent(*change, sign=True) if change is not None else UNKNOWN,
        duration(step.seconds) if step.treatments else UNKNOWN,
        step.label,
    ]


def _questions(ledger: Ledger) -> list[str]:
    """Return what stands behind the accuracies, and the steps that were not asked the same questions."""
    asked = ledger.task(ledger.steps[0])
    if asked is None:
        return []
    others = [step.label for step in ledger.steps if ledger.task(step) is None]
    left = f" Not scored on them: {', '.join(others)}." if others else ""
    return [f"Accuracy over {asked.behind}. Change from uncut with its paired error.{left}"]


def _notes(step: LedgerStep) -> list[str]:
    notes = [t.note for t in step.treatments[-1:] if t.note]
    text = step.treatments[-1].text if step.treatments else None
    return notes + ([f"fitted on {text.source}, {counted(text.tokens, 'token')}."] if text is not None else [])


def _continuations(ledger: Ledger) -> list[str]:
    found = [f"{step.label}: {' '.join(step.continuation.split())}" for step in ledger.steps if step.continuation]
    return [f"Continuations of {ledger.prompt!r}:", *found] if found else []
