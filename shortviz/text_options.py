"""A text as options of the command line, for recipes that repeat what was done with it. No torch."""

import shlex
from pathlib import Path

from shortviz.text_records import TextSpec

_ROLES = {"--builtin": "--eval-builtin", "--text": "--eval-text", "--key": "--eval-key"}


def text_options(spec: TextSpec) -> str:
    """Return the options that name a text, without the length of its rows; "" for pasted text, which none can name.

    Of a file's path only the name is told: where it lies is nobody's business.
    """
    if spec.kind == "paste":
        return ""
    option = {"builtin": "--builtin", "file": "--text", "dataset": "--dataset"}[spec.kind]
    parts = [option, Path(spec.value).name if spec.kind == "file" else spec.value]
    if spec.kind != "builtin" and spec.key != "text":
        parts += ["--key", spec.key]
    if spec.kind == "dataset":
        parts += [*(["--subset", spec.subset] if spec.subset else []), "--split", spec.split]
    parts += ["--limit", str(spec.limit)] if spec.limit is not None else []
    parts += ["--bos", spec.bos] if spec.bos != "auto" else []
    return shlex.join(parts)


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
