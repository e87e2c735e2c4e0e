"""`execute`: the one thing that carries a request out, for the command line, the app and the library alike."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shortviz.progress import NO_WATCH, Watch
from shortviz.service import requests as r
from shortviz.service.place import Place

if TYPE_CHECKING:
    from shortviz.service.service import Service


def execute(
    request: "r.Request | r.AppRequest",
    watch: Watch = NO_WATCH,
    *,
    service: "Service | None" = None,
    place: Place | None = None,
) -> Any:
    """Return what the request asks for, as its function in `service/` says; torch is imported only here below.

    Args:
        request: what is asked for.
        watch: hears progress, and may stop the work.
        service: loaded models and what is known already; a new one where none is given.
        place: where the run is kept; memory alone where none is given.
    """
    from shortviz.service import curve, export, inspect, ledger, measure
    from shortviz.service.service import new_service

    work: Callable[..., Any] = {
        r.MeasureRequest: measure.measure,
        r.TextsRequest: measure.measure_texts,
        r.MapRequest: measure.measure_map,
        r.SearchRequest: measure.search,
        r.BlocksRequest: measure.measure_blocks,
        r.EvaluateRequest: inspect.evaluate,
        r.CurveRequest: curve.measure_curve,
        r.TasksRequest: curve.score_tasks,
        r.LoadRequest: inspect.load,
        r.PrepareRequest: inspect.prepare,
        r.FetchRequest: curve.fetch_questions,
        r.EstimateRequest: measure.estimate,
        r.SizeRequest: inspect.size,
        r.RepairRequest: ledger.repair,
        r.ShrinkRequest: ledger.shrink,
        r.HealRequest: ledger.heal,
        r.AskRequest: ledger.ask,
        r.BringBackRequest: ledger.bring_back,
        r.ContinueRequest: ledger.write_continuations,
        r.ExportRequest: export.export,
        r.PushRequest: export.push,
    }[type(request)]
    return work(request, service or new_service(), place or Place(None), watch)
