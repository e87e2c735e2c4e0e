"""An opened run: its texts become the session's, what is measured goes into it, and what is not here is said."""

import hashlib
from dataclasses import replace
from pathlib import Path

from shortviz.errors import RunError
from shortviz.records.model import ModelInfo, ModelRef
from shortviz.records.run import Run
from shortviz.records.text import TextInfo, TextSpec, text_of
from shortviz.runs.library import title
from shortviz.runs.run import EXAMPLES
from shortviz.service import policy
from shortviz.service.service import Service, run_key
from shortviz.settings import settings
from shortviz.text.sources import builtin_names
from shortviz.text.tokens import DEFAULT_CALIBRATION, DEFAULT_EVALUATION
from shortviz.ui.session import state as s


def open_run(bench: Service, state: s.State, key: str) -> bool:
    """Show a run and work on its texts; False where there is none of that key that can be read."""
    try:
        run = bench.runs.get(key)
    except RunError:
        return False
    if run is None:
        return False
    calibration, evaluation, now, ref = calibration_of(run), evaluation_of(run), s.calibration(state), s.ref(state)
    if calibration is not None and not is_here(calibration) and ref is not None and run_key(ref, now) == key:
        calibration = now  # it was measured in this visit, on text that no record tells
    if calibration is None and not is_here(now):
        calibration = DEFAULT_CALIBRATION  # another opened run's text was not here, and this one has none yet
    s.open_run(state, key, calibration, evaluation)
    return True


def calibration_of(run: Run) -> TextSpec | None:
    """Return the text that a run's distances are of, as its record tells it (see `is_here`); None where it has none."""
    if run.distances is None:
        return None
    found = _told(run.text)
    rows = run.text.rows + run.text.skipped
    length = run.text.max_length if 2 <= (run.text.max_length or 0) <= policy.longest_row(settings()) else None
    return replace(found, limit=found.limit or max(rows, 1), max_length=length or found.max_length)


def evaluation_of(run: Run) -> TextSpec | None:
    """Return the text that a run's losses are scored on; None where none were scored."""
    info = _scored_on(run)
    return replace(_told(info), max_length=DEFAULT_EVALUATION.max_length) if info is not None else None


def _scored_on(run: Run) -> TextInfo | None:
    newest = [*(one.text for one in run.ledgers[::-1]), *(one.text for one in run.evaluations[::-1])]
    return run.losses.text if run.losses is not None else next(iter(newest), None)


def _told(info: TextInfo) -> TextSpec:
    """Return the text of a record; where that is nowhere here, one of its kind that is to be given."""
    found = text_of(info)
    if found is None or (found.kind == "builtin" and found.value not in builtin_names()):
        return TextSpec(kind="file" if info.source.startswith("file ") else "paste", value="")
    if policy.allowed(settings(), found):
        upload = settings().uploads_dir / found.value
        return replace(found, value=str(upload)) if found.kind == "file" and upload.is_file() else found
    return TextSpec(kind="file" if found.kind == "file" else "paste", value="")


def is_here(spec: TextSpec) -> bool:
    """Return whether a text can be read: a pasted one holds something, a file is there."""
    if spec.kind == "file":
        return bool(spec.value) and Path(spec.value).expanduser().is_file()
    return spec.kind != "paste" or bool(spec.value.strip())


def is_lacking(state: s.State, spec: TextSpec) -> bool:
    """Return whether a text of the opened run is to be given first."""
    return s.run_key(state) is not None and not is_here(spec)


def gives(state: s.State, spec: TextSpec, chosen: TextSpec) -> bool:
    """Return whether a person gives the text of the opened run, which was not here, and chooses no other."""
    alike = replace(chosen, value=spec.value, key=spec.key) == spec
    return is_lacking(state, spec) and chosen != spec and alike


def is_of(spec: TextSpec, info: TextInfo, *, in_rows: bool) -> bool:
    """Return whether a record is of this text, as far as it tells; of pasted text it does not. Windows have no rows."""
    found = text_of(info)
    if found is None:
        return False
    named = Path(spec.value).name if spec.kind == "file" else spec.value
    whole = found.limit is None and spec.limit == info.rows + info.skipped
    limit = spec.limit if not (in_rows and whole) else None
    length = spec.max_length if in_rows else found.max_length
    return replace(spec, value=named, limit=limit, max_length=length) == found


def goes_into(state: s.State, ref: ModelRef) -> str:
    """Return the run that what is measured goes into: the opened one, else that of the model and the text.

    A bundled run stays as it is.
    """
    key = s.run_key(state)
    return key if key is not None and key not in EXAMPLES else run_key(ref, s.calibration(state))


def own_copy(bench: Service, state: s.State, key: str) -> str:
    """Return the opened run, or where the app is hosted the visitor's own copy of it, which is then the open one."""
    own = _own_key(state, key)
    if own != key:
        run = bench.runs.get(key)
        if run is not None and bench.runs.get(own) is None:
            bench.runs.put(own, run)
        state[s.RUN] = own  # it holds what is shown
    return own


def _own_key(state: s.State, key: str) -> str:
    if key in EXAMPLES or not policy.shares_runs(settings()):
        return key
    mark = f"-{hashlib.sha256(s.owner(state).encode()).hexdigest()[:8]}"
    return key if key.endswith(mark) else f"{key[:90]}{mark}"


def run_words(state: s.State, key: str | None, run: Run) -> tuple[str, str]:
    """Return which run is shown, in a few words, and where what is measured goes, in a sentence."""
    opened, text = s.run_key(state), run.text.source
    if key in EXAMPLES:
        return "bundled run", f"On {text}. It stays as it is: what you measure goes into a copy of your own."
    if opened is None or key is None:
        return f"run on {text}", "Of this model and this text: what you measure goes into it."
    if _own_key(state, key) != key:
        return title(run), "It may be somebody else's: what you measure goes into a copy of your own."
    return title(run), "What you measure, repair and train goes into it, until you choose another text or model."


def problems(state: s.State, run: Run, loaded: ModelInfo | None) -> list[str]:
    """Return what an opened run lacks here, in sentences: its texts, or the very model; `loaded` is one that is not."""
    found = []
    scored = _scored_on(run)
    if run.distances is not None and not is_here(s.calibration(state)):
        found.append(
            f"The calibration text of this run, {run.text.source}, is not here: give it on the Model page, or choose "
            "another there, which begins a run of its own."
        )
    if scored is not None and not is_here(s.evaluation(state)):
        found.append(
            f"The evaluation text of this run, {scored.source}, is not here: give it on the Model page, or choose "
            "another there."
        )
    if loaded is not None:
        found.append(
            f"{_words(loaded)} is loaded, and this run is of {_words(run.model)}: load that one to measure in this run."
        )
    return found


def _words(model: ModelInfo) -> str:
    revision = f", revision {model.revision[:12]}" if model.revision else ""
    return f"{model.id} ({model.num_layers} layers, {model.parameters:,} parameters, {model.dtype}{revision})"
