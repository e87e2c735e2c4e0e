"""The best start for each n without measuring every block on all the text."""

from shortviz.block_losses import open_engine
from shortviz.errors import Stopped
from shortviz.handle import ModelHandle
from shortviz.losses import check_windows
from shortviz.progress import NO_WATCH, Watch
from shortviz.race import SearchResult, SuccessiveElimination, Z
from shortviz.records import WindowSet


def search_best_starts(
    handle: ModelHandle, windows: WindowSet, *, max_n: int | None = None, z: float = Z, watch: Watch = NO_WATCH
) -> SearchResult:
    """Return the best start for each n = 1 .. max_n (L-1 if None), and the starts statistically tied with it.

    Successive elimination, window by window, as `SuccessiveElimination` has it. A stop gives what there is.
    Raises PlanError for a max_n outside 1 .. L-1, Stopped before the first window, TextError and NumericsError as
    `evaluate` does.
    """
    elimination = SuccessiveElimination(handle.info, max_n)
    check_windows(handle, windows)
    engine = open_engine(handle, windows.tokens[0])
    total = len(windows.tokens)
    for index, tokens in enumerate(windows.tokens):
        wanted = elimination.wanted()
        if not wanted or watch.stopped:
            break
        opened = engine.open(tokens)
        measured = opened.losses(wanted, watch)
        if measured is None:
            break
        elimination.add(measured[0], measured[1][0] - opened.base.nll)
        detail = f"{elimination.left} blocks left for {len(elimination.remaining)} sizes"
        watch.tell("search", done=index + 1, total=total, unit="windows", detail=detail)
    if elimination.windows == 0:
        raise Stopped("Stopped before the first window was measured; there is nothing to keep.")
    return elimination.result(windows.info, total)
