"""A text as options of the command line, for recipes that repeat what was done with it. No torch."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from shortviz.errors import TextError
from shortviz.text_records import TextInfo, TextSpec

_OPTIONS: Mapping[Literal["builtin", "file", "dataset"], str] = {
    "builtin": "--builtin",
    "file": "--text",
    "dataset": "--dataset",
}
_FIELDS = ("key", "subset", "split", "bos")
_BUILT_IN = "built-in "
"""How the source of a built-in text begins."""
_ROLES = {"--builtin": "--eval-builtin", "--text": "--eval-text", "--key": "--eval-key"}


def text_options(spec: TextSpec) -> str:
    """Return the options that name a text, without the length of its rows; "" for pasted text, which none can name.

    Of a file's path only the name is told: where it lies is nobody's business.
    """
    if spec.kind == "paste":
        return ""
    parts = [_OPTIONS[spec.kind], Path(spec.value).name if spec.kind == "file" else spec.value]
    if spec.kind != "builtin" and spec.key != "text":
        parts += ["--key", spec.key]
    if spec.kind == "dataset":
        parts += [*(["--subset", spec.subset] if spec.subset else []), "--split", spec.split]
    parts += ["--limit", str(spec.limit)] if spec.limit is not None else []
    parts += ["--bos", spec.bos] if spec.bos != "auto" else []
    return shlex.join(parts)


def text_of(info: TextInfo) -> TextSpec | None:
    """Return the text of a record, as its options or (in older ones) its name tell it; None where they do not.

    A file is named without its folder, as in the options. Rows are limited where the options say so.
    """
    try:
        words = shlex.split(info.options)
        named = dict(zip(words[::2], words[1::2], strict=True))
        fields: dict[str, Any] = {name: named[f"--{name}"] for name in _FIELDS if f"--{name}" in named}
        if "--limit" in named:
            fields["limit"] = int(named["--limit"])
        if info.max_length is not None:
            fields["max_length"] = info.max_length
        for kind, option in _OPTIONS.items():
            if option in named:
                return TextSpec(kind=kind, value=named[option], **fields)
        if info.source.startswith(_BUILT_IN):
            fields["bos"] = info.bos.partition(":")[0]
            return TextSpec(kind="builtin", value=info.source.removeprefix(_BUILT_IN), **fields)
    except (ValueError, TextError):  # the record came from elsewhere
        pass
    return None


def scored_options(options: str) -> str:
    """Return the options that name the same text as one to score on; "" where there are none for it."""
    parts = shlex.split(options)
    found: list[str] = []
    for name, value in zip(parts[::2], parts[1::2], strict=True):
        if name in _ROLES:
            found += [_ROLES[name], value]
        elif name == "--dataset":
            return ""
    return shlex.join(found)
