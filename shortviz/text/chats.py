"""Chats as text: messages as data sets spell them, written by the model's own chat template, a file's, or none.

No torch: the tokenizer is handed in.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortviz.errors import FieldError, TextError, first_line
from shortviz.records.formatting import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROLES = {"human": "user", "user": "user", "system": "system"} | dict.fromkeys(
    ("gpt", "chatgpt", "bing", "bard", "assistant", "model"), "assistant"
)
"""What `from` says in conversations, and the role that templates know."""
_CALLS = ("tool_calls", "function_call")
"""What a message without content holds."""
_DAY = datetime(2024, 7, 26)
"""What a template that asks for the date is told: with today's, the same text would be another one tomorrow."""
_DATES = re.compile(r"""strftime_now\(\s*["']([^"']+)["']""")
_FIXED_DATE = "{% macro strftime_now(form) %}{{ dates_of_text[form] }}{% endmacro %}{{ '' }}"
"""Put in front of a template: what it is handed by name is data, and could not be called."""
_LARGEST_TEMPLATE = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Chat:
    """One row of chat messages, each with role, content (text), and what else the data set says of it."""

    messages: tuple[Mapping[str, Any], ...]
    where: str
    """Its place for people, e.g. `line 4 of chats.jsonl`."""
    left_out: int = 0
    """Parts of contents that are no text, such as images."""

    @property
    def contents(self) -> str:
        """The contents alone, joined by blank lines."""
        return "\n\n".join(message["content"] for message in self.messages)


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """Rows as text."""

    rows: tuple[str, ...]
    by_template: bool = False
    """Whether a chat template wrote them, so that they hold special tokens that are meant."""
    told: tuple[str, ...] = ()


def is_chat(value: Any) -> bool:
    """Tell whether a value of a column looks like the messages of a chat."""
    if isinstance(value, Mapping):  # as older versions of `datasets` store a list of objects
        return any(isinstance(value.get(key), list) for key in ("role", "from"))
    known = isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping)
    return known and any(key in value[0] for key in ("role", "from"))


def read_chat(value: Any, where: str) -> Chat:
    """Return the messages of a chat, as lists of {role, content} or {from, value}; contents text, or parts of it.

    Raises TextError, naming `where`, for a message that has no role or content, or a role that is not known.
    """
    if isinstance(value, Mapping):
        lists = {name: values for name, values in value.items() if isinstance(values, list)}
        if len({len(values) for values in lists.values()}) > 1:
            lengths = ", ".join(f"{len(values)} of {name}" for name, values in lists.items())
            raise TextError(
                f"The lists of a chat in {where} have different lengths ({lengths}); mend or remove the row."
            )
        value = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    messages, left_out = [], 0
    for number, message in enumerate(value):
        at = f"Message {number} (from 0) in {where}"
        if not isinstance(message, Mapping):
            raise TextError(f"{at} is {type(message).__name__}, not an object of role and content; mend the row.")
        role, content = message.get("role"), message.get("content")
        if role is None and "from" in message:
            name, content = message["from"], message.get("value")
            role = _ROLES.get(str(name).lower())
            if role is None:
                raise TextError(f"{at} is from {name!r}, which is none of {', '.join(_ROLES)}; mend or remove the row.")
        if not isinstance(role, str) or not message.keys() & {"content", "value", *_CALLS}:
            lacks = "content" if isinstance(role, str) else "role"
            raise TextError(f"{at} has no {lacks}; it has: {', '.join(map(str, message))}; mend or remove the row.")
        text, others = _content(content, at)
        left_out += others
        more = {k: v for k, v in message.items() if k not in ("role", "content", "from", "value") and v is not None}
        messages.append({"role": role, "content": text} | more)
    return Chat(messages=tuple(messages), where=where, left_out=left_out)


def _content(content: Any, at: str) -> tuple[str, int]:
    """Return (the text of a message, how many of its parts are no text)."""
    if content is None or isinstance(content, str):  # None where there are only calls of tools, say
        return content or "", 0
    if not isinstance(content, list | tuple):
        raise TextError(f"{at} holds {type(content).__name__} as its content, not text; mend or remove the row.")
    texts = [part if isinstance(part, str) else part.get("text") for part in content if isinstance(part, str | Mapping)]
    found = [text for text in texts if isinstance(text, str)]
    return "".join(found), len(content) - len(found)


def write_chats(
    rows: Sequence[str | Chat], template: str, tokenizer: "PreTrainedTokenizerBase", source: str
) -> Written:
    """Return rows of which some are chats as text: those are written by the template; plain ones stay as they are.

    Args:
        rows: text and chats.
        template: "" for the tokenizer's own, `off` for the contents alone, or the path of a Jinja file.
        tokenizer: of the model.
        source: what the rows are called, for errors.

    Raises:
        TextError: the template cannot be read, or refuses a row (which is named).
        FieldError: the tokenizer has no template, and none was given.
    """
    chats = [row for row in rows if isinstance(row, Chat)]
    if not chats:
        return Written(rows=tuple(map(str, rows)))
    left_out = sum(chat.left_out for chat in chats)
    told = [f"{counted(left_out, 'part')} of chats that {'is' if left_out == 1 else 'are'} no text left out"]
    told = told if left_out else []
    if template == "off":
        texts = tuple(row.contents if isinstance(row, Chat) else row for row in rows)
        return Written(rows=texts, told=("contents of chats without a chat template", *told))
    writer = ChatWriter(template, tokenizer, source)
    texts = tuple(writer.write(row) if isinstance(row, Chat) else row for row in rows)
    return Written(rows=texts, by_template=True, told=(*writer.told, *told))


class ChatWriter:
    """Turns chats into text with a chat template."""

    def __init__(self, template: str, tokenizer: "PreTrainedTokenizerBase", source: str) -> None:
        """Open the template; raises as `write_chats`."""
        self._tokenizer = tokenizer
        self._template = read_template(template) if template else _own_template(tokenizer, source)
        self.told = [f"chats written by the chat template {Path(template).name}" if template else
                     "chats written by the model's chat template"]  # fmt: skip
        self._more: dict[str, Any] = {}
        if "strftime_now" in self._template:
            self._more = {"dates_of_text": {form: _DAY.strftime(form) for form in _DATES.findall(self._template)}}
            self._template = _FIXED_DATE + self._template
            self.told.append(f"its date set to {_DAY:%Y-%m-%d}")
        self._in_parts = self._wants_parts()

    def write(self, chat: Chat) -> str:
        """Return the chat as text; raises TextError where the template refuses it."""
        try:
            return self._rendered(chat.messages, self._in_parts)
        except Exception as error:  # a template is a program of somebody else's, and may fail in any way
            raise TextError(
                f"The chat template refuses {chat.where} ({first_line(error)}); mend or remove the row, or choose "
                "another chat template."
            ) from error

    def _rendered(self, messages: Sequence[Mapping[str, Any]], in_parts: bool) -> str:
        given = [dict(message) for message in messages]
        if in_parts:
            given = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in given]
        return str(
            self._tokenizer.apply_chat_template(
                given, chat_template=self._template, tokenize=False, add_generation_prompt=False, **self._more
            )
        )

    def _wants_parts(self) -> bool:
        """Tell whether the template shows contents only as lists of parts, as those of some models with vision do."""
        return not self._shows(in_parts=False) and self._shows(in_parts=True)

    def _shows(self, in_parts: bool) -> bool:
        try:
            return "Sesame" in self._rendered([{"role": "user", "content": "Sesame"}], in_parts)
        except Exception:  # this is a trial: rows are refused with their own names
            return False


def _own_template(tokenizer: "PreTrainedTokenizerBase", source: str) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise FieldError(
            "chat_template",
            f"is needed: the {source} holds chats, and this model's tokenizer has no chat template of its own; give a "
            "Jinja file, or off for the contents alone",
        ) from error


def read_template(name: str) -> str:
    """Return the chat template in a file; raises TextError where it cannot be read."""
    path = Path(name).expanduser()
    try:
        if path.stat().st_size > _LARGEST_TEMPLATE:
            raise TextError(f"The chat template {name} has {path.stat().st_size:,} bytes; give a Jinja file.")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not UTF-8 text"
        raise TextError(f"The chat template {name} cannot be read ({reason}); give a Jinja file, or off.") from error
