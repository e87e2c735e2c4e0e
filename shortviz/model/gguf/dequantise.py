"""The program that turns one GGUF file into a checkpoint folder; model/gguf/copies.py runs it in a process of its own.

Its own process, because half a minute of Python would make the app's page stutter, and because it can then be stopped
at once and gives all its memory back. It imports nothing of shortviz. Usage: dequantise.py FILE.gguf FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerBase

_LOADING_ARGUMENTS = ("gguf_file", "is_local", "local_files_only", "name_or_path")


def main(gguf: Path, folder: Path) -> None:
    """Write config, tokenizer (with its chat template) and float32 safetensors of `gguf` into the existing folder."""
    _say(0)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    _say(1)
    model, info = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        local_files_only=True,
        output_loading_info=True,
    )
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if wrong:
        sys.exit(f"{len(wrong)} tensors do not fit the model its metadata describes, such as {wrong[0]}")
    _say(2)
    length = getattr(model.config, "max_position_embeddings", None)
    if length and tokenizer.model_max_length > length:  # GGUF files do not state it
        tokenizer.model_max_length = length
    if hasattr(model.config, "_model_name_or_path"):  # the GGUF's title, which transformers takes for a path
        del model.config._model_name_or_path
    save_tokenizer(tokenizer, folder)
    _drop_invented_tokens(folder / "tokenizer.json", model.get_input_embeddings().weight.shape[0])
    model.save_pretrained(folder, max_shard_size="4GB")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer that has no files of its own so that transformers 4 and other readers open it too.

    transformers 5 writes a class and a list of tokens by names that they do not know, and how our copy was loaded.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: value for name, value in config.items() if name not in _LOADING_ARGUMENTS}
    if kept.get("tokenizer_class") == "TokenizersBackend":
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(kept.get("extra_special_tokens"), list):
        kept["additional_special_tokens"] = kept.pop("extra_special_tokens")
    path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _drop_invented_tokens(path: Path, rows: int) -> None:
    """Take out tokens without an embedding: transformers 5.23 adds <|endoftext|> to every byte-level vocabulary."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["added_tokens"] = [token for token in fields["added_tokens"] if token["id"] < rows]
    path.write_text(json.dumps(fields, ensure_ascii=False), encoding="utf-8")


def _say(step: int) -> None:
    """Tell model/gguf/copies.py the number of the step that begins."""
    print(step, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]))
