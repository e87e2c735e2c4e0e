"""measure_distances beside the bare forward pass of a random-weight model of Llama-3-8B's shape, on a GPU.

    python benchmarks/gpu.py [--batch-size 8] [--length 2048] [--batches 8] [--repeats 3] [--device cuda]
    python benchmarks/gpu.py --tiny --device cpu     the same steps on a model of 4 layers: tries the script, no figure

The weights are made on the device, in bfloat16 (16 GB). Bare and measured batches take turns, so that a clock that
changes slows both; every time ends with a synchronisation. The fits of linear_replacement come after the pass and are
left out. Prints a table with the device's name, then one JSON line. The target on a GPU is 1.03 of the bare pass.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shortviz import criteria as known
from shortviz.criteria import info
from shortviz.files import versions
from shortviz.measure.distances import measure_distances
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import layer_stack
from shortviz.model.load import model_info
from shortviz.progress import Progress, Watch
from shortviz.records.model import ModelRef
from shortviz.records.text import TextInfo, TokenSet
from tests.support.families import tiny_tokenizer


def main() -> None:
    """Time both on the same batches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="4 narrow layers, to try the script")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no GPU that PyTorch can use; --tiny --device cpu tries the script without one.")
    handle = random_model(device, tiny=args.tiny)
    tokens = random_rows(args, handle.info.vocab_size)
    ratios, bare, measured = [], [], []
    for _ in range(args.repeats + 1):  # the first warms up
        plain, ours = one_round(handle, tokens, args)
        bare.append(plain)
        measured.append(ours)
        ratios.append(ours / plain)
    ratio = statistics.median(ratios[1:])
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, which says nothing of a GPU"
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    print(f"{handle.info.parameters / 1e9:.2f} billion parameters, {handle.info.dtype}, on {name}")
    print(f"{args.batches} batches of {args.batch_size} x {args.length} tokens, median of {args.repeats} rounds")
    print(f"bare forward pass  {statistics.median(bare[1:]):9.3f} s")
    print(f"measure_distances  {statistics.median(measured[1:]):9.3f} s   ratio {ratio:.3f} (target on a GPU 1.03)")
    print(f"peak memory        {memory / 2**30:9.2f} GiB on the device")
    facts = {"device": name, "batch_size": args.batch_size, "length": args.length, "batches": args.batches}
    facts |= {"tiny": args.tiny, "bare": bare[1:], "measured": measured[1:], "ratio": ratio, "peak_bytes": memory}
    print(json.dumps({"benchmark": "gpu", **facts, "versions": versions()}))


def random_model(device: torch.device, *, tiny: bool) -> ModelHandle:
    """Return a model of random bfloat16 weights, made on the device."""
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "vocab_size": 512}
    large = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2} if tiny else {"num_key_value_heads": 8}
    config = LlamaConfig(**(small if tiny else large), **heads, max_position_embeddings=8192, rope_theta=500000.0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.eval().requires_grad_(False)
    cache = (2 * config.num_key_value_heads * config.head_dim * 2,) * config.num_hidden_layers
    facts = model_info(model, id="random", revision=None, reason="", device=str(device), layer_cache_bytes=cache)
    return ModelHandle(model=model, tokenizer=tiny_tokenizer(), info=facts, ref=ModelRef(id="random"))


def random_rows(args: argparse.Namespace, vocabulary: int) -> TokenSet:
    """Return rows of random tokens, all of one length."""
    draw = np.random.default_rng(0)
    rows = tuple(draw.integers(0, vocabulary, args.length) for _ in range(args.batches * args.batch_size))
    text = TextInfo(source="random", rows=len(rows), tokens=len(rows) * args.length, fingerprint="random")
    return TokenSet(rows=rows, info=text)


def one_round(handle: ModelHandle, tokens: TokenSet, args: argparse.Namespace) -> tuple[float, float]:
    """Return the seconds of all batches: (bare, measured). The bare batch runs in the measured one's progress call."""
    decoder = layer_stack(handle.model).decoder
    names = [name for name in known.names() if not info(name).from_sample]
    rows = torch.tensor(np.stack(tokens.rows))
    bare = 0.0

    def wait() -> float:
        if handle.model.device.type == "cuda":
            torch.cuda.synchronize(handle.model.device)
        return time.perf_counter()

    def beside(progress: Progress) -> None:
        nonlocal bare
        low = min(int(progress.done), len(rows)) - args.batch_size
        began = wait()
        with torch.inference_mode():
            decoder(input_ids=rows[low : low + args.batch_size].to(handle.model.device), use_cache=False)
        bare += wait() - began

    began = wait()
    measure_distances(handle, tokens, criteria=names, batch_size=args.batch_size, watch=Watch(beside))
    return bare, wait() - began - bare


if __name__ == "__main__":
    main()
