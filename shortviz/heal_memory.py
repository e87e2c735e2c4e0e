"""How much memory a training takes, roughly. No torch."""

from shortviz.heal_settings import HealSettings
from shortviz.records import ModelInfo

_ACTIVATIONS = 24
"""Numbers kept for the backward pass, per token, layer and hidden unit: the residual stream, norms, attention, MLP."""
_LOGITS = 6
"""Arrays of logits of one chunk, 64 MB each."""


def training_bytes(model: ModelInfo, trained: int, settings: HealSettings) -> int:
    """Return the bytes that a training takes beside the frozen weights, which are there already.

    Trained weights with their gradient and two moments, and the best ones so far, in float32; activations of one
    batch, in the model's dtype; some logits.
    """
    width = 8 if model.dtype == "float64" else 4 if model.dtype == "float32" else 2
    tokens = settings.batch_size * settings.length
    per_layer = tokens * model.hidden_size * _ACTIVATIONS * width
    kept = per_layer * model.num_layers
    if settings.gradient_checkpointing:
        kept = per_layer + tokens * model.hidden_size * width * model.num_layers
    return 4 * 5 * trained + kept + _LOGITS * 64 * 2**20
