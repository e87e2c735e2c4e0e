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
from shortviz.records import Evaluation, Run, TextInfo
from shortviz.runs import FILE, folder_name, parse_run, run_json
from shortviz.words import size

MOST_BYTES = 50_000_000
"""Of the run itself, unpacked; a run of 126 layers with everything measured takes some 6 MB."""
MOST_LAYERS = 512
MOST_CHARACTERS = 20_000
"""Of any one text in it, e.g. a continuation."""
_DEEPEST = 12
_LARGEST = 2**63 - 1
_UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069]")


def pack_run(run: Run) -> bytes:
    """Return the run as a zip file that holds its run.json and nothing else."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(FILE, json.dumps(run_json(run), allow_nan=False))
    return packed.getvalue()


def file_name(run: Run) -> str:
    """Return a name for that file: of the run, else of its model and text; safe on every system."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", run.name).strip("-.")[:60]
    return f"{name or folder_name(run)}.shortviz.zip"


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
    wrong = [name for name in ("name", "created") if not isinstance(found.get(name), str)]
    if wrong:
        raise RunError(f"{where} is not a run of shortviz ({wrong[0]} is not a text).")


def _walk(value: Any, where: str, depth: int) -> Iterator[Any]:
    if depth > _DEEPEST:
        raise RunError(f"{where} is nested too deeply to be a run.")
    if isinstance(value, Mapping):
        yield from value
        for inner in value.values():
            yield from _walk(inner, where, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner, where, depth + 1)
    else:
        yield value


def _checked(run: Run, where: str) -> Run:
    """Return the run where its parts fit together: every grid its model's size, every text a text."""
    model, layers = run.model, run.model.num_layers
    lists = (model.layer_parameters, model.layer_bytes, model.layer_cache_bytes)
    facts = (model.parameters, model.bytes, *(v for values in lists for v in values))
    texts = (model.id, model.dtype, model.device, model.architecture, model.revision or "", *_words_of(run))
    scores = [*run.evaluations, *(step.evaluation for ledger in run.ledgers for step in ledger.steps)]
    problems = {
        "the model's layers and its list of them differ": any(len(values) != layers for values in lists),
        "a size is not a whole number": any(not isinstance(v, int) or isinstance(v, bool) for v in facts),
        "it has no parameters": not isinstance(model.parameters, int) or model.parameters < 1,
        "a name is not a text": any(not isinstance(t, str) for t in texts),
        "a number of rows or tokens is not whole": not all(
            isinstance(n, int) for text in _texts_of(run) for n in (text.rows, text.tokens)
        ),
        "the versions are not a list of names": not isinstance(run.versions, Mapping),
        "a loss is not a number": not all(_are_numbers(one) for one in scores)
        or (run.losses is not None and not _is_number(run.losses.base.nll)),
        "a ledger removes layers that are not there": any(
            not 0 <= i < layers for ledger in run.ledgers for i in ledger.removed
        ),
        "a name has characters that do not show": any(_UNSEEN.search(str(t)) for t in (*texts, run.name)),
        "the boundaries' norms are not of its layers": run.distances is not None
        and any(v.shape != (layers + 1,) for v in (run.distances.norms.first, run.distances.norms.rest)),
        "an evaluation removes layers that are not there": any(
            not all(isinstance(i, int) and 0 <= i < layers for i in e.removed) for e in run.evaluations
        ),
    }
    for problem, found in problems.items():
        if found:
            raise RunError(f"{where} is not a whole run ({problem}).")
    return run


def _texts_of(run: Run) -> list[TextInfo]:
    found = [run.text, *([run.losses.text] if run.losses is not None else [])]
    found += [evaluation.text for evaluation in run.evaluations]
    for ledger in run.ledgers:
        found += [ledger.text, *(step.evaluation.text for step in ledger.steps)]
    return found


def _words_of(run: Run) -> list[Any]:
    texts = [word for text in _texts_of(run) for word in (text.source, text.bos, text.fingerprint)]
    return [*texts, *(step.name for ledger in run.ledgers for step in ledger.steps)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_numbers(one: Evaluation) -> bool:
    known = [one.nll_increase, one.kl, one.same_top1]
    scores = [one.score, *([one.base] if one.base is not None else [])]
    return all(_is_number(value) for value in known if value is not None) and all(
        _is_number(score.nll) and isinstance(score.tokens, int) for score in scores
    )
