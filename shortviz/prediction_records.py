"""What work on a model would take on this machine, predicted from a short calibration. No torch."""

from dataclasses import dataclass

from shortviz.records import ModelEstimate


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What the predictions are for; the defaults are those of the commands."""

    rows: int = 64
    row_tokens: int = 256
    """Tokens of a row, for measure and repair."""
    batch_size: int = 8
    windows: int = 16
    window: int = 512
    """Tokens of a window, for the measured map."""
    heal_steps: int = 200
    heal_tokens: int = 512
    """Tokens behind one step of healing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Seconds on this machine, by a calibration of one layer; memory and disk by arithmetic."""

    size: ModelEstimate
    work: Work
    load_seconds: float | None
    """None where the weights are not on this machine yet."""
    measure_seconds: float
    """Distances of all blocks, with the model in memory, without loading."""
    streamed_seconds: float
    """The same, streamed, reading the weights included where they are on this machine."""
    map_seconds: float
    """Measured losses of all blocks."""
    repair_seconds: float
    """Seam refit of one block of a quarter of the layers, on the rows of `work`."""
    heal_seconds: float
    streamed_memory_bytes: int
    """Weights of two layers, or the embeddings, whichever is more; the states come on top."""
    states_bytes: int
    """States of all rows at all boundaries, in memory or in a file, while streaming."""
    disk_bytes: int
    """Of an export of the uncut model in the loaded dtype; a cut takes less."""
    calibration_seconds: float
