"""`execute`: the one thing that carries a request out, for the command line, the app and the library alike."""

from collections.abc import Callable
from typing import Any

from shortviz.progress import NO_WATCH, Watch
from shortviz.service import requests as r
from shortviz.service.place import Place
from shortviz.service.service import RunStore, Service
from shortviz.settings import settings


def execute(
    request: r.Request | r.AppRequest,
    watch: Watch = NO_WATCH,
    *,
    service: Service | None = None,
    place: Place | None = None,
) -> Any:
    """Return what the request asks for, as its function in `carry_out` says.

    Args:
        request: what is asked for.
        watch: hears progress, and may stop the work.
        service: loaded models and what is known already; a new one where none is given.
        place: where the run is kept; memory alone where none is given.
    """
    return carry_out(request, service or new_service(), place or Place(None), watch)


def new_service(**parts: Any) -> Service:
    """Return a service that carries out requests: alone for a command line or a program, or with `parts` of its own."""
    return Service(carry_out=carry_out, **({"runs": RunStore(settings().runs_dir)} | parts))


def carry_out(request: r.Request | r.AppRequest, service: Service, place: Place, watch: Watch) -> Any:
    """Return what the request asks for, as its function in `service/` says."""
    from shortviz.service import curve, export, inspect, measure, treat
    from shortviz.service.treat import evidence

    functions: dict[type, Callable[..., Any]] = {
        r.MeasureRequest: measure.measure,
        r.TextsRequest: measure.measure_texts,
        r.MapRequest: measure.measure_map,
        r.SearchRequest: measure.search,
        r.BlocksRequest: measure.measure_blocks,
        r.EstimateRequest: measure.estimate,
        r.EvaluateRequest: inspect.evaluate,
        r.SizeRequest: inspect.size,
        r.LoadRequest: inspect.load,
        r.PrepareRequest: inspect.prepare,
        r.CurveRequest: curve.measure_curve,
        r.TasksRequest: curve.score_tasks,
        r.FetchRequest: curve.fetch_questions,
        r.RepairRequest: treat.repair,
        r.ShrinkRequest: treat.shrink,
        r.HealRequest: treat.heal,
        r.EvidenceRequest: evidence.evidence,
        r.AskRequest: treat.ask,
        r.BringBackRequest: treat.bring_back,
        r.ContinueRequest: treat.write_continuations,
        r.ExportRequest: export.export,
        r.PushRequest: export.push,
    }
    return functions[type(request)](request, service, place, watch)
