"""What a hosted installation does for strangers, and where it says no. No torch, no streamlit.

On one's own machine everything is allowed. Where the app is hosted, `check` walks through whatever a job is about,
record by record and field by field, so that a new kind of job is covered without a line here: a model must be on the
list, a text within its size, a number finite and within its cap, a folder inside the download folder.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from shortviz.errors import PolicyError
from shortviz.heal_settings import HealSettings
from shortviz.job_state import JobState
from shortviz.records import ModelEstimate, ModelRef, Run, TaskSpec, TextSpec
from shortviz.settings import Settings
from shortviz.words import one_line, size

_FOLDER_FIELDS = ("folder", "out", "path", "checkpoint")
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_LARGEST = 1e9
_DEEPEST = 6
_MOST_CHOICES = 26


def check(rules: Settings, *asked: Any) -> None:
    """Raise PolicyError where anything in these records crosses a limit of a hosted installation."""
    if not rules.is_hosted:
        return
    for name, value in _walk("", asked, 0):
        if isinstance(value, ModelRef):
            _check_model(rules, value)
        elif isinstance(value, TextSpec):
            _check_text(rules, value)
        elif isinstance(value, TaskSpec):
            _check_task(rules, value)
        elif isinstance(value, Path) or (isinstance(value, str) and name in _FOLDER_FIELDS):
            _check_folder(rules, Path(value))
        elif isinstance(value, HealSettings):
            _check_training(rules, value)
        elif isinstance(value, str):
            _check_characters(rules, name, value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            _check_number(rules, name, value)


def allowed(rules: Settings, *asked: Any) -> bool:
    """Return whether `check` would let this pass."""
    try:
        check(rules, *asked)
    except PolicyError:
        return False
    return True


def check_start(rules: Settings, about: Any, live: Sequence[JobState], owner: str, free: int) -> None:
    """Raise PolicyError where this session may not start this job now.

    Args:
        rules: settings of this installation.
        about: what the job is about, any record.
        live: the jobs that wait or run.
        owner: the session that asks.
        free: bytes of memory that are free now.
    """
    if not rules.is_hosted:
        return
    check(rules, about)
    own = sum(job.owner == owner and not job.stopping for job in live)
    if own >= rules.max_jobs:
        raise PolicyError(f"You have {own} jobs waiting or running already; wait for one to finish or cancel one.")
    if free < rules.min_free_mb * 1_000_000:
        raise PolicyError(
            f"This server is short of memory ({size(free)} free, {size(rules.min_free_mb * 1e6)} are kept); "
            "try again in a few minutes, or run shortviz on your own machine."
        )


def check_estimate(rules: Settings, estimate: ModelEstimate) -> None:
    """Raise PolicyError where a model is larger than a hosted installation loads."""
    _check_parameters(rules, estimate.id, estimate.parameters, rules.max_parameters, "loads")


def check_export(rules: Settings, name: str, parameters: int) -> None:
    """Raise PolicyError where a model is larger than a hosted installation exports."""
    _check_parameters(rules, name, parameters, rules.max_export_parameters, "exports")


def _check_parameters(rules: Settings, name: str, found: int, most: int, does: str) -> None:
    if rules.is_hosted and found > most:
        raise PolicyError(
            f"{one_line(name)} has {found / 1e6:,.0f} million parameters, and this hosted demo {does} at most "
            f"{most / 1e6:,.0f} million; run shortviz on your own machine for larger models."
        )


def _walk(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """Yield every record and leaf inside a value with the name of the field that holds it."""
    if depth > _DEEPEST:
        raise PolicyError("This request is nested too deeply; simplify it.")
    yield name, value
    if is_dataclass(value) and not isinstance(value, type):
        if isinstance(value, ModelRef | TextSpec | TaskSpec):
            return
        for entry in fields(value):
            yield from _walk(entry.name, getattr(value, entry.name), depth + 1)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _walk(str(key), inner, depth + 1)
    elif isinstance(value, list | tuple | set | frozenset):
        for inner in value:
            yield from _walk(name, inner, depth + 1)


def _check_model(rules: Settings, ref: ModelRef) -> None:
    names = [entry.partition("@")[0] for entry in rules.allowed_models]
    if ref.id not in names:
        raise PolicyError(
            f"This hosted demo offers only {', '.join(names) or 'no models'}, not {one_line(ref.id)}; run shortviz on "
            "your own machine for other models."
        )
    pinned = dict(entry.split("@", 1) for entry in rules.allowed_models if "@" in entry).get(ref.id)
    # Anybody can propose a commit to a public model, so only the revision that the list names is ever read.
    if ref.revision is not None and ref.revision != pinned:
        raise PolicyError(f"This hosted demo offers {one_line(ref.id)} at one revision only; leave the revision empty.")
    if ref.dtype not in _DTYPES:
        raise PolicyError(
            f"This hosted demo knows no precision {one_line(ref.dtype)}; choose one of {', '.join(_DTYPES)}."
        )
    if ref.device != "auto" and not re.fullmatch(r"cpu|cuda(:\d)?", ref.device):
        raise PolicyError(f"This hosted demo has no device {one_line(ref.device)}; choose auto.")


def _check_text(rules: Settings, spec: TextSpec) -> None:
    if spec.kind == "paste" and len(spec.value) > rules.max_characters:
        raise PolicyError(
            f"The pasted text has {len(spec.value):,} characters, and this hosted demo takes {rules.max_characters:,}; "
            "shorten it."
        )
    if spec.kind == "file":
        _check_upload(rules, Path(spec.value))
    if spec.kind == "dataset":
        _check_dataset(rules, spec.value)
    for value in (spec.key, spec.subset or "", spec.split):
        _check_characters(rules, "name", value)
    _check_rows(rules, spec)


def _check_rows(rules: Settings, spec: TextSpec) -> None:
    """Check rows and tokens; without a limit, a small built-in text or a pasted one is used whole."""
    whole = spec.kind == "paste" or (spec.kind == "builtin" and spec.value != "python-reference")
    if spec.max_length > rules.max_row_tokens:  # time and memory of one row, which no stop can interrupt in a layer
        raise PolicyError(
            f"Rows of {spec.max_length:,} tokens are longer than the {rules.max_row_tokens:,} that this hosted demo "
            "reads; choose shorter rows."
        )
    rows = spec.limit if spec.limit is not None else (1 if whole else rules.max_rows + 1)
    if rows > rules.max_rows:
        raise PolicyError(f"This hosted demo reads at most {rules.max_rows} rows of a text; choose fewer rows.")
    if rows * spec.max_length > rules.max_tokens:
        raise PolicyError(
            f"{rows:,} rows of {spec.max_length:,} tokens are more than the {rules.max_tokens:,} tokens that this "
            "hosted demo reads; choose fewer or shorter rows."
        )


def _check_training(rules: Settings, recipe: HealSettings) -> None:
    """Check one update: a stop is heard between two of them, and its memory grows with the tokens."""
    if recipe.tokens_per_step > rules.max_tokens // 8 or recipe.rank > 256:
        raise PolicyError(
            f"This hosted demo trains on at most {rules.max_tokens // 8:,} tokens an update, with a rank up to 256; "
            "choose a smaller batch, window or rank."
        )


def _check_upload(rules: Settings, path: Path) -> None:
    inside = _is_inside(path, rules.uploads_dir)
    if not inside or path.is_symlink() or not path.is_file():
        raise PolicyError("This hosted demo reads no files of its server; upload the text or paste it.")
    if path.stat().st_size > rules.max_upload_mb * 1_000_000:
        raise PolicyError(f"The uploaded file is larger than {rules.max_upload_mb} MB; shorten it.")


def check_upload_bytes(rules: Settings, num_bytes: int) -> None:
    """Raise PolicyError where an uploaded file is too large to be kept."""
    if rules.is_hosted and num_bytes > rules.max_upload_mb * 1_000_000:
        raise PolicyError(f"The uploaded file is larger than {rules.max_upload_mb} MB; shorten it.")


def keep_newest(rules: Settings, folder: Path, most: int) -> None:
    """Remove the oldest files of a folder that strangers could fill."""
    if rules.is_hosted:
        for old in sorted(folder.iterdir(), key=lambda file: -file.stat().st_mtime)[most:]:
            old.unlink(missing_ok=True)


def without_prompts(rules: Settings, run: Run) -> Run:
    """Return a run as others may see it: where strangers meet, what somebody asked a model is not kept in it."""
    if not rules.is_hosted or not run.ledgers:
        return run
    ledgers = (
        replace(one, prompt="", steps=tuple(replace(step, continuation="") for step in one.steps))
        for one in run.ledgers
    )
    return replace(run, ledgers=tuple(ledgers))


def _check_task(rules: Settings, spec: TaskSpec) -> None:
    if spec.kind == "file":
        _check_upload(rules, Path(spec.value))
    else:
        _check_dataset(rules, spec.value)
    for value in (spec.question, *spec.choices, spec.label, spec.prompt, spec.subset or "", spec.split):
        _check_characters(rules, "name", value)
    if len(spec.choices) > _MOST_CHOICES:
        raise PolicyError(f"This hosted demo takes at most {_MOST_CHOICES} columns of choices; name fewer.")
    if spec.limit is None or spec.limit > rules.max_rows:
        raise PolicyError(f"This hosted demo scores at most {rules.max_rows} questions; set a limit.")


def _check_dataset(rules: Settings, name: str) -> None:
    if name not in rules.allowed_datasets:
        offers = ", ".join(rules.allowed_datasets)
        raise PolicyError(
            f"This hosted demo does not read the data set {one_line(name)}; "
            + (f"choose one of {offers}." if offers else "choose a built-in text or paste your own.")
        )


def _check_folder(rules: Settings, folder: Path) -> None:
    if not _is_inside(folder, rules.downloads_dir):
        raise PolicyError("This hosted demo writes no folders on its server; choose the zip download.")


def _is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path, with every link and .. followed, lies inside a folder."""
    try:
        return path.resolve().is_relative_to(folder.resolve()) and path.resolve() != folder.resolve()
    except (OSError, ValueError, RuntimeError):  # a name with a null byte, a loop of links
        return False


def _check_characters(rules: Settings, name: str, value: str) -> None:
    most = rules.max_characters if name in ("text", "value") else rules.max_prompt
    if len(value) > most:
        what = "prompt" if "prompt" in name else "text"
        raise PolicyError(
            f"The {what} has {len(value):,} characters, and this hosted demo takes at most {most:,}; shorten it."
        )


def _check_number(rules: Settings, name: str, value: float) -> None:
    caps = {
        "max_new_tokens": rules.max_new_tokens,
        "new_tokens": rules.max_new_tokens,
        "steps": rules.max_steps,
        "max_steps": rules.max_steps,
        "rows": rules.max_rows,
        "limit": rules.max_rows,
        "tokens": rules.max_tokens,
        "max_tokens": rules.max_tokens,
        "max_length": rules.max_row_tokens,
        "window": rules.max_row_tokens,
    }
    most = caps.get(name, _LARGEST)
    if not abs(value) <= most:  # NaN too; a whole number may be too large to be a float
        shown = f"{value:.4g}" if isinstance(value, float) or abs(value) < 1e15 else "far too large"
        raise PolicyError(
            f"{(name or 'A number').replace('_', ' ').capitalize()} is {shown}, and this hosted demo takes at most "
            f"{most:,.0f}; choose a smaller number."
        )
