"""What a cut model can still do, from a ledger's records: answers that changed, probes, speed, and one table of all."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, nan

import numpy as np

from shortviz.records.formatting import UNKNOWN, counted, percent, size, times, with_error
from shortviz.records.ledger import Ledger, LedgerStep, Pace, Probe, ProbeScore
from shortviz.records.measured import Evaluation
from shortviz.records.model import ModelInfo
from shortviz.records.sums import paired_stderr, ratio_and_stderr
from shortviz.records.table import Table, left, right

TELLS_FROM = 0.05
"""A probe of which the uncut model itself gets less than this share right can tell nothing about a cut."""
GROUPS = 3
"""The turns of a speed are looked at in so many consecutive groups, whose least times are compared."""


def mcnemar(one: int, other: int) -> float:
    """Return McNemar's exact two-sided p: how often a fair coin is as lopsided as `one` against `other`, or more."""
    n = one + other
    return min(1.0, 2.0 * sum(comb(n, k) for k in range(min(one, other) + 1)) / float(2**n))


@dataclass(frozen=True, kw_only=True, slots=True)
class Flips:
    """How the answers of two models to the same questions differ."""

    right_to_wrong: int
    wrong_to_right: int
    retained: float
    """Right answers of the second model over those of the first; NaN where that had none."""
    retained_stderr: float
    """Paired, over questions, to first order."""

    @property
    def chance(self) -> float:
        """McNemar's exact p that so lopsided a change is chance."""
        return mcnemar(self.right_to_wrong, self.wrong_to_right)

    @property
    def words(self) -> str:
        """The change in words."""
        told = "told apart" if self.chance < 0.05 else "not told apart"
        return f"-{self.right_to_wrong} +{self.wrong_to_right} (p {with_error(self.chance)}, {told})"


def flips(before: str, after: str) -> Flips:
    """Return what changed between two marks of the same questions, each a text of 0 and 1."""
    if len(before) != len(after):
        raise ValueError(f"marks of {len(before)} and of {len(after)} questions cannot be compared")
    one, other = ([int(mark) for mark in marks] for marks in (before, after))
    share, error = ratio_and_stderr(other, one) if one else (nan, nan)
    return Flips(
        right_to_wrong=sum(a > b for a, b in zip(one, other, strict=True)),
        wrong_to_right=sum(a < b for a, b in zip(one, other, strict=True)),
        retained=share,
        retained_stderr=error,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """How much faster the cut model is in one kind of work, as far as the clock can tell."""

    ratio: float
    """Tokens a second of the cut over those of the uncut model, by the least time of each."""
    spread: float
    """By how much the ratio may be off: how far the least times of the groups of turns lie above the least of all, for
    both models together, as a share; times the ratio."""
    steady: bool
    """Whether the cut model was the faster one in every turn: of six, chance does that once in 64."""

    @property
    def busy(self) -> bool:
        """Whether the machine was too busy: the spread is not below the gain, or in some turn the cut was no faster."""
        return not (self.steady and self.spread < self.ratio - 1)


def speed(pace: Pace) -> Speed:
    """Return how much faster the cut model was, from the seconds of both in turns."""
    ratio = min(pace.uncut) / min(pace.cut)
    steady = all(uncut > cut for uncut, cut in zip(pace.uncut, pace.cut, strict=False))
    return Speed(ratio=ratio, spread=ratio * (_spread(pace.uncut) + _spread(pace.cut)), steady=steady)


def _spread(seconds: Sequence[float]) -> float:
    """Return how far the slowest group's least time lies above the least of all, as a share of that."""
    groups = [float(group.min()) for group in np.array_split(np.asarray(seconds), min(GROUPS, len(seconds)))]
    return max(groups) / min(groups) - 1


def score_of(step: LedgerStep, probe: Probe) -> ProbeScore | None:
    """Return what a step's model wrote in a probe, or None where it was not asked these items."""
    found = [one for one in step.evidence.probes if (one.probe, one.seed) == (probe.name, probe.seed)]
    return found[-1] if found and len(found[-1].right) == len(probe.items) else None


def share_right(score: ProbeScore) -> float:
    """Return the share of a probe's items that a model got right."""
    return score.right.count("1") / len(score.right)


def cannot_tell(ledger: Ledger, probe: Probe) -> str:
    """Return why a probe says nothing about this ledger's models, in a sentence; "" where it does."""
    if probe.refused:
        return probe.refused
    ceiling = score_of(ledger.steps[0], probe)
    if ceiling is None or share_right(ceiling) >= TELLS_FROM:
        return ""
    found = f"{ceiling.right.count('1')} of {len(ceiling.right)}"
    return f"The probe {probe.name} cannot tell anything: the uncut model itself gets {found} right."


def evidence_table(ledger: Ledger, base: ModelInfo, steps: Sequence[LedgerStep] = ()) -> Table:
    """Return what is known of a ledger's models, a column a step (all unless some are given), the uncut one first."""
    shown = tuple(steps) or ledger.steps
    rows = [*_texts(ledger, shown), *_questions(ledger, shown), *_harness(ledger, shown), *_probes(ledger, shown)]
    rows += [*_speeds(ledger, shown), *_sizes(ledger, base, shown)]
    return Table(left("") + right(*(step.label for step in shown)), rows, "Evidence")


def _texts(ledger: Ledger, steps: Sequence[LedgerStep]) -> list[list[str]]:
    others = [found.text for found in ledger.steps[0].evidence.texts]
    rows = []
    for text in (ledger.text, *others):
        row = [f"perplexity, {text.source}"]
        for step in steps:
            every = (step.evaluation, *step.evidence.texts)
            found = next((one for one in every if one.text.fingerprint == text.fingerprint), None)
            row.append(UNKNOWN if found is None else _perplexity(found))
        rows.append(row)
    return rows


def _perplexity(found: Evaluation) -> str:
    if found.base is None:
        return with_error(found.score.perplexity, found.score.perplexity_stderr)
    return times(found.nll_increase, found.nll_increase_stderr)


def _questions(ledger: Ledger, steps: Sequence[LedgerStep]) -> list[list[str]]:
    uncut = ledger.task(ledger.steps[0])
    if uncut is None:
        return []
    rows = [[f"multiple choice, {uncut.questions} questions"], ["share retained"], ["right to wrong, wrong to right"]]
    for step in steps:
        task = ledger.task(step)
        rows[0].append(UNKNOWN if task is None else percent(task.accuracy, task.accuracy_stderr))
        same = task is not None and step.name != "uncut" and len(task.right) == len(uncut.right) > 0
        found = flips(uncut.right, task.right) if task is not None and same else None
        rows[1].append(UNKNOWN if found is None else percent(found.retained, found.retained_stderr))
        rows[2].append(UNKNOWN if found is None else found.words)
    return rows


def _harness(ledger: Ledger, steps: Sequence[LedgerStep]) -> list[list[str]]:
    rows = []
    for uncut in ledger.steps[0].evidence.harness:
        row = [f"lm_eval {uncut.version}, {uncut.task}, {uncut.metric}"]
        key = (uncut.task, uncut.metric, uncut.version, uncut.limit)
        for step in steps:
            every = step.evidence.harness
            found = next((h for h in every if (h.task, h.metric, h.version, h.limit) == key), None)
            row.append(UNKNOWN if found is None else with_error(found.value, found.stderr))
            if found is not None and found is not uncut and len(found.marks) == len(uncut.marks) > 1:
                error = paired_stderr(found.marks, uncut.marks)
                row[-1] += f" ({with_error(found.value - uncut.value, error, sign=True)}, paired)"
        rows.append(row)
    return rows


def _probes(ledger: Ledger, steps: Sequence[LedgerStep]) -> list[list[str]]:
    return [
        [f"probe {probe.name}", *(_right(ledger, step, probe) for step in steps)]
        for probe in ledger.probes
        if not probe.refused
    ]


def _right(ledger: Ledger, step: LedgerStep, probe: Probe) -> str:
    score, uncut = score_of(step, probe), score_of(ledger.steps[0], probe)
    if score is None:
        return UNKNOWN
    told = f"{score.right.count('1')} of {len(score.right)}"
    if uncut is None or step.name == "uncut" or cannot_tell(ledger, probe):
        return told
    found = flips(uncut.right, score.right)
    return f"{told} ({percent(found.retained, found.retained_stderr)})"


def _speeds(ledger: Ledger, steps: Sequence[LedgerStep]) -> list[list[str]]:
    rows = []
    for pace in ledger.paces:
        found = speed(pace)
        rate = f"{pace.tokens / min(pace.uncut):,.0f} tokens/s"
        cut = "machine too busy to tell" if found.busy else f"× {with_error(found.ratio, found.spread)}"
        rows.append([pace.name, *(rate if step.name == "uncut" else cut for step in steps)])
    return rows


def _sizes(ledger: Ledger, base: ModelInfo, steps: Sequence[LedgerStep]) -> list[list[str]]:
    share = 1 - base.weights_share(ledger.removed)
    scores = [step.evaluation.score for step in steps]
    rows = [
        ["operations and weight bytes, computed", *("100 %" if s.name == "uncut" else percent(share) for s in steps)],
        ["weights on disk", *(size(step.evidence.disk_bytes) for step in steps)],
        [f"weights in memory, {base.dtype}", *(size(score.bytes) for score in scores)],
        ["KV cache per token", *(size(score.cache_bytes_per_token) for score in scores)],
    ]
    return [row for row in rows if any(cell != size(0) for cell in row[1:])]


def notes(ledger: Ledger) -> tuple[str, ...]:
    """Return what must be known to read the table, in sentences: what tells nothing first."""
    told = [words for probe in ledger.probes if (words := cannot_tell(ledger, probe))]
    if any(step.evidence.texts for step in ledger.steps):
        told.append("Perplexity: of the uncut model as it is, of the others as a factor over it, paired over windows.")
    asked = [probe for probe in ledger.probes if not probe.refused]
    if asked:
        most = counted(len(asked[0].items), "item")
        told.append(f"Probes: {most} each, seed {asked[0].seed}; greedy, right where the line is the answer exactly.")
    if ledger.paces:
        turns = counted(len(ledger.paces[0].cut), "turn")
        told.append(f"Speed: the least of {turns} of uncut and cut one after the other; ± is the spread of the least.")
        if any(speed(pace).busy for pace in ledger.paces):
            told.append(
                "Where the machine was too busy to tell, the computed share of operations and bytes stands alone."
            )
    return tuple(told)
