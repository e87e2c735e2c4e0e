"""The packages that a training needs beside the models' own: looked for before a model is loaded. No torch."""

import importlib.util

from shortviz.errors import ResourceError
from shortviz.heal_settings import HealSettings


def check_packages(settings: HealSettings) -> None:
    """Raise ResourceError with the install command where a recipe needs a package that is not there."""
    if settings.method == "lora":
        check_peft("Training adapters needs", " or choose method partial")


def check_peft(needs: str = "Reading an adapter needs", otherwise: str = "") -> None:
    """Raise ResourceError where peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        other = f",{otherwise}" if otherwise else ""
        raise ResourceError(f"{needs} the package peft, which is not installed; run `pip install peft`{other}.")


def check_bitsandbytes() -> None:
    """Raise ResourceError where bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ResourceError(
            "Training in 4 bits needs the package bitsandbytes, which is not installed; run `pip install bitsandbytes`."
        )
