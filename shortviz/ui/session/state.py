"""What a session works on, and the names of all its keys: no other file has names of its own.

What a setter clears, because it depends on what is set, stands in `CLEARS`. Nothing here is shared between sessions;
what is worth more than a session lives in `service.Service` or on disk.
"""

import secrets
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Final, Literal, TypeVar

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from shortviz.records.model import ModelRef
from shortviz.records.plan import Block
from shortviz.records.text import TaskSpec, TextSpec
from shortviz.server.guard import owner_of
from shortviz.text.tokens import DEFAULT_CALIBRATION, DEFAULT_EVALUATION

State = MutableMapping[Any, Any]
Wanted = Literal["", "numbers", "text"]
_T = TypeVar("_T")

BEGUN: Final = "begun"
OWNER: Final = "owner"
NOTICE: Final = "notice"
PAGES: Final = "pages"
REF: Final = "ref"
RUN: Final = "run"
CALIBRATION: Final = "calibration"
EVALUATION: Final = "evaluation"
TRAINING: Final = "training"
TASK: Final = "task"
TASK_PROBLEM: Final = "task_problem"
JOBS: Final = "jobs"
WANTED: Final = "wanted"
CHOSEN: Final = "chosen"
INPUTS: Final = "inputs"
CUT: Final = "cut"
METHOD: Final = "method"
FIT_TOKENS: Final = "fit_tokens"
RECIPE: Final = "recipe"
REPAIR_FIRST: Final = "repair_first"
TRAIN_ON: Final = "train_on"
SHRINK_TO: Final = "shrink_to"
BUDGET: Final = "budget"
LIMIT: Final = "limit"
CRITERION: Final = "criterion"
SCALE: Final = "scale"
VIEW: Final = "view"
PROMPT: Final = "prompt"
PROMPT_KEPT: Final = "prompt_kept"
ESTIMATE_WANTED: Final = "estimate_wanted"
PRESET: Final = "preset"
MODEL_ID: Final = "model_id"
REVISION: Final = "revision"
DTYPE: Final = "dtype"
DEVICE: Final = "device"
TEXT_ROLE: Final = "text_role"
TEXT_INPUTS: Final = "text_inputs"
TARGET: Final = "target"
FOLDER: Final = "folder"
PRECISION: Final = "out_dtype"
PART: Final = "part"
ANYWAY: Final = "export_anyway"
REPOSITORY: Final = "repository"
PRIVATE: Final = "private"
TOKEN: Final = "token"
SUGGESTED: Final = "suggested"
STEP: Final = "step"
PICKED: Final = "picked_runs"
REMOVED: Final = "removed_runs"
TARGET_PAGE: Final = "target_page"
LINKED_BLOCK: Final = "linked_block"
FOLLOWED: Final = "followed_jobs"

DEFAULT_TRAINING: Final = TextSpec(kind="builtin", value="assorted", limit=256, max_length=256, long_rows="cut")
"""Of many kinds, and not the evaluation text: what is learned by heart must not count as healed."""

FIRST_PROMPT: Final = "The capital of France is"

CLEARS: Final[Mapping[str, tuple[str, ...]]] = {
    "set_model": (RUN, CHOSEN, CUT, WANTED, LINKED_BLOCK),
    "set_calibration": (RUN,),
    "set_evaluation": (),
    "set_training": (),
    "set_block": (CUT, LINKED_BLOCK),
    "set_cut": (),
    "open_run": (CHOSEN, CUT, WANTED, LINKED_BLOCK, PRESET),
    "leave_run": (RUN,),
}


def set_model(state: State, ref: ModelRef) -> None:
    """Work with this model from now on."""
    _set("set_model", state, {REF: ref})


def set_calibration(state: State, spec: TextSpec) -> None:
    """Average the distances over this text from now on."""
    _set("set_calibration", state, {CALIBRATION: spec})


def set_evaluation(state: State, spec: TextSpec) -> None:
    """Score the loss on this text from now on."""
    _set("set_evaluation", state, {EVALUATION: spec})


def set_training(state: State, spec: TextSpec) -> None:
    """Fit repairs and train on this text from now on."""
    _set("set_training", state, {TRAINING: spec})


def set_cut(state: State, removed: tuple[int, ...]) -> None:
    """Look at this cut, which need not be one block, until another block is chosen."""
    _set("set_cut", state, {CUT: removed})


def take_cut(state: State, removed: tuple[int, ...]) -> None:
    """Choose the block where the layers are one, else look at them as a cut."""
    block = Block(start=removed[0], n=len(removed))
    if block.layers == removed:
        set_block(state, block)
    else:
        set_cut(state, removed)


def set_task(state: State, spec: TaskSpec) -> None:
    """Score these multiple-choice questions from now on; scores are kept per set of questions."""
    state[TASK] = spec
    state.pop(TASK_PROBLEM, None)


def task_problem(state: State) -> str:
    """Return why the questions that were named last cannot be used; "" where they can."""
    return str(state.get(TASK_PROBLEM, ""))


def task(state: State) -> TaskSpec | None:
    """Return the chosen multiple-choice questions, if any."""
    return _of(state, TASK, TaskSpec)


def set_block(state: State, block: Block) -> None:
    """Choose this block, on every page and in the address; the number inputs are made anew with its values."""
    _set("set_block", state, {CHOSEN: block, INPUTS: _inputs(state) + 1})


def type_block(state: State) -> None:
    """Choose the block that the number inputs say."""
    start, n = state.get(input_key(state, "start")), state.get(input_key(state, "n"))
    if isinstance(start, int) and isinstance(n, int):
        state[CHOSEN] = Block(start=start, n=n)
        state.pop(CUT, None)


def input_key(state: State, name: str) -> str:
    """Return the key of a number input of the block.

    A click gives the inputs new keys. A browser sends the values of all its inputs with every tick of a running job; a
    tick that left before it heard of the click would put the old block back into inputs that had kept their keys.
    """
    return f"{name}_{_inputs(state)}"


def _inputs(state: State) -> int:
    return _of(state, INPUTS, int) or 0


def open_run(state: State, key: str, calibration: TextSpec | None = None, evaluation: TextSpec | None = None) -> None:
    """Show this saved run, and work on its texts: the inputs of texts are made anew with them."""
    texts = {CALIBRATION: calibration, EVALUATION: evaluation}
    changed = {name: spec for name, spec in texts.items() if spec is not None}
    _set("open_run", state, {RUN: key, TEXT_INPUTS: _text_inputs(state) + 1} | changed)


def give_text(state: State, role: str, spec: TextSpec) -> None:
    """Take the text of the opened run, which was not here; the run stays open."""
    state[role] = spec


def text_key(state: State, role: str, name: str) -> str:
    """Return the key of an input of a text; a run that is opened gives them new keys, as a click does `input_key`."""
    found = _text_inputs(state)
    return f"{role}_{name}_{found}" if found else f"{role}_{name}"


def _text_inputs(state: State) -> int:
    return _of(state, TEXT_INPUTS, int) or 0


def leave_run(state: State, calibration: TextSpec | None = None) -> None:
    """Show the run that follows from model and text: the text that is given, else that of the session."""
    changed = {CALIBRATION: calibration, TEXT_INPUTS: _text_inputs(state) + 1} if calibration is not None else {}
    _set("leave_run", state, changed)


def load_for_run(state: State, ref: ModelRef) -> None:
    """Work with this model, and go on looking at the same run."""
    state[REF] = ref


def want(state: State, what: Wanted) -> None:
    """Remember what the person asked to see of the chosen block: by a choice, never by following a link."""
    state[WANTED] = what


def wanted(state: State) -> Wanted:
    """Return what should be measured as soon as it can be: the numbers first, the texts first, or nothing."""
    found = state.get(WANTED)
    return found if found in ("numbers", "text") else ""


def ref(state: State) -> ModelRef | None:
    """Return the model of this session, loaded or not; None before one was chosen."""
    return _of(state, REF, ModelRef)


def run_key(state: State) -> str | None:
    """Return the key of a run opened by name; None where the run follows from model and text."""
    return _of(state, RUN, str)


def calibration(state: State) -> TextSpec:
    """Return the text that distances are averaged over."""
    return _of(state, CALIBRATION, TextSpec) or DEFAULT_CALIBRATION


def evaluation(state: State) -> TextSpec:
    """Return the text that losses are scored on."""
    return _of(state, EVALUATION, TextSpec) or DEFAULT_EVALUATION


def training(state: State) -> TextSpec:
    """Return the text that repairs are fitted to and healing trains on."""
    return _of(state, TRAINING, TextSpec) or DEFAULT_TRAINING


def cut(state: State) -> tuple[int, ...]:
    """Return the layers that are removed: the cut that was looked up, else the chosen block; () where none is."""
    found = state.get(CUT)
    if isinstance(found, tuple) and found and all(type(layer) is int for layer in found):
        return found
    chosen = block(state)
    return chosen.layers if chosen is not None else ()


def block(state: State) -> Block | None:
    """Return the chosen block, not checked against any model."""
    return _of(state, CHOSEN, Block)


def set_job(state: State, kind: str, job_id: str) -> None:
    """Remember the newest job of a kind, and put the newest one in the address."""
    jobs = dict(state.get(JOBS, {}))
    jobs.pop(kind, None)
    jobs[kind] = job_id
    state[JOBS] = jobs


def job(state: State, kind: str) -> str | None:
    """Return the newest job of a kind that this session started or attached to."""
    found = state.get(JOBS, {}).get(kind)
    return found if isinstance(found, str) else None


def newest_job(state: State, kinds: tuple[str, ...]) -> str | None:
    """Return the job of these kinds that this session started last."""
    found = [job_id for kind, job_id in state.get(JOBS, {}).items() if kind in kinds]
    return found[-1] if found else None


def session() -> State:
    """Return this session's state."""
    return st.session_state


def _of(state: State, key: str, kind: type[_T]) -> _T | None:
    """Return what stands under a key, where it is of this kind: a browser may have sent something else."""
    found = state.get(key)
    return found if isinstance(found, kind) else None


def _set(setter: str, state: State, values: Mapping[str, Any]) -> None:
    for key in CLEARS[setter]:
        state.pop(key, None)
    state.update(values)


# What a session remembers of its visit: who it is, what it is told once, where it goes, what it picked.


def begin(state: State, secret: str = "") -> None:
    """Give a new session its first values; its jobs belong to its browser where that has a `secret`, else to itself."""
    state[BEGUN] = True
    state[OWNER] = owner_of(secret) or secrets.token_hex(16)
    state.setdefault(PROMPT, FIRST_PROMPT)


def begun(state: State) -> bool:
    """Return whether the session has been through `begin`."""
    return BEGUN in state


def owner(state: State) -> str:
    """Return this session's secret name, which its jobs belong to; "" before the session has begun."""
    return _of(state, OWNER, str) or ""


def keep_prompt(state: State) -> None:
    """Carry the prompt from page to page; call it before any widget is drawn.

    A widget's value belongs to its page in Streamlit 1.67, and `persist_state` brings it back on that page only:
    assigned here it is the session's own, and the next page's input takes it.
    """
    state[PROMPT] = state[PROMPT_KEPT] = state.get(PROMPT, state.get(PROMPT_KEPT, FIRST_PROMPT))


def tell(state: State, words: str) -> None:
    """Have the page say this once, above everything."""
    state[NOTICE] = words


def notice(state: State) -> str:
    """Return what this session is to be told once."""
    found = state.pop(NOTICE, "")
    return found if isinstance(found, str) else ""


def set_pages(state: State, pages: Mapping[str, StreamlitPage]) -> None:
    """Remember the pages of the app by their titles, so that every room can lead to one."""
    state[PAGES] = pages


def page(state: State, title: str) -> StreamlitPage:
    """Return the page of that title."""
    found: StreamlitPage = state[PAGES][title]
    return found


def pick_runs(state: State, keys: Sequence[str]) -> None:
    """Choose these runs on the Runs page."""
    state[PICKED] = list(keys)


def picked_runs(state: State) -> list[str]:
    """Return the runs that are chosen on the Runs page, in the order they were chosen."""
    return [key for key in _of(state, PICKED, list) or [] if isinstance(key, str)]


def removed_runs(state: State) -> dict[str, str]:
    """Return the names of the runs that this session removed last, by what brings them back."""
    return _of(state, REMOVED, dict) or {}


def leave_for(state: State, title: str) -> None:
    """Remember which page a button asked for; the app goes there when its script runs."""
    state[TARGET_PAGE] = title


def take_target(state: State) -> str:
    """Return the page that a button asked for, once; empty where none did."""
    return str(state.pop(TARGET_PAGE, ""))


def want_estimate(state: State, wanted: bool = True) -> None:
    """Remember that the person chose a model whose size should be worked out."""
    state[ESTIMATE_WANTED] = wanted


def follow_jobs(state: State, live: Sequence[str]) -> list[str]:
    """Remember which jobs run, and return those that ran before and have ended."""
    ended = [job for job in state.get(FOLLOWED, ()) if job not in live]
    state[FOLLOWED] = tuple(live)
    return ended


def suggest_folder(state: State, folder: str) -> None:
    """Put a folder into the input, unless the person typed one of their own."""
    if state.get(FOLDER) in (None, "", state.get(SUGGESTED)):
        state[FOLDER] = folder
    state[SUGGESTED] = folder
