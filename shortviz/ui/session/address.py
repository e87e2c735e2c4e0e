"""The address bar: what a link carries. Opening one prefills; it never starts work.

Criterion, scale, palette and view are widgets bound to the address. Model, texts, run, block and job are written here,
on every page, because a page link drops parameters that no widget holds.
"""

import re
from collections.abc import Iterator, Mapping
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import streamlit as st
from pydantic import TypeAdapter, ValidationError
from streamlit.runtime.scriptrunner import get_script_run_ctx

from shortviz import criteria
from shortviz.criteria.base import MEASURED
from shortviz.errors import PolicyError, ShortvizError
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block
from shortviz.records.text import TEXT_FIELDS, TextSpec
from shortviz.runs.run import EXAMPLES
from shortviz.service import policy
from shortviz.service.requests import MapRequest, MeasureRequest, PushRequest
from shortviz.service.service import Asked, Service, run_key
from shortviz.settings import settings
from shortviz.text.sources import builtin_names
from shortviz.text.tokens import DEFAULT_CALIBRATION, DEFAULT_EVALUATION
from shortviz.ui.session import opened
from shortviz.ui.session import state as s
from shortviz.ui.session.shown import look, settle_block

DTYPES = ("auto", "float32", "bfloat16", "float16")
LINKED_KINDS = ("builtin", "dataset")
"""Kinds of text that a link can name."""
_ROLES = {"text": "calibration", "eval": "evaluation"}
"""Parameters of texts, and what those are for."""
UNLINKED = ("file", "paste", "dataset")
"""What an address says of a text that it cannot name: its kind alone, so that its loss is told."""
LONG_KINDS = ("load", "measure", "losses", "heal", "shrink", "export")

DEVICE = re.compile(r"auto|spread|cpu|cuda(:\d{1,2})?")
_MOST_CHARACTERS = 300
_MOST_ROWS, _MOST_TOKENS = 100_000, 8192
_TEXT = TypeAdapter(TextSpec)
_VIEW_KEYS = (s.CRITERION, s.SCALE, s.VIEW)
_WRITTEN = ("model", "rev", "dtype", "device", "text", "eval", "run", "start", "n", "job")
VIEW_PARAMETERS = frozenset((*_WRITTEN, *_VIEW_KEYS))
"""Parameters that say what is on the map: an address that carries one means the map."""


def read_address(bench: Service, state: s.State, parameters: Mapping[str, str]) -> None:
    """Prefill a new session from the address: a job to attach to, else a run, else a model."""
    calibration, evaluation = read_text(parameters.get("text", "")), read_text(parameters.get("eval", ""))
    if calibration is not None and policy.allowed(settings(), calibration):
        s.set_calibration(state, calibration)
    context = bench.context(parameters.get("job", ""))
    if context is not None:
        _attach(bench, state, context)
        s.set_job(state, context.request.kind, parameters["job"])
    else:
        ref = read_ref(parameters) if parameters.get("model") else None
        if ref is not None:
            _prefill_model(state, ref)
        opened.open_run(bench, state, parameters.get("run", ""))
    if evaluation is not None and policy.allowed(settings(), evaluation):
        s.set_evaluation(state, evaluation)
    named = parameters.get(s.CRITERION)
    if parameters.get("show") == "measured":  # as links of before say it
        named = parameters.get("metric", "nll_increase")
    if named in (*criteria.names(), *MEASURED):  # by its name in a link; by its label where the widget wrote it
        state[s.CRITERION] = named
    chosen = read_block(parameters)
    if chosen is not None:
        s.set_block(state, chosen)


def attach_own(bench: Service, state: s.State) -> None:
    """Show a visitor who is back the jobs that they left running, where the app is hosted: no address names them."""
    for job in bench.own_live():
        context = bench.context(job.id)
        if context is None:
            continue
        if s.ref(state) is None and s.run_key(state) is None:
            _attach(bench, state, context)
        s.set_job(state, context.request.kind, job.id)


def _attach(bench: Service, state: s.State, about: Asked) -> None:
    """Choose the model and the text of a job, and the run that it adds to."""
    request, key = about.request, about.run_key
    if isinstance(request, PushRequest):
        return
    s.set_model(state, request.model)
    if isinstance(request, MeasureRequest):
        s.set_calibration(state, request.text)
    if key is not None and key not in EXAMPLES and key != run_key(request.model, s.calibration(state)):
        opened.open_run(bench, state, key)
    if isinstance(request, MeasureRequest):
        s.give_text(state, s.CALIBRATION, request.text)  # of which the run may not tell enough
    elif isinstance(request, MapRequest):
        s.give_text(state, s.EVALUATION, request.text)


def _prefill_model(state: s.State, ref: ModelRef) -> None:
    """Choose the model of a link; one that a hosted installation does not offer is told instead."""
    try:
        policy.check(settings(), ref)
    except PolicyError as error:
        state[s.NOTICE] = str(error)
    else:
        s.set_model(state, ref)


def read_ref(parameters: Mapping[str, str]) -> ModelRef | None:
    """Return the model that the address names; None where it could not be one."""
    name, revision = parameters.get("model", "").strip(), parameters.get("rev", "").strip()
    if not name or max(len(name), len(revision)) > _MOST_CHARACTERS or not name.isprintable():
        return None
    dtype, device = parameters.get("dtype", "auto"), parameters.get("device", "auto")
    return ModelRef(
        id=name,
        revision=revision or None,
        dtype=dtype if dtype in DTYPES else "auto",
        device=device if DEVICE.fullmatch(device) else "auto",
    )


def read_block(parameters: Mapping[str, str]) -> Block | None:
    """Return the block that the address names, not checked against any model; None where it is not one."""
    start, n = parameters.get("start", ""), parameters.get("n", "")
    if not (start.isdecimal() and n.isdecimal() and len(start) <= 4 and len(n) <= 4):
        return None
    return Block(start=int(start), n=int(n))


def follow_address(bench: Service, state: s.State, parameters: Mapping[str, str]) -> None:
    """Choose the block, and open the run, of an address that the browser went back or forward to."""
    chosen = read_block(parameters)
    if chosen is None:
        return
    key = parameters.get("run")
    if key is None and s.run_key(state) is not None:
        text = parameters.get("text", "")
        s.leave_run(state, None if text in UNLINKED else read_text(text) or DEFAULT_CALIBRATION)
    elif key is not None and key != s.run_key(state):
        opened.open_run(bench, state, key)
    s.set_block(state, chosen)
    if look(bench, state).model is None:  # judged once the model is known, as a link's is
        state[s.LINKED_BLOCK] = {key: parameters[key] for key in ("start", "n")}
    s.want(state, "numbers")


def went_back() -> bool:
    """Return whether the browser's Back or Forward button made this run of the script (not public in Streamlit 1.67).

    The address alone does not tell: a message that left the browser before it heard of a new address has the old one.
    """
    context = get_script_run_ctx(suppress_warning=True)
    return context is not None and context.is_history_navigation


def write_address(bench: Service, state: s.State) -> None:
    """Put model, run and running job into the address, as one entry of the browser's history."""
    wanted = address(bench, state)
    for key in _WRITTEN:
        if key not in wanted and key in st.query_params:
            del st.query_params[key]
    changed = {key: value for key, value in wanted.items() if st.query_params.get(key) != value}
    if changed:
        st.query_params.update(changed)


def go_to(bench: Service, state: s.State, title: str) -> None:
    """Open a page with its address: written afterwards it would be an entry of its own, and Back would need two.

    The navigation's links cannot carry it and take two. Streamlit's default refuses to drop what widgets hold.
    """
    shown = look(bench, state)
    if shown.model is not None:
        settle_block(state, shown.run, shown.model)
    st.switch_page(s.page(state, title), query_params=address(bench, state))


def address(bench: Service, state: s.State) -> dict[str, str]:
    """Return the parameters that name this session's model, run and running job."""
    found: dict[str, str] = {}
    ref = s.ref(state)
    if ref is not None:
        found["model"] = ref.id
        if ref.revision:
            found["rev"] = ref.revision
        found |= {k: v for k, v in (("dtype", ref.dtype), ("device", ref.device)) if v != "auto"}
    for name, spec, default in _texts(bench, state):
        if spec != default:
            found[name] = write_text(spec) if not _why_unlinked(spec) else spec.kind
    run = s.run_key(state)
    if run is not None:
        found["run"] = run
    chosen = s.block(state)
    if chosen is not None:
        found |= {"start": str(chosen.start), "n": str(chosen.n)}
    job = bench.state(s.newest_job(state, LONG_KINDS))
    if job is not None and job.live and policy.names_jobs(settings()):
        found["job"] = job.id
    return found


def _texts(bench: Service, state: s.State) -> Iterator[tuple[str, TextSpec, TextSpec]]:
    """Yield the session's texts beside those that a link without them means: the opened run's, or the usual ones."""
    found = look(bench, state).run if s.run_key(state) is not None else None
    if found is None or found.distances is None:
        yield "text", s.calibration(state), DEFAULT_CALIBRATION
    yield "eval", s.evaluation(state), (opened.evaluation_of(found) if found else None) or DEFAULT_EVALUATION


def left_out(state: s.State) -> list[str]:
    """Return what a link of this session cannot carry, in sentences."""
    return [
        f"The {_ROLES[name]} text {why} and is not in the link; results measured on it are."
        for name, spec in (("text", s.calibration(state)), ("eval", s.evaluation(state)))
        if (why := _why_unlinked(spec))
    ]


def _why_unlinked(spec: TextSpec) -> str:
    """Return why a text cannot be in a link; "" where it can."""
    if spec.kind not in LINKED_KINDS:
        return "was pasted" if spec.kind == "paste" else "is a file of this machine"
    return "" if spec.chat_template in ("", "off") else "is written by a chat template of this machine"


def write_text(spec: TextSpec) -> str:
    """Return a built-in text or data set as a link carries it: `kind:value?limit=64&...`, defaults left out."""
    plain = TextSpec(kind=spec.kind, value=spec.value)
    changed = {name: getattr(spec, name) for name in TEXT_FIELDS if getattr(spec, name) != getattr(plain, name)}
    return f"{spec.kind}:{spec.value}" + (f"?{urlencode(changed)}" if changed else "")


def read_text(value: str) -> TextSpec | None:
    """Return the text that a link names; None where it could not be one.

    Files and pasted text are never taken from a link: it must not make this machine read a file of the sender's choice.
    """
    if not value or len(value) > _MOST_CHARACTERS or not value.isprintable():
        return None
    kind, _, rest = value.partition(":")
    name, _, query = rest.partition("?")
    fields = {key: text for key, text in parse_qsl(query) if key in TEXT_FIELDS}
    try:
        spec: TextSpec = _TEXT.validate_python({"kind": kind, "value": name} | fields)
    except (ValidationError, ShortvizError):
        return None
    known = spec.kind == "dataset" or (spec.kind == "builtin" and spec.value in builtin_names())
    known = known and not _why_unlinked(spec)
    small = (spec.limit or 1) <= _MOST_ROWS and spec.max_length <= _MOST_TOKENS
    return spec if known and small and spec.value else None


def linked() -> dict[str, str]:
    """Return the parameters of the address as they are now, the last one where one is repeated."""
    return {key: st.query_params[key] for key in st.query_params}


def link(bench: Service, state: s.State) -> str:
    """Return an address of the map that restores this view for somebody else; it carries no running job."""
    parts = urlsplit(st.context.url or "http://localhost:8501/")
    parameters = {k: v for k, v in address(bench, state).items() if k != "job"}
    parameters |= {k: str(state[k]) for k in _VIEW_KEYS if state.get(k)}
    return urlunsplit((parts.scheme, parts.netloc, "/map", urlencode(parameters), ""))
