"""What a repair is asked to do: the two models, the seams, the text and how it is split."""

from collections.abc import Set
from dataclasses import dataclass, replace

from shortviz.errors import TextError
from shortviz.handle import ModelHandle
from shortviz.progress import Watch
from shortviz.records import Block, PrunePlan, Tokens, TokenSet
from shortviz.repair_draft import Candidate, open_candidate

HELD_OUT_EVERY = 8
"""Every eighth row is left out of the fit: the ridge is chosen, and the repair judged, on those."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Work:
    """One repair, checked."""

    cut: ModelHandle
    base: ModelHandle
    plan: PrunePlan
    method: str
    blocks: tuple[Block, ...]
    """Removed runs of layers whose seams are to be repaired, from the front."""
    tokens: TokenSet
    batch_size: int
    watch: Watch

    @property
    def fitted(self) -> list[Tokens]:
        """Rows to fit on."""
        return [row for i, row in enumerate(self.tokens.rows) if i % self._every != self._every - 1]

    @property
    def held_out(self) -> list[Tokens]:
        """Rows to judge on."""
        return [row for i, row in enumerate(self.tokens.rows) if i % self._every == self._every - 1]

    @property
    def _every(self) -> int:
        return min(HELD_OUT_EVERY, len(self.tokens.rows))

    def check_enough(self, unknowns: int) -> None:
        """Raise TextError where there are fewer tokens to fit on than numbers to fit for each channel."""
        if len(self.tokens.rows) < 2:
            raise TextError("The text has one row, and another is needed to judge the repair on; give several rows.")
        given = sum(map(len, self.fitted))
        if given < unknowns:
            total = sum(map(len, self.tokens.rows))
            row = max(map(len, self.tokens.rows))  # one may be held out, and a rest may not fill another
            needed = row + max(-(-unknowns * HELD_OUT_EVERY // (HELD_OUT_EVERY - 1)), unknowns + row)
            raise TextError(
                f"{self.method} fits {unknowns:,} numbers for each channel, and {given:,} of the text's {total:,} "
                f"tokens are there to fit on; give at least {needed:,} tokens."
            )

    def open_candidate(self, *, wanted: Set[int], first: int, passes: int) -> Candidate:
        """Return the candidate to fit; rows go through it `passes` times after the uncut model, for the progress."""
        total, done = len(self.tokens.rows) * (1 + passes), 0

        def tell(rows: int, detail: str) -> None:
            nonlocal done
            done += rows
            self.watch.tell("repair", done=done, total=total, unit="rows", detail=detail)

        def judged(rows: int, of: int) -> None:
            """Tell what is done once every row has gone through: the end loss of the held-out rows."""
            detail = "the loss on held-out rows, with what was fitted"
            self.watch.tell("judge", done=rows, total=of, unit="rows", detail=detail)

        candidate = open_candidate(
            self.cut,
            self.base,
            (self.fitted, self.held_out),
            wanted=wanted,
            first=first,
            batch_size=self.batch_size,
            watch=self.watch,
            tell=tell,
        )
        candidate.end_loss = replace(candidate.end_loss, judged=judged)
        return candidate
