"""Multiple-choice questions, read from a local file or a hub data set, each row checked.

No torch. Choices are counted as people count, the 1st and the 2nd.
"""

import hashlib
import json
import reprlib
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from shortviz.errors import TextError
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.formatting import nth
from shortviz.records.text import TaskRow, TaskRows, TaskSpec
from shortviz.text.sources import DEFAULT_ROWS, from_json, table, told_replaced, whole_characters
from shortviz.text.tables import TABLES, Wanted, kind_of, opened

FIELDS = "`question`, `choices` and `label`"
"""What a person chooses columns with; named in errors."""


def read_task(spec: TaskSpec, *, watch: Watch = NO_WATCH) -> TaskRows:
    """Return at most `spec.limit` questions (640 of a data set where it is None), in order.

    A label is, in this order: the label that {"text": [...], "label": [...]} gives a choice; an integer, or a text of
    digits, that counts the choices from `spec.first_label`; a letter (A is the first choice); a choice's own text. A
    text that means two different choices by these rules is refused.

    Raises:
        TextError: the source cannot be read, has no such column, or a row is no question (the row is named).
        ResourceError: a data set cannot be reached.
        Stopped: `watch.stop` was set; it is looked at before each row.
    """
    columns = _columns(spec)
    source, rows, replaced = _source(spec, columns), [], 0
    # A row without a label is told by `_Label`, with its own sentence.
    with table(spec, Wanted(columns=columns, field=FIELDS, may_lack=spec.label)) as found:
        for place, values in islice(found.rows, spec.limit or (DEFAULT_ROWS if spec.kind == "dataset" else None)):
            watch.check("Reading the questions was stopped; nothing was chosen.")
            where = place if place.startswith("line") else f"{place} (from 0)"
            named = dict(zip(columns, values, strict=True))
            if len(spec.choices) == 1:
                named[spec.choices[0]] = from_json(named[spec.choices[0]])
            row, count = whole_characters(named)
            replaced += count
            rows.append(_row(spec, where, row))
    source = "; ".join([source, *filter(None, [found.told]), *told_replaced(replaced)])
    content = [spec.delimiter, *([row.context, row.choices, row.label] for row in rows)]
    fingerprint = hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()
    return TaskRows(rows=tuple(rows), source=source, fingerprint=fingerprint, delimiter=spec.delimiter)


def _columns(spec: TaskSpec) -> tuple[str, ...]:
    columns = (spec.question, *spec.choices, spec.label)
    for key in columns:
        if columns.count(key) > 1:
            raise TextError(f"Column {key!r} was named twice; question, choices and label need one each ({FIELDS}).")
    return columns


def _source(spec: TaskSpec, columns: Sequence[str]) -> str:
    """Return where the questions come from, for people; raises TextError for a file that is no table."""
    named = f"columns {', '.join(columns)}"
    if spec.kind == "dataset":
        subset = f", subset {spec.subset}" if spec.subset else ""
        return f"data set {spec.value}{subset}, split {spec.split}, {named}, first {spec.limit or DEFAULT_ROWS} rows"
    path = Path(spec.value).expanduser()
    if kind_of(path) not in TABLES:
        with opened(path):
            raise TextError(f"{path} is not a table of questions; give a .json, .jsonl, .csv or .parquet file.")
    return f"file {path.name}, {named}"


def _row(spec: TaskSpec, where: str, values: Mapping[str, Any]) -> TaskRow:
    where_in = f"{where} of {Path(spec.value).name if spec.kind == 'file' else spec.value}"
    question = values[spec.question]
    if not isinstance(question, str) or not question.strip():
        found = "is empty" if question is None or isinstance(question, str) else f"is {_shown(question)}"
        raise TextError(f"The question in {where_in} {found} (column {spec.question!r}); it must be text.")
    texts, own = _choices(spec, where_in, [values[key] for key in spec.choices])
    label = _Label(spec=spec, where=where_in, texts=texts, own=own).index(values[spec.label])
    context = spec.prompt.replace("{question}", question)
    return TaskRow(where=where, context=context, choices=texts, label=label)


def _choices(spec: TaskSpec, where: str, values: Sequence[Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (choices, labels that the row itself gives them, if any), checked: at least two, all of them text."""
    texts: Any = values
    own: Any = ()
    if len(values) == 1:
        found = values[0]
        texts, own = (found.get("text"), found.get("label") or ()) if isinstance(found, dict) else (found, ())
        if not isinstance(texts, list | tuple) or not isinstance(own, list | tuple):
            kind = "nothing" if found is None else _shown(found)
            raise TextError(
                f"The choices in {where} are {kind} (column {spec.choices[0]!r}), not a list; name a column that holds "
                "a list, or several columns with one choice each, with `choices`."
            )
    if len(texts) < 2:
        count = "one choice" if len(texts) else "no choices"
        raise TextError(f"There {'is' if len(texts) else 'are'} {count} in {where}; a question needs at least two.")
    for index, text in enumerate(texts):
        if text is None or (isinstance(text, str) and not text.strip()):
            raise TextError(f"The {nth(index)} choice in {where} is empty; give each choice a text or remove the row.")
        if not isinstance(text, str):
            raise TextError(f"The {nth(index)} choice in {where} is {_shown(text)}, not text; put it in quotes.")
    if own and len(own) != len(texts):
        raise TextError(f"There are {len(texts)} choices but {len(own)} labels for them in {where}; mend the row.")
    return tuple(texts), tuple(map(str, own))


def _shown(value: Any) -> str:
    """Return a value that is of the wrong kind for a sentence, cut short."""
    return f"{reprlib.repr(value)} ({type(value).__name__})"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Label:
    """Finds the right choice of a row."""

    spec: TaskSpec
    where: str
    texts: tuple[str, ...]
    own: tuple[str, ...]

    def index(self, value: Any) -> int:
        """Return the index of the right choice, from 0."""
        if value is None or (isinstance(value, str) and not value.strip()):
            raise TextError(
                f"There is no label in {self.where} (column {self.spec.label!r}); name the column of the right choice "
                "with `label`, or remove the row."
            )
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise TextError(
                f"The label in {self.where} is {_shown(value)}; it must be a whole number, a letter, or the "
                "text of a choice."
            )
        meanings = self._meanings(value)
        if not meanings:
            first, last = self.spec.first_label, self.spec.first_label + len(self.texts) - 1
            letters = f"A-{string.ascii_uppercase[min(len(self.texts), 26) - 1]}"
            raise TextError(
                f"The label {value!r} in {self.where} is none of its {len(self.texts)} choices: it can be "
                f"{', '.join((f'{first}-{last}', letters, *self.own))} or the text of a choice."
            )
        if len(meanings) > 1:
            listed = " and ".join(f"the {nth(index)} choice" for index in sorted(meanings))
            raise TextError(
                f"The label {value!r} in {self.where} can mean {listed} (a number or letter, or a choice's text); "
                "use whole numbers as labels."
            )
        return meanings.pop()

    def _meanings(self, value: int | str) -> set[int]:
        if str(value) in self.own:
            return {self.own.index(str(value))}
        if isinstance(value, int):
            return self._inside(value - self.spec.first_label)
        text = value.strip()
        found = {self.texts.index(value)} if value in self.texts else set()
        if text.isascii() and text.isdigit():
            found |= self._inside(int(text) - self.spec.first_label)
        elif len(text) == 1 and text in string.ascii_uppercase:
            found |= self._inside(string.ascii_uppercase.index(text))
        return found

    def _inside(self, index: int) -> set[int]:
        return {index} if 0 <= index < len(self.texts) else set()
