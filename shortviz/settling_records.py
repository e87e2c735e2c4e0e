"""The record of how many rows of text a choice needs; import it from records."""

from dataclasses import dataclass

from shortviz.record_json import FloatMatrix, Many


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RowsNeeded:
    """When the choice of a start stops changing, by one criterion, for each n = 1 .. L-1.

    The orders are drawn without replacement from the rows that were measured, so the last count always agrees with
    itself: a need of more than half of the rows says only that these rows are too few.
    """

    rows: int
    """Rows behind it."""
    orders: int
    """Random orders that were looked at."""
    counts: Many[int]
    """Row counts that were looked at, ascending; the last is `rows`."""
    agree: FloatMatrix
    """Share of the orders whose best start among the first rows is that of all rows, shape (len(counts), L-1)."""
    needed: Many[int]
    """For each n the row count from which on, in 19 of 20 orders, the best start no longer changes."""

    def enough(self, n: int) -> bool:
        """Return whether the rows were enough to say so: the choice for n stood still over the second half of them."""
        return self.needed[n - 1] <= self.rows / 2

    def words(self, n: int) -> str:
        """Return the rows that n needs: `12`, or `> 32` where half of the rows were not enough."""
        return str(self.needed[n - 1]) if self.enough(n) else f"> {self.rows // 2}"
