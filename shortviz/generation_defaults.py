"""Generation configs that can be saved: transformers refuses to write some that it gladly loads."""

import copy

from transformers import GenerationConfig

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_BEAMS = ("early_stopping", "length_penalty")
_CACHE = ("cache_implementation", "cache_config")
_OUTPUTS = ("output_attentions", "output_hidden_states", "output_scores", "output_logits")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def savable(config: GenerationConfig) -> tuple[GenerationConfig, tuple[str, ...]]:
    """Return a copy that `save_pretrained` accepts, and sentences about what had to go.

    First only values without effect go (a temperature beside `do_sample=False`); where that is not enough, everything
    but the token ids.
    """
    found = copy.deepcopy(config)
    if _problem(found) is None:
        return found, ()
    idle = {name: getattr(found, name) for name in _idle(found) if getattr(found, name, None) is not None}
    for name in idle:
        setattr(found, name, None)
    problem = _problem(found)
    if problem is None:
        dropped = ", ".join(f"{name}={value!r}" for name, value in idle.items())
        return found, (
            f"`generation_config.json` leaves out {dropped}: without effect there, and refused by transformers.",
        )
    bare = GenerationConfig(**{name: getattr(config, name) for name in _TOKENS})
    return bare, (f"`generation_config.json` holds only the token ids; the original is invalid ({problem}).",)


def _problem(config: GenerationConfig) -> str | None:
    """Return why `save_pretrained` would refuse the config; one unchanged since it was loaded is only warned about."""
    unchanged = getattr(config, "_original_object_hash", None) == hash(config)
    try:
        config.validate(strict=not unchanged)
    except ValueError as error:
        lines = [line.strip("- ") for line in str(error).splitlines() if line.strip()]
        return lines[1] if len(lines) > 1 else lines[0]
    return None


def _idle(config: GenerationConfig) -> tuple[str, ...]:
    """Return the fields that the other fields switch off."""
    idle: tuple[str, ...] = ()
    if config.do_sample is not True:
        idle += _SAMPLING
    if config.num_beams in (None, 1):
        idle += _BEAMS
    if config.use_cache is False:
        idle += _CACHE
    if config.return_dict_in_generate is not True:
        idle += _OUTPUTS
    if config.pad_token_id is not None and config.pad_token_id < 0:
        idle += ("pad_token_id",)
    return idle
