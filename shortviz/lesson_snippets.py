"""Lines of Python that a reader runs to get a lesson's number again; tests run them."""

from shortviz.records import Block


def angle_lines(text: str, block: Block) -> str:
    """Return the program that prints the angle over a block at the last token of a text."""
    return f"""import math
import torch
from shortviz import ModelRef, load
from shortviz.capture import residual_boundaries

handle = load(ModelRef(id="demo"))
ids = torch.tensor([handle.tokenizer({text!r})["input_ids"]])
states = {{}}
with torch.inference_mode(), residual_boundaries(handle, lambda i, x: states.update({{i: x[0, -1].double()}})) as model:
    model(input_ids=ids)
one, other = states[{block.start}], states[{block.start + block.n}]
cosine = (one @ other / (one.norm() * other.norm())).item()
print(math.acos(cosine) / math.pi)
"""
