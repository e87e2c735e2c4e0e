"""The tokenizer of a checkpoint folder, also where sentencepiece's own file is all there is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import normalizers
from transformers import (
    AutoTokenizer,
    LlamaTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from shortviz.errors import ModelError, first_line
from shortviz.model.files import read_json, refuse_remote_code

SENTENCEPIECE = "tokenizer.model"
_READ_AS_LLAMA = (None, "TokenizersBackend", "PreTrainedTokenizerFast") + tuple(
    f"{kind}Tokenizer{fast}" for kind in ("Llama", "CodeLlama") for fast in ("", "Fast")
)
"""Classes that transformers 5.23 reads sentencepiece's file with otherwise than sentencepiece does."""
_PROBES = (
    "The river runs past the mill.",
    "  two  spaces, and a\nline",
    "four, three! ü 漢 🦊",
    " x",
    "1,234.5 = {a_b}",
)
"""What is read both ways: words, spaces in front and in the middle, letters and signs that a vocabulary may lack."""
_KEPT = ("bos_token", "eos_token", "unk_token", "pad_token", "chat_template", "model_max_length")


def read_tokenizer(name: str, folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a checkpoint folder; raises ModelError where it cannot be read or brings code."""
    options = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    options = options if isinstance(options, dict) else {}
    refuse_remote_code(name, "tokenizer_config.json", options)
    try:
        if is_sentencepiece_alone(folder):
            return _from_sentencepiece(name, folder, options)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError) as error:
        raise ModelError(f"The tokenizer of {name} cannot be read ({first_line(error)}); fetch it again.") from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def is_sentencepiece_alone(folder: Path) -> bool:
    """Return whether a folder has sentencepiece's file and no tokenizer.json."""
    return (folder / SENTENCEPIECE).is_file() and not (folder / "tokenizer.json").is_file()


def _from_sentencepiece(name: str, folder: Path, options: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """Return a tokenizer with the ids that sentencepiece itself gives, by the class that `options` may name.

    transformers 5.23 reads a folder without a class as some byte pair encoding, without the space that sentencepiece
    puts in front of a text, and Llama's class with that space where the file wants none: other ids, and no error. Older
    versions took the Llama tokenizer with its BOS, and so does this, with the rules of Llama's own tokenizer.json.
    Raises ModelError where the ids differ all the same.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        own = SentencePieceProcessor(model_file=str(folder / SENTENCEPIECE))
    except RuntimeError:
        if "tokenizer_class" not in options:
            raise
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)  # tiktoken's files have that name too
    of_llama = options.get("tokenizer_class") in _READ_AS_LLAMA
    made = _as_llama(folder, own, options) if of_llama else AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for text in _PROBES:
        if made(text, add_special_tokens=False)["input_ids"] != own.encode(text):
            raise ModelError(
                f"The tokenizer of {name} is {SENTENCEPIECE} alone, of a kind that is read otherwise here ({text!r} "
                "has other tokens than by sentencepiece); put its tokenizer.json beside it."
            )
    assert isinstance(made, PreTrainedTokenizerBase)
    return made


def _as_llama(folder: Path, own: Any, options: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    bos = options.get("add_bos_token", own.bos_id() >= 0)
    llama = LlamaTokenizer.from_pretrained(folder, local_files_only=True, add_bos_token=bos)
    space = normalizers.Replace(" ", "▁")
    first = [normalizers.Prepend("▁")] if own.encode("x", out_type=str)[0].startswith("▁") else []
    llama.backend_tokenizer.normalizer = normalizers.Sequence([*first, space])
    llama.backend_tokenizer.pre_tokenizer = None
    kept = {name: getattr(llama, name) for name in _KEPT}
    made: PreTrainedTokenizerBase = PreTrainedTokenizerFast(tokenizer_object=llama.backend_tokenizer, **kept)
    return made


def refuse_larger_vocabulary(name: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Raise ModelError where the tokenizer has ids for which the model has no embedding."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= rows:
        raise ModelError(
            f"The tokenizer of {name} has token ids up to {highest} and the model embeddings for 0-{rows - 1}; "
            "get both from the same place."
        )
