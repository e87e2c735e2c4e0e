"""What is done to the files of a checkpoint before it is read again."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file


def mix_up(folder: Path) -> None:
    """Write a checkpoint's tensors anew into three files, in an order that has nothing to do with its layers."""
    shards = list(folder.glob("*.safetensors"))
    weights = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    for shard in shards:
        shard.unlink()
    names = sorted(weights, key=lambda name: name[::-1])
    index = {name: f"part-{i % 3}.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(index.values())):
        save_file({n: weights[n] for n in names if index[n] == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
