"""What every page needs: a job's progress and its error, problems as sentences, text as it stands, a chart."""

import re
from typing import Any, Literal

import plotly.graph_objects as go
import streamlit as st

from shortviz.records.formatting import duration, fields_spelled, size
from shortviz.records.model import ModelInfo
from shortviz.service import policy
from shortviz.service.queue import JobState
from shortviz.service.service import Service
from shortviz.settings import settings

# Text from outside as Markdown shows it: never as markup.

_MARKUP = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~:$&])")


_LABELS = {
    "key": "Column", "subset": "Subset", "split": "Split", "question": "Column: question", "choices": "Choices",
    "label": "Right choice",
}  # fmt: skip
"""Of fields that sentences about a text or questions name."""


def plain(text: str) -> str:
    """Return text that Markdown shows exactly as it is: names, paths and messages come from outside."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))


def model_words(info: ModelInfo) -> str:
    """Return `demo · 30 layers · float32 · cpu`."""
    return f"**{plain(info.id)}** · {info.num_layers} layers · {plain(info.dtype)} · {plain(info.device)}"


def progress_words(job: JobState) -> str:
    """Return `first look: 55 of 464 cells, about 2 min`, and what more the job says of itself."""
    if job.state == "queued":
        place = (
            f"waits for: {plain(job.waits_for)}" if job.waits_for else f"waiting, number {job.position} in the queue"
        )
        return place if job.eta_seconds is None else f"{place}, about {duration(job.eta_seconds)}"
    if job.stopping:
        return "stopping after this batch …"
    words = [job.stage or "starting"]
    unit = "" if job.unit == "bytes" else f" {plain(job.unit)}"
    if job.total > 1 and job.unit:
        words[0] += f": {_amount(job.done, job.unit)} of {_amount(job.total, job.unit)}{unit}"
    if job.eta_seconds is not None and job.total > 1:
        left = job.eta_seconds
        words[0] += f", about {round(left / 60)} min" if 90 <= left < 5400 else f", about {duration(left)}"
    if job.detail:
        words.append(plain(job.detail))
    return " · ".join(words)


def job_progress(job: JobState) -> None:
    """Show how far a job is, with its rate and the time left."""
    st.progress(job.fraction, text=progress_words(job))


def job_error(job: JobState | None) -> None:
    """Show why a job failed; a traceback only where the fault is ours, folded away, and never to strangers."""
    if job is None or job.state != "failed":
        return
    problem(job.error)
    if job.error_is_ours and job.traceback and policy.shows_faults(settings()):
        with st.expander("Details for a bug report", icon=":material/bug_report:"):
            st.code(job.traceback, language="python")


def problem(text: str) -> None:
    """Show what went wrong and what to do, as written; a field is called by its label on the page."""
    st.error(plain(in_labels(text)), icon=":material/error:")


def in_labels(text: str) -> str:
    """Return a sentence with the fields that it names as the page calls them."""
    return fields_spelled(text, lambda field: _LABELS[field.rpartition("_")[2]])


def why_off(unloaded: bool, live: bool) -> str:
    """Return why a button that computes is disabled, and what to do; "" where it is not."""
    if unloaded:
        return "Load the model first, on the Model page."
    return "Another job is at work: wait for its end, or stop it." if live else ""


def cancel_button(tools: Service, job: JobState | None, nothing: str, *, key: str) -> None:
    """Draw the button that ends a job; `nothing` is why it is disabled where none is at work."""
    live = job is not None and job.live
    st.button(
        "Cancel", icon=":material/close:", disabled=not live, help=None if live else nothing, on_click=tools.stop,
        args=(job.id if job is not None else "",), key=key,
    )  # fmt: skip


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return size(value)
    return f"{value:,.{0 if value >= 10 or value == int(value) else 1}f}"


MEASURE_LOSS = "Colour by a measured loss and press Measure."


def missing(words: str, height: int = 440) -> None:
    """Say in place of a chart what has to be measured first."""
    with st.container(height=height, border=True, vertical_alignment="center"):
        st.caption(words, text_alignment="center")


def dark() -> bool:
    """Return whether the page is dark."""
    return st.context.theme.type == "dark"


def main_button() -> Literal["primary", "secondary"]:
    """Return the type of a page's main button.

    Streamlit 1.67 writes it in white on the primary colour, and a chosen segment in that colour on the page: on a dark
    page no one colour has a contrast of 4.5 in both, so there the main button is told by its place and icon alone.
    """
    return "secondary" if dark() else "primary"


def chart(figure: go.Figure, key: str, alt: str, *, words: str | None = None, **options: Any) -> None:
    """Draw a figure and, under it, its finding: `alt`, or other `words` in its place."""
    st.plotly_chart(figure, theme=None, key=key, config={"displaylogo": False}, alt=alt, **options)
    if words != "":
        st.caption(plain(alt if words is None else words))
