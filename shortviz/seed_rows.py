"""The data sets that the seed's calls take, as text rows: `datasets` objects, lists of dicts, lists of strings."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from shortviz import texts
from shortviz.errors import TextError
from shortviz.records import TextSpec, TokenSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_set(
    dataset: Iterable[Any],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    key: str | None,
    limit: int,
    max_length: int,
    use_chat_template: bool,
) -> TokenSet:
    """Return the first `limit` rows of a data set as tokens; a streamed data set is read no further.

    A row is a string or a dict. `key` None takes the column `text`, else `content`: the defaults of the seed's calls.
    With `use_chat_template` a row's value is a list of chat messages, and the template's own text brings its BOS.
    Raises TextError naming the row that cannot be used.
    """
    if isinstance(dataset, (str, bytes)):
        raise TextError("The dataset is one string; give a list of strings, a list of dicts or a datasets.Dataset.")
    if isinstance(dataset, Mapping):
        names = ", ".join(map(str, dataset))
        raise TextError(f'The dataset is a dict of {names}; choose one part of it, such as dataset["train"].')
    if limit < 1:
        raise TextError(f"The row limit is {limit}; it must be at least 1.")
    rows = tuple(
        _row(row, number, key, tokenizer if use_chat_template else None)
        for number, row in enumerate(islice(dataset, limit))
    )
    spec = TextSpec(kind="paste", value="", max_length=max_length, bos="never" if use_chat_template else "auto")
    return texts.tokenize_rows(texts.TextRows(rows=rows, source="dataset given in Python"), spec, tokenizer)


def _row(row: Any, number: int, key: str | None, template: "PreTrainedTokenizerBase | None") -> str:
    value = row
    if isinstance(row, Mapping):
        column = key or next((name for name in ("text", "content") if name in row), "text")
        if column not in row:
            raise TextError(f"Row {number} has no column {column!r}; give key= one of {', '.join(map(str, row))}.")
        value = row[column]
    if template is not None and isinstance(value, list):
        return str(template.apply_chat_template(value, tokenize=False, add_generation_prompt=False))
    if not isinstance(value, str):
        advice = "use_chat_template=True" if isinstance(value, list) else "key= a column of text"
        raise TextError(f"Row {number} holds a {type(value).__name__}, not text; give {advice}.")
    return value
