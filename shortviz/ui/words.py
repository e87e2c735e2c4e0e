"""Text from outside as Markdown shows it: never as markup."""

import re

_MARKUP = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~:$&])")


def plain(text: str) -> str:
    """Return text that Markdown shows exactly as it is: names, paths and messages come from outside."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))
