"""What a link asked for that cannot be shown: one sentence each, so that nobody takes the default for what was sent.

A parameter that is not ours is passed over. Jobs are not spoken of where the app is hosted, and a run that is not
opened is told in the same words whatever the reason: a link must not find out what others have.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from shortviz import criteria
from shortviz.criteria.base import MEASURED, label
from shortviz.errors import PolicyError
from shortviz.records.formatting import one_line
from shortviz.records.text import TextSpec
from shortviz.service import policy
from shortviz.service.service import Service
from shortviz.settings import settings
from shortviz.ui.session import opened
from shortviz.ui.session import state as s
from shortviz.ui.session.address import DEVICE, DTYPES, UNLINKED, read_block, read_ref, read_text
from shortviz.ui.session.shown import SCALES, VIEWS, Shown, colours, look, settle_block, within

_MOST_TOLD = 3
_LONGEST = 40
_CHOICES: Mapping[str, tuple[str, Sequence[str], Callable[[str], str]]] = {
    s.CRITERION: ("criterion", (*criteria.names(), *MEASURED), label),
    s.SCALE: ("scale", tuple(SCALES), SCALES.__getitem__),
    s.VIEW: ("view", VIEWS, str),
}
"""By parameter: what it is, what it may be, and what the widget that is bound to it writes instead of that."""


def link_problems(bench: Service, state: s.State, parameters: Mapping[str, str]) -> str:
    """Return what the address asked for in vain, and choose a block the model has where it named another.

    Call it when the session has been prefilled.
    """
    shown = look(bench, state)
    attached = bench.context(parameters.get("job", "")) is not None
    asked_for = any(opened.is_lacking(state, one) for one in (s.calibration(state), s.evaluation(state)))
    found = [
        *(() if attached else _model(bench, shown, parameters)),
        *_texts(parameters, attached or asked_for),
        *_block(state, shown, parameters),
        *_choices(shown, parameters),
    ]
    more = len(found) - _MOST_TOLD
    rest = [f"{more} more {'part' if more == 1 else 'parts'} of the link could not be read."] if more > 0 else []
    return " ".join((*found[:_MOST_TOLD], *rest))


def late_problem(bench: Service, state: s.State) -> str:
    """Return what was wrong with a link's block whose model was not known when the session began; told once."""
    asked = state.get(s.LINKED_BLOCK)
    if not isinstance(asked, dict):
        return ""
    shown = look(bench, state)
    if shown.model is None:
        return ""
    del state[s.LINKED_BLOCK]
    return " ".join(_block(state, shown, asked))


def _model(bench: Service, shown: Shown, parameters: Mapping[str, str]) -> Iterator[str]:
    ref, run, job = read_ref(parameters), parameters.get("run"), parameters.get("job")
    if parameters.get("model") and ref is None:
        yield f"The link's model {_quoted(parameters['model'])} cannot be a model's name; {_instead(shown)}."
    if ref is not None:
        dtype, device = parameters.get("dtype", "auto"), parameters.get("device", "auto")
        if dtype not in DTYPES:
            yield f"The link's precision {_quoted(dtype)} is none of {', '.join(DTYPES)}; auto is chosen."
        if not DEVICE.fullmatch(device):
            yield f"The link's device {_quoted(device)} cannot be a device's name; auto is chosen."
    if run and shown.key != run:
        where = "on this machine" if policy.reads_paths(settings()) else "on this server"
        yield f"The link's run {_quoted(run)} cannot be opened {where}; {_instead(shown)}."
    if job and policy.names_jobs(settings()):
        yield f"The link's job {_quoted(job)} is not known any more; what was saved of it is among the runs."


def _instead(shown: Shown) -> str:
    if shown.bundled:
        return "the bundled run is shown"
    if shown.run is not None:
        return f"another run of {shown.run.model.id} is shown"
    return f"{shown.ref.id} is chosen" if shown.ref is not None else "nothing is shown"


def _texts(parameters: Mapping[str, str], attached: bool) -> Iterator[str]:
    """Tell a text that is not the link's; after a restart of the server an open page comes with its own address."""
    for name, role in (("text", "calibration"), ("eval", "evaluation")):
        value = parameters.get(name)
        if not value or (attached and value in UNLINKED):
            continue
        spec = read_text(value)
        if value in UNLINKED:
            yield (
                f"The {role} text of this page was uploaded or pasted in a visit that is over; give it again on the "
                "Model page, for until then the usual text is chosen."
            )
        elif spec is None:
            yield (
                f"The link's {role} text {_quoted(value)} is not a built-in text or a data set with settings that "
                "the app takes; the usual text is chosen."
            )
        else:
            yield from _refused(role, spec)


def _refused(role: str, spec: TextSpec) -> Iterator[str]:
    try:
        policy.check(settings(), spec)
    except PolicyError as error:
        yield f"{error} The usual {role} text is chosen instead of the link's."


def _block(state: s.State, shown: Shown, parameters: Mapping[str, str]) -> Iterator[str]:
    """Tell a block that the model cannot have, or that is none, and choose one that it has; now or when it is known."""
    if not (parameters.get("start") or parameters.get("n")):
        return
    if shown.model is None:
        state[s.LINKED_BLOCK] = {"start": parameters.get("start", ""), "n": parameters.get("n", "")}
        return
    block, layers = read_block(parameters), shown.model.num_layers
    if block is not None and within(block, shown.model):  # one that ends too late is explained where it is typed
        return
    state.pop(s.CHOSEN, None)
    settle_block(state, shown.run, shown.model)
    chosen = s.block(state)
    words = f"start {_quoted(parameters.get('start', ''))}, n {_quoted(parameters.get('n', ''))}"
    not_here = f"is not a block of this model's {layers} layers"
    why = not_here if block is not None else "does not name a start layer and a number of layers"
    yield f"The link's block ({words}) {why}" + (
        f"; start {chosen.start}, n {chosen.n} is chosen." if chosen is not None else "."
    )


def _choices(shown: Shown, parameters: Mapping[str, str]) -> Iterator[str]:
    for key, (what, names, said) in _CHOICES.items():
        value = parameters.get(key)
        if not value:
            continue
        name = next((one for one in names if value in (one, said(one))), None)
        if name is None:
            yield f"The link's {what} {_quoted(value)} is not known; the usual one is shown."
        elif key == s.CRITERION and shown.run is not None and name not in colours(shown.run):
            yield f"This run has no {said(name)}, which the link asks for; another criterion is shown."


def _quoted(value: str) -> str:
    """Return a value of the address on one line, printable, and not endless."""
    return f'"{one_line(value, _LONGEST)}"'
