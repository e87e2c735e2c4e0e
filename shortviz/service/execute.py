"""`execute`: the one thing that carries a request out, for the command line, the app and the library alike."""

from typing import TYPE_CHECKING, Any

from shortviz.progress import NO_WATCH, Watch
from shortviz.service.place import Place
from shortviz.service.requests import AppRequest, Request
from shortviz.service.work import carry_out

if TYPE_CHECKING:
    from shortviz.service.service import Service


def execute(
    request: Request | AppRequest,
    watch: Watch = NO_WATCH,
    *,
    service: "Service | None" = None,
    place: Place | None = None,
) -> Any:
    """Return what the request asks for, as its function in `work.carry_out` says.

    Args:
        request: what is asked for.
        watch: hears progress, and may stop the work.
        service: loaded models and what is known already; a new one where none is given.
        place: where the run is kept; memory alone where none is given.
    """
    if service is None:
        from shortviz.service.service import new_service

        service = new_service()
    return carry_out(request, service, place or Place(None), watch)
