"""The best start for each n without measuring every block on all the text."""

import threading

from shortviz.block_losses import open_engine
from shortviz.errors import Stopped
from shortviz.handle import ModelHandle
from shortviz.losses import check_windows
from shortviz.race import Race, SearchResult
from shortviz.records import OnProgress, Progress, WindowSet


def search_best_starts(
    handle: ModelHandle,
    windows: WindowSet,
    *,
    max_n: int | None = None,
    on_progress: OnProgress | None = None,
    stop: threading.Event | None = None,
) -> SearchResult:
    """Return the best start for each n = 1 .. max_n (L-1 if None), and the starts statistically tied with it.

    Successive elimination, window by window, as `Race` has it. When `stop` is set, what there is is returned.
    Raises PlanError for a max_n outside 1 .. L-1, Stopped before the first window, TextError and NumericsError as
    `evaluate` does.
    """
    race = Race(handle.info, max_n)
    check_windows(handle, windows)
    engine = open_engine(handle, windows.tokens[0])
    total = len(windows.tokens)
    for index, tokens in enumerate(windows.tokens):
        wanted = race.wanted()
        if not wanted or (stop is not None and stop.is_set()):
            break
        opened = engine.open(tokens)
        measured = opened.losses(wanted, stop)
        if measured is None:
            break
        race.add(measured[0], measured[1][0] - opened.base.nll)
        if on_progress is not None:
            detail = f"{race.left} blocks left for {len(race.racing)} sizes"
            on_progress(Progress(stage="search", done=index + 1, total=total, unit="windows", detail=detail))
    if race.windows == 0:
        raise Stopped("Stopped before the first window was measured; there is nothing to keep.")
    return race.result(windows.info, total)
