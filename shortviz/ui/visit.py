"""What a session remembers of its visit: who it is, what it is told once, where it goes, what it picked."""

import secrets
from collections.abc import Sequence

from shortviz.doorkeeper import owner_of
from shortviz.ui import state as s


def begin(state: s.State, secret: str = "") -> None:
    """Give a new session its first values; its jobs belong to its browser where that has a `secret`, else to itself."""
    state[s.BEGUN] = True
    state[s.OWNER] = owner_of(secret) or secrets.token_hex(16)
    state.setdefault(s.PROMPT, s.FIRST_PROMPT)


def begun(state: s.State) -> bool:
    """Return whether the session has been through `begin`."""
    return s.BEGUN in state


def owner(state: s.State) -> str:
    """Return this session's secret name, which its jobs belong to; "" before the session has begun."""
    found = state.get(s.OWNER, "")
    return found if isinstance(found, str) else ""


def keep_prompt(state: s.State) -> None:
    """Carry the prompt from page to page; call it before any widget is drawn.

    A widget's value belongs to its page in Streamlit 1.67, and `persist_state` brings it back on that page only:
    assigned here it is the session's own, and the next page's input takes it.
    """
    state[s.PROMPT] = state[s.PROMPT_KEPT] = state.get(s.PROMPT, state.get(s.PROMPT_KEPT, s.FIRST_PROMPT))


def tell(state: s.State, words: str) -> None:
    """Have the page say this once, above everything."""
    state[s.NOTICE] = words


def notice(state: s.State) -> str:
    """Return what this session is to be told once."""
    found = state.pop(s.NOTICE, "")
    return found if isinstance(found, str) else ""


def frame(state: s.State) -> None:
    """Remember that this run of the script went through app.py."""
    state[s.FRAMED] = True


def take_frame(state: s.State) -> bool:
    """Return whether this run went through app.py, once."""
    return bool(state.pop(s.FRAMED, False))


def pick_runs(state: s.State, keys: Sequence[str]) -> None:
    """Choose these runs on the Runs page."""
    state[s.PICKED] = list(keys)


def picked_runs(state: s.State) -> list[str]:
    """Return the runs that are chosen on the Runs page, in the order they were chosen."""
    found = state.get(s.PICKED)
    return [key for key in found if isinstance(key, str)] if isinstance(found, list) else []


def removed_runs(state: s.State) -> dict[str, str]:
    """Return the names of the runs that this session removed last, by what brings them back."""
    found = state.get(s.REMOVED)
    return found if isinstance(found, dict) else {}


def leave_for(state: s.State, page: str) -> None:
    """Remember which page a button asked for; the page that is open goes there when it runs."""
    state[s.TARGET_PAGE] = page


def take_target(state: s.State) -> str:
    """Return the page that a button asked for, once; empty where none did."""
    return str(state.pop(s.TARGET_PAGE, ""))


def want_estimate(state: s.State, wanted: bool = True) -> None:
    """Remember that the person chose a model whose size should be worked out."""
    state[s.ESTIMATE_WANTED] = wanted


def estimate_wanted(state: s.State) -> bool:
    """Return whether the size of the chosen model should be worked out."""
    return bool(state.get(s.ESTIMATE_WANTED, False))


def suggest_folder(state: s.State, folder: str) -> None:
    """Put a folder into the input, unless the person typed one of their own."""
    if state.get(s.FOLDER) in (None, "", state.get(s.SUGGESTED)):
        state[s.FOLDER] = folder
    state[s.SUGGESTED] = folder
