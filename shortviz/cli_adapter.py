"""`--adapter FOLDER` of evaluate and prune: the cut that an adapter belongs to, with what it learned merged in."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shortviz.errors import ModelError, PlanError

if TYPE_CHECKING:
    from shortviz.cli_options import Removal
    from shortviz.handle import ModelHandle

AdapterOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="An adapter of shortviz heal, merged in; its own cut is made where none is given."
    ),
]


def adapter_cut(adapter: Path | None, chosen: "Removal | None", num_layers: int) -> "Removal | None":
    """Return what to remove: as asked, else the adapter's own cut; nothing where the model has that cut behind it.

    Raises ModelError where there is no adapter of ours, PlanError where another cut was asked for than the adapter's.
    """
    if adapter is None:
        return chosen
    from shortviz.cli_options import Removal
    from shortviz.heal_adapter import cut_of
    from shortviz.words import layers_text

    whole, removed = cut_of(adapter)
    if chosen is None:
        own = Removal(layers=removed) if removed and num_layers == whole else None
        if own is None and num_layers not in (whole, whole - len(removed)):
            raise ModelError(
                f"The adapter in {adapter} belongs to a cut of a model of {whole} layers, and this one has "
                f"{num_layers}; give the model that it was trained on."
            )
        return own
    if (asked := chosen.of(num_layers).removed) != removed:
        raise PlanError(
            f"The adapter in {adapter} belongs to the cut of layers {layers_text(removed) or 'none'}, not of "
            f"{layers_text(asked)}; leave the cut out, and the adapter's own is made."
        )
    return chosen


def with_adapter(cut: "ModelHandle", adapter: Path | None) -> "ModelHandle":
    """Return a cut model with an adapter merged in; itself without one."""
    if adapter is None:
        return cut
    from shortviz.heal_adapter import load_adapter

    return load_adapter(cut, adapter)
