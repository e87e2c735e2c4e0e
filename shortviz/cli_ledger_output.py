"""What the commands print of a ledger: every step with its loss, its errors and what it won back."""

from shortviz.ledger import Ledger, LedgerStep
from shortviz.run_tables import ledger_table
from shortviz.words import counted, layers_text


def ledger_text(ledger: Ledger) -> str:
    """Return a ledger as a table, with the text behind its numbers and what was said of each treatment."""
    text, cut = ledger.text, ledger.step("cut")
    score = cut.evaluation.score if cut is not None else None
    scored = (
        f"{counted(score.tokens, 'scored token')} in {counted(score.windows, 'window')} of {text.max_length}"
        if score
        else "nothing"
    )
    lines = [
        f"Ledger of the cut of layers {layers_text(ledger.removed)} ({len(ledger.removed)} layers)",
        ledger_table(ledger).text(),
        f"Over {scored}; {text.source}; BOS {text.bos}. NLL in nats a token; increase over uncut and share won back "
        "with paired errors.",
        *_questions(ledger),
    ]
    lines += [f"{step.label}: {note}" for step in ledger.steps for note in _notes(step)]
    return "\n".join(lines + _continuations(ledger))


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
