"""What a person asked to load, what it would cost, and what was loaded: plain records, no torch."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from shortviz.records.formatting import Help, count, size
from shortviz.records.json import Many
from shortviz.records.plan import Block

SPREAD = "spread"
"""The device of a model that is spread over all GPUs of this machine: `device_map="auto"` of transformers."""

OutDtype = Literal["stored", "float32", "bfloat16", "float16"]
"""What the weights of an export are written in."""
STORED: Final[OutDtype] = "stored"
"""As the source stores them; a model without a source as it is in memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRef:
    """What a person asked to load."""

    id: Annotated[str, Help("A hub id, a checkpoint folder, a .gguf file, or demo.")]
    """A hub id, a checkpoint folder, a `.gguf` file, or `demo`."""
    revision: Annotated[str | None, Help("Branch, tag or commit of a hub model.")] = None
    """Branch, tag or commit of a hub model; None is the default branch."""
    dtype: Annotated[str, Help("auto, float32, bfloat16, float16 or float64.")] = "auto"
    """`auto`, `float32`, `bfloat16`, `float16` or `float64`."""
    device: Annotated[str, Help("auto, cpu, cuda, cuda:1, or spread (over all GPUs).")] = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, or `spread`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEstimate:
    """What loading would cost, known before anything large is downloaded or read."""

    id: str
    revision: str | None
    """Resolved commit of a hub model."""
    architecture: str
    num_layers: int
    parameters: int
    download_bytes: int
    """Bytes still to be fetched; 0 for local files."""
    memory_bytes: int
    """Bytes of memory the loaded weights take in the chosen dtype."""
    available_bytes: int
    """Memory free for it now on the chosen device."""
    dtype: str
    device: str
    reason: str
    """One sentence: why this dtype and device."""
    left_out: Many[str] = ()
    """What of the source is not read, in sentences."""

    @property
    def words(self) -> str:
        """What loading will cost, on one line."""
        download = f", {size(self.download_bytes)} to download" if self.download_bytes else ""
        return (
            f"{self.id}: {self.architecture}, {self.num_layers} layers, {count(self.parameters)} parameters, "
            f"{size(self.memory_bytes)} as {self.dtype} on {self.device}{download}"
        )

    @property
    def fits(self) -> bool:
        """Whether the weights and a fifth more for activations fit in the free memory."""
        return self.memory_bytes * 1.2 <= self.available_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """A loaded model, as far as a saved run needs to know it."""

    id: str
    revision: str | None
    """Commit of a hub model; None for local files."""
    architecture: str
    """Class name, e.g. `LlamaForCausalLM`."""
    num_layers: int
    parameters: int
    dtype: str
    device: str
    reason: str
    """One sentence: why this dtype and device."""
    bytes: int
    """Bytes of all weights, tied ones counted once."""
    hidden_size: int
    """Numbers of the residual stream at a token; of AltUp's streams (Gemma 3n) all together."""
    vocab_size: int
    context_length: int | None
    layer_parameters: Many[int]
    """Parameters of each layer."""
    layer_bytes: Many[int]
    """Weight bytes of each layer."""
    layer_cache_bytes: Many[int]
    """Key/value cache bytes that one more token costs in each layer."""
    illegal: Many[tuple[int, int, str]] = ()
    """(start, n, reason) of the blocks that the stock config cannot express."""
    left_out: Many[str] = ()
    """What of the source was not read, in sentences."""

    @property
    def shown_name(self) -> str:
        """The id, but of a local model its name alone: the path is nobody else's business."""
        return self.id if hub_name(self) else Path(self.id).name

    def sizes(self, layers: Collection[int]) -> tuple[int, int, int]:
        """Return (parameters, weight bytes, key/value cache bytes of one more token) of these layers together."""
        every = (self.layer_parameters, self.layer_bytes, self.layer_cache_bytes)
        parameters, weights, cache = (sum(sizes[i] for i in layers) for sizes in every)
        return parameters, weights, cache

    def weights_share(self, layers: Collection[int]) -> float:
        """Return the share that these layers have of the weights in all layers and the head, computed: 0..1.

        Where every weight multiplies once a token, it is that of the operations too, but for attention over the
        context. Mixtures of experts use a part of theirs, and tables that are looked up (Gemma 3n and 4) multiply
        nothing.
        """
        head = self.hidden_size * self.vocab_size
        return sum(self.layer_parameters[i] for i in layers) / (sum(self.layer_parameters) + head)

    def illegal_reason(self, block: Block) -> str | None:
        """Return why the block cannot be exported, or None where it can."""
        return next((r for s, n, r in self.illegal if (s, n) == (block.start, block.n)), None)


DEMO_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What the model named `demo` is on the hub."""


def hub_id(model_id: str) -> str:
    """Return the name other tools know a model by: `demo` is a hub model, all other ids are their own name."""
    return DEMO_HUB_ID if model_id == "demo" else model_id


def hub_name(base: ModelInfo) -> str | None:
    """Return the hub id of a model, or None for a local file or folder, whose path is nobody else's business."""
    name = hub_id(base.id)
    if base.revision is None and name == base.id and Path(base.id).expanduser().exists():
        return None
    return name if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not name.endswith(".gguf") else None
