"""Which function carries out which request; torch is imported only below here."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shortviz.progress import Watch
from shortviz.service import requests as r
from shortviz.service.place import Place

if TYPE_CHECKING:
    from shortviz.service.service import Service


def carry_out(request: r.Request | r.AppRequest, service: "Service", place: Place, watch: Watch) -> Any:
    """Return what the request asks for, as its function in `service/` says."""
    from shortviz.service import curve, export, inspect, ledger, measure

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
        r.RepairRequest: ledger.repair,
        r.ShrinkRequest: ledger.shrink,
        r.HealRequest: ledger.heal,
        r.AskRequest: ledger.ask,
        r.BringBackRequest: ledger.bring_back,
        r.ContinueRequest: ledger.write_continuations,
        r.ExportRequest: export.export,
        r.PushRequest: export.push,
    }
    return functions[type(request)](request, service, place, watch)
