"""The layer numbers in a quantisation config, rewritten for the layers that stay; or refused, naming the field."""

import re
from typing import Any

from shortviz.errors import PlanError
from shortviz.records import PrunePlan

METHODS = ("fp8", "compressed-tensors", "gptq", "awq", "bitsandbytes", "mxfp4")
"""Methods whose files hold everything about a tensor under the tensor's own name."""
_REGEX = re.compile(r"^re:|[*\[(|\\^$+?]")


def prune_quantization(config: dict[str, Any], plan: PrunePlan, path: str) -> dict[str, Any]:
    """Return the quantisation config of the pruned checkpoint; `path` is that of the layers, e.g. `model.layers`.

    Raises PlanError for a method whose layout is not known here, or a field that could count layers in another way.
    """
    method = str(config.get("quant_method", "unknown"))
    if method not in METHODS:
        raise PlanError(
            f"The weights are quantised by {method!r}, whose files cannot be cut by name (quantization_config); "
            f"known are {', '.join(METHODS)}."
        )
    layers = path.rpartition(".")[2]
    found = _rewritten(config, "quantization_config", plan, re.compile(rf"(^|\.){re.escape(layers)}\.(\d+)(?=\.|$)"))
    assert isinstance(found, dict)
    return found


def _rewritten(value: Any, field: str, plan: PrunePlan, layer: re.Pattern[str]) -> Any:
    if isinstance(value, dict):
        names = {key: _renamed(str(key), field, plan, layer) for key in value}
        return {
            names[key]: _rewritten(item, f"{field}.{key}", plan, layer)
            for key, item in value.items()
            if names[key] is not None
        }
    if isinstance(value, list):
        if len(value) > 2 and all(isinstance(item, int) and not isinstance(item, bool) for item in value):
            raise PlanError(f"The field {field} is a list of numbers that may count layers; this model cannot be cut.")
        kept = [_rewritten(item, field, plan, layer) for item in value]
        return [item for item, old in zip(kept, value, strict=True) if item is not None or old is None]
    return _renamed(value, field, plan, layer) if isinstance(value, str) else value


def _renamed(text: str, field: str, plan: PrunePlan, layer: re.Pattern[str]) -> str | None:
    """Return the name with the layer's new number; None where the layer is gone."""
    if _REGEX.search(text):
        if re.search(r"(layers|blocks|\bh)\W{0,4}[\[(]?\d", text):
            raise PlanError(
                f"The field {field} names layers by the pattern {text!r}, which cannot be rewritten; choose another "
                "checkpoint of this model."
            )
        return text
    found = layer.search(text)
    if found is None:
        return text
    number = int(found.group(2))
    if number not in plan.kept:
        return None
    return text[: found.start(2)] + str(plan.kept.index(number)) + text[found.end(2) :]
