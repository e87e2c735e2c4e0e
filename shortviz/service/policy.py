"""What a hosted installation does for strangers, and where it says no. No torch, no streamlit.

On one's own machine everything is allowed. Where the app is hosted, `check` walks through whatever a job is about,
record by record and field by field: a model must be on the list, a text within its size, a number finite and within its
limit, a folder inside the download folder. What has no limit in `limits` is refused, so a new field begins with one.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from shortviz import criteria
from shortviz.errors import PolicyError, TextError
from shortviz.records.formatting import counted, duration, one_line, size
from shortviz.records.heal import HealSettings, OwnText
from shortviz.records.model import ModelEstimate, ModelRef
from shortviz.records.run import Run
from shortviz.records.text import TaskSpec, TextSpec
from shortviz.service.queue import JobState
from shortviz.service.requests import EvidenceRequest, HealRequest, MeasureRequest
from shortviz.settings import Settings
from shortviz.text.sources import builtin_names
from shortviz.text.tables import holds_more

FOLDER_FIELDS = ("folder", "adapter", "out", "path", "checkpoint")
_WORDS = (
    *("kind", "id", "revision", "dtype", "device"),
    *("key", "subset", "split", "bos", "order", "special_tokens", "chat_template", "long_rows"),
    *("question", "choices", "label", "prompt", "delimiter"),
    *("run_key", "run", "methods", "repo_id", "out_dtype", "method", "objective", "targets", "precision", "quantize"),
    *("criteria", "strategies", "repair", "preset", "write", "other_texts", "lm_eval", "prompts"),
)
"""Fields that hold a name or a prompt."""
_LAYERS = ("start", "n", "plans", "layers", "to_layers", "last_layers", "max_n", "greedy", "sizes")
"""Fields that hold a layer, or a number of layers."""
_FLAGS = ("stream", "anyway", "adapter_only", "archive", "private", "gradient_checkpointing")
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_MOST_LAYERS = 1_000
_DEEPEST = 6
_MOST_CHOICES = 26


def check(rules: Settings, *asked: Any) -> None:
    """Raise PolicyError where anything in these records crosses a limit of a hosted installation."""
    if not rules.is_hosted:
        return
    most = limits(rules)
    for name, value in _walk("", asked, 0):
        judge = next((judge for kind, judge in _RECORDS.items() if isinstance(value, kind)), None)
        if judge is not None:
            judge(rules, value)
        elif isinstance(value, Path) or (isinstance(value, str) and name in FOLDER_FIELDS):
            _check_folder(rules, Path(value))
        elif isinstance(value, str | int | float) and name in most:
            _check_size(name, value, most[name])
        elif value is not None and not _is_container(value):
            raise PolicyError(
                f"This hosted demo has no limit for {one_line(_said(name))}, and takes nothing without one; run "
                "shortviz on your own machine."
            )


def limits(rules: Settings) -> Mapping[str, float]:
    """Return by the name of a field, in whichever record: the largest number it may hold, or the most characters."""
    words = dict.fromkeys(_WORDS, float(rules.max_prompt))
    return words | dict.fromkeys(_LAYERS, _MOST_LAYERS) | dict.fromkeys(_FLAGS, 1) | {
        "value": rules.max_characters,
        **dict.fromkeys(("limit", "windows", "rows", "lm_eval_limit"), rules.max_rows),
        **dict.fromkeys(("max_length", "tokens_per_row", "window", "length"), rules.max_row_tokens),
        **dict.fromkeys(("batch_size", "fit_tokens", "accumulate", "self_tokens"), rules.max_tokens),
        "choose_on_text": 1,
        "max_new_tokens": rules.max_new_tokens,
        "steps": rules.max_steps,
        "warmup_steps": rules.max_steps,
        "eval_every": 1e9,  # measuring less often costs less
        "seed": 1e9,
        "probe_items": 100,
        "rank": 256,
        "alpha": 1e9,  # these are only factors
        "learning_rate": 10,
        "temperature": 100,
        "seam_weight": 1e6,
        "dropout": 1,
        "first_label": 1,
        "stream": 0,  # what is streamed passes no check of its size
        "mix": 1,
        "self_share": 1,
        "self_length": rules.max_new_tokens,
        "self_temperature": 100,
        "self_top_p": 1,
        "self_seed": 1e9,
        "max_nll_increase": 1e9,  # these two are only compared with
        "min_accuracy": 1,
    }  # fmt: skip


def allowed(rules: Settings, *asked: Any) -> bool:
    """Return whether `check` would let this pass."""
    try:
        check(rules, *asked)
    except PolicyError:
        return False
    return True


def check_start(rules: Settings, about: Any, own: Sequence[JobState], free: int) -> None:
    """Raise PolicyError where this visitor may not start this job now.

    Args:
        rules: settings of this installation.
        about: what the job is about, any record.
        own: the jobs that they want and that wait or run.
        free: bytes of memory that are free now.
    """
    if not rules.is_hosted:
        return
    check(rules, about)
    live = sum(not job.stopping for job in own)
    if live >= rules.max_jobs:
        raise PolicyError(
            f"You have {counted(live, 'job')} waiting or running already; wait for one to finish or cancel one."
        )
    if free < rules.min_free_mb * 1_000_000:
        raise PolicyError(
            f"This server is short of memory ({size(free)} free, {size(rules.min_free_mb * 1e6)} are kept); "
            "try again in a few minutes, or run shortviz on your own machine."
        )


# What the app asks of an installation; on one's own machine nothing is closed.


def reads_paths(rules: Settings) -> bool:
    """Return whether files of this machine may be named."""
    return not rules.is_hosted


def manages_runs(rules: Settings) -> bool:
    """Return whether runs may be brought in, renamed and removed."""
    return not rules.is_hosted


def names_jobs(rules: Settings) -> bool:
    """Return whether an address may name a job: where strangers meet, a job belongs to one session."""
    return not rules.is_hosted


def shows_faults(rules: Settings) -> bool:
    """Return whether a traceback may be shown."""
    return not rules.is_hosted


def knows_browsers(rules: Settings) -> bool:
    """Return whether jobs belong to whoever started them, and browsers are told apart."""
    return rules.is_hosted


def welcome(rules: Settings) -> str:
    """Return what a stranger is told first: what they may do here, and how they have it without limits; "" at home."""
    if not rules.is_hosted:
        return ""
    return (
        f"Welcome. This demo is shared: it loads {', '.join(rules.allowed_models)}, reads up to "
        f"{rules.max_rows:,} rows of text, and stops a job after {duration(rules.max_job_seconds)}. On your own "
        "machine there are no limits; in the folder of the source:"
    )


def may_show(rules: Settings, run: Run) -> bool:
    """Return whether everybody may see a run: where strangers meet, only those of built-in texts."""
    return not rules.is_hosted or run.text.source.startswith("built-in")


def shares_runs(rules: Settings) -> bool:
    """Return whether a run that a link opens may be somebody else's, who is not to find others' results in it."""
    return rules.is_hosted


def offered_models(rules: Settings) -> list[str] | None:
    """Return the only models that may be loaded; None where any may."""
    return [name.partition("@")[0] for name in rules.allowed_models] if rules.is_hosted else None


def offered_datasets(rules: Settings) -> tuple[str, ...] | None:
    """Return the only data sets that may be read; None where any may."""
    return rules.allowed_datasets if rules.is_hosted else None


def most_rows(rules: Settings) -> int:
    """Return the most rows of a text, or questions, that a form offers."""
    return rules.max_rows if rules.is_hosted else 100_000


def longest_row(rules: Settings) -> int:
    """Return the most tokens of a row that a form offers."""
    return rules.max_row_tokens if rules.is_hosted else 8192


def most_tokens(rules: Settings) -> tuple[int, int]:
    """Return how many tokens a form lets a repair read or a model write at most, and how many after each prompt."""
    usual = OwnText().self_length
    return (rules.max_tokens, min(usual, rules.max_new_tokens)) if rules.is_hosted else (10_000_000, usual)


def most_models(rules: Settings) -> int:
    """Return how many loaded models are kept."""
    return 1 if rules.is_hosted else 2


def most_runs(rules: Settings) -> int | None:
    """Return how many run directories are kept; None where the disk is the owner's own."""
    return rules.max_runs if rules.is_hosted else None


def most_seconds(rules: Settings) -> float | None:
    """Return how long a job may take; None where it may take any time."""
    return rules.max_job_seconds if rules.is_hosted else None


def may_add(rules: Settings, *, bundled: bool) -> bool:
    """Return whether results may go into a run: where strangers meet, the bundled ones are everybody's."""
    return not (rules.is_hosted and bundled)


def most_treated(rules: Settings) -> tuple[int, float]:
    """Return how many repaired and healed models are kept in memory, and of how many bytes of their own."""
    return (1, rules.max_treated_mb * 2**20) if rules.is_hosted else (3, math.inf)


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
    nothing = value == OwnText()  # the model writes no text, so that the length of one does not matter
    if is_dataclass(value) and not isinstance(value, type) and not nothing:
        for entry in fields(value):
            yield from _walk(entry.name, getattr(value, entry.name), depth + 1)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _walk(str(key), inner, depth + 1)
    elif name == "changes":  # settings of a healing, by name
        for key, inner in value:
            yield from _walk(key, inner, depth + 1)
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
    if spec.chat_template not in ("", "off"):
        raise PolicyError("This hosted demo reads no chat templates of yours; use the model's own, or off.")
    _check_rows(rules, spec)


def _check_rows(rules: Settings, spec: TextSpec) -> None:
    """Check rows and tokens; without a limit, a small built-in text or a pasted one is used whole.

    A character is taken for a token: more than that are rare, and the time of a job is limited too.
    """
    whole = spec.kind == "paste" or (spec.kind == "builtin" and spec.value != "python-reference")
    pasted = -(-len(spec.value) // spec.max_length) if spec.kind == "paste" and spec.cuts else 1
    if spec.max_length > rules.max_row_tokens:  # time and memory of one row, which no stop can interrupt in a layer
        raise PolicyError(
            f"Rows of {spec.max_length:,} tokens are longer than the {rules.max_row_tokens:,} that this hosted demo "
            "reads; choose shorter rows."
        )
    rows = spec.limit if spec.limit is not None else (max(pasted, 1) if whole else rules.max_rows + 1)
    if rows > rules.max_rows:
        raise PolicyError(f"This hosted demo reads at most {rules.max_rows} rows of a text; choose fewer rows.")
    if rows * spec.max_length > rules.max_tokens:
        raise PolicyError(
            f"{rows:,} rows of {spec.max_length:,} tokens are more than the {rules.max_tokens:,} tokens that this "
            "hosted demo reads; choose fewer or shorter rows."
        )


def _check_training(rules: Settings, recipe: HealSettings) -> None:
    """Check one update: a stop is heard between two of them, and its memory grows with the tokens."""
    if recipe.tokens_per_step > rules.max_tokens // 8:
        raise PolicyError(
            f"This hosted demo trains on at most {rules.max_tokens // 8:,} tokens an update; choose a smaller batch or "
            "window."
        )


def _check_heal(rules: Settings, request: HealRequest) -> None:
    """Judge the whole recipe: what the preset says, and what is changed in it."""
    check(rules, request.settings())


def _check_own(rules: Settings, own: OwnText) -> None:
    """Refuse prompts in files of the server."""
    if own.prompts is not None:
        _check_upload(rules, Path(own.prompts))


def _check_criteria(rules: Settings, request: MeasureRequest) -> None:
    """Refuse criteria that are files of code."""
    other = [name for name in request.criteria if name not in criteria.names()]
    if other:
        raise PolicyError(f"This hosted demo has no criterion {one_line(other[0])}; choose one of the map's.")


def _check_evidence(rules: Settings, request: EvidenceRequest) -> None:
    """Refuse texts that are files of the server, and tasks, which would be fetched from anywhere."""
    if request.lm_eval:
        raise PolicyError("This hosted demo runs no tasks of lm_eval; run shortviz on your own machine.")
    other = [name for name in request.other_texts if name not in builtin_names()]
    if other:
        raise PolicyError(f"This hosted demo reads no files of its server; {one_line(other[0])} is no built-in text.")


def _check_upload(rules: Settings, path: Path) -> None:
    inside = _is_inside(path, rules.uploads_dir)
    if inside and not path.exists():
        raise PolicyError("The uploaded file is no longer on the server; give it again.")
    if not inside or path.is_symlink() or not path.is_file():
        raise PolicyError("This hosted demo reads no files of its server; upload the text or paste it.")
    check_upload_bytes(rules, path.stat().st_size)
    if _unpacks_to_more(path, path.stat().st_mtime_ns, rules.max_upload_mb * 1_000_000):
        raise PolicyError(f"The uploaded file unpacks to more than {rules.max_upload_mb} MB; shorten it.")


@lru_cache(maxsize=256)
def _unpacks_to_more(path: Path, _stamp: int, most: int) -> bool:
    """Tell whether a file, as it is at that time, unpacks to more than so many bytes; no more than that is unpacked.

    A file that is broken is told where it is read.
    """
    with suppress(TextError):
        return holds_more(path, most)
    return False


def check_upload_bytes(rules: Settings, num_bytes: int) -> None:
    """Raise PolicyError where an uploaded file is too large to be kept."""
    if rules.is_hosted and num_bytes > rules.max_upload_mb * 1_000_000:
        raise PolicyError(f"The uploaded file is larger than {rules.max_upload_mb} MB; shorten it.")


def kept_bytes(rules: Settings) -> float:
    """Return how many bytes of treated models are kept beside runs."""
    return rules.max_kept_mb * 2**20 if rules.is_hosted else math.inf


def most_downloads(rules: Settings, found: int) -> int:
    """Return how many older downloads may stay of those that there are."""
    return rules.max_downloads - 1 if rules.is_hosted else found


def offers_folders(rules: Settings) -> bool:
    """Return whether a person may say where on this machine something is written."""
    return not rules.is_hosted


def keep_newest(rules: Settings, folder: Path, most: int) -> None:
    """Remove the oldest files of a folder that strangers could fill."""
    if rules.is_hosted:
        for old in sorted(folder.iterdir(), key=lambda file: -file.stat().st_mtime)[most:]:
            old.unlink(missing_ok=True)


def most_unfinished(rules: Settings) -> tuple[float, float]:
    """Return how many bytes of unfinished work are kept, and for how many seconds: a month on one's own machine."""
    return (rules.max_kept_mb * 2**20, 86_400.0) if rules.is_hosted else (math.inf, 30 * 86_400.0)


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


_RECORDS: Mapping[type, Callable[[Settings, Any], None]] = {
    ModelRef: _check_model, TextSpec: _check_text, TaskSpec: _check_task, HealSettings: _check_training,
    HealRequest: _check_heal, OwnText: _check_own, MeasureRequest: _check_criteria, EvidenceRequest: _check_evidence,
}  # fmt: skip
"""What is judged as a whole, before its fields."""


def _is_container(value: Any) -> bool:
    """Return whether `_walk` goes on to what is inside."""
    return isinstance(value, Mapping | list | tuple | set | frozenset) or (
        is_dataclass(value) and not isinstance(value, type)
    )


def _said(name: str) -> str:
    return name.replace("_", " ") or "a value without a name"


def _check_size(name: str, value: str | float, most: float) -> None:
    name = _said(name)
    if isinstance(value, str):
        if len(value) > most:
            raise PolicyError(
                f"The {name} has {len(value):,} characters, and this hosted demo takes at most {most:,.0f}; shorten it."
            )
    elif value is True and most == 0:
        raise PolicyError(f"This hosted demo does not {name}; run shortviz on your own machine.")
    elif not abs(value) <= most:  # NaN too; a whole number may be too large to be a float
        shown = f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if abs(value) < 1e15 else "far too large"
        raise PolicyError(
            f"{name.capitalize()} is {shown}, and this hosted demo takes at most {most:,.0f}; choose a smaller number."
        )
