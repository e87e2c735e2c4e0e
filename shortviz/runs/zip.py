"""A run as one file that travels: written as a zip, read with care, for it may come from anybody. No torch."""

import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from shortviz.errors import RunError
from shortviz.records.formatting import size
from shortviz.records.json import to_json
from shortviz.records.run import Run
from shortviz.runs.run import FILE, parse_run

MOST_BYTES = 50_000_000
"""Of the run itself, unpacked; a run of 126 layers with everything measured takes some 6 MB."""
MOST_LAYERS = 512
MOST_CHARACTERS = 20_000
"""Of any one text in it, e.g. a continuation."""
_DEEPEST = 12
_MOST_NAMES = 1000
"""Of any one object, e.g. versions: pydantic lists what is wrong with each, however many there are."""
_LARGEST = 2**63 - 1
_UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069]")


def pack_run(run: Run) -> bytes:
    """Return the run as a zip file that holds its run.json and nothing else."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(FILE, to_json(run))
    return packed.getvalue()


def unpack_run(content: bytes, where: str, *, most_bytes: int = MOST_BYTES) -> Run:
    """Return the run in a zip of ours or in a bare run.json; names inside an archive are never used as paths.

    Raises RunError, naming `where` and what is wrong, for everything that is not a whole and consistent run.
    """
    text = _text(content, where, most_bytes)
    try:
        found = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{where} is not a run of shortviz (it is not JSON: {error}).") from error
    _check(found, where)
    del found  # it may be a gigabyte, and the record is made from the text
    run = parse_run(text, where)
    return _checked(run, where)


def _text(content: bytes, where: str, most_bytes: int) -> str:
    if len(content) > most_bytes:
        raise RunError(f"{where} is {size(len(content))}; a run has at most {size(most_bytes)}.")
    if content[:2] == b"PK":
        content = _member(content, where, most_bytes)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RunError(f"{where} is not a run of shortviz (neither a zip nor UTF-8 text).") from error


def _member(content: bytes, where: str, most_bytes: int) -> bytes:
    """Return the one run.json of an archive, read no further than its cap: a small zip can unpack to gigabytes."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [one for one in archive.infolist() if one.filename.rsplit("/", 1)[-1] == FILE]
            if len(members) != 1:
                raise RunError(f"{where} holds {len(members)} files named {FILE}; a run of shortviz holds one.")
            if members[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise RunError(f"{where} is packed in a way that shortviz does not write; pack it as an ordinary zip.")
            with archive.open(members[0]) as member:
                found = member.read(most_bytes + 1)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise RunError(f"{where} is not a zip file that can be read ({error}).") from error
    if len(found) > most_bytes:
        raise RunError(f"{where} unpacks to more than {size(most_bytes)}; a run has at most that.")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number in JSON")


def _check(found: Any, where: str) -> None:
    """Raise RunError where a value could hurt before the records are made; the depth decides how much is made."""
    model = found.get("model") if isinstance(found, Mapping) else None
    layers = model.get("num_layers") if isinstance(model, Mapping) else None
    if not isinstance(layers, int) or isinstance(layers, bool) or not 1 <= layers <= MOST_LAYERS:
        raise RunError(f"{where} says {layers!r} layers; a run has 1 to {MOST_LAYERS}.")
    for value in _walk(found, where, 0):
        if isinstance(value, str) and len(value) > MOST_CHARACTERS:
            raise RunError(f"{where} holds a text of {len(value):,} characters; at most {MOST_CHARACTERS:,} are read.")
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise RunError(f"{where} holds a whole number of {len(str(value))} digits; that is none of a run.")
        if isinstance(value, float) and not math.isfinite(value):
            raise RunError(f"{where} holds a number that is too large ({value}).")


def _walk(value: Any, where: str, depth: int) -> Iterator[Any]:
    if depth > _DEEPEST:
        raise RunError(f"{where} is nested too deeply to be a run.")
    if isinstance(value, Mapping):
        if len(value) > _MOST_NAMES:
            raise RunError(f"{where} holds a list of {len(value):,} names; at most {_MOST_NAMES:,} are read.")
        yield from value
        for inner in value.values():
            yield from _walk(inner, where, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner, where, depth + 1)
    else:
        yield value


def _checked(run: Run, where: str) -> Run:
    """Return the run where its parts fit together: lists of its model's size, cuts of its layers."""
    model, layers = run.model, run.model.num_layers
    lists = (model.layer_parameters, model.layer_bytes, model.layer_cache_bytes)
    cuts = [*(one.removed for one in run.evaluations), *(one.removed for one in run.ledgers)]
    texts = (model.id, model.dtype, model.device, model.architecture, model.revision or "", run.name, *_words_of(run))
    problems = {
        "the model's layers and its list of them differ": any(len(values) != layers for values in lists),
        "it has no parameters": model.parameters < 1,
        "a name has characters that do not show": any(_UNSEEN.search(text) for text in texts),
        "it removes layers that are not there": any(not 0 <= i < layers for cut in cuts for i in cut),
    }
    for problem, found in problems.items():
        if found:
            raise RunError(f"{where} is not a whole run ({problem}).")
    return run


def _words_of(run: Run) -> list[str]:
    texts = [run.text, *([run.losses.text] if run.losses is not None else [])]
    texts += [evaluation.text for evaluation in run.evaluations]
    for ledger in run.ledgers:
        texts += [ledger.text, *(step.evaluation.text for step in ledger.steps)]
    return [word for text in texts for word in (text.source, text.told, text.bos, text.fingerprint)]
