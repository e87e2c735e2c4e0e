"""What every page shows: the status line, a job's progress, and errors as sentences."""

import re

import streamlit as st

from shortviz.records.formatting import duration, size
from shortviz.records.model import ModelInfo
from shortviz.service import policy
from shortviz.service.queue import JobState
from shortviz.service.service import Service
from shortviz.settings import settings

# Text from outside as Markdown shows it: never as markup.

_MARKUP = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~:$&])")


def plain(text: str) -> str:
    """Return text that Markdown shows exactly as it is: names, paths and messages come from outside."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))


def model_words(info: ModelInfo) -> str:
    """Return `demo · 30 layers · float32 · cpu`."""
    return f"**{plain(info.id)}** · {info.num_layers} layers · {plain(info.dtype)} · {plain(info.device)}"


def progress_words(job: JobState) -> str:
    """Return `measure: 412 of 640 rows · 38 rows/s · 6 s left`."""
    if job.state == "queued":
        return f"waiting, number {job.position} in the queue"
    if job.stopping:
        return "stopping after this batch …"
    words = [job.stage or "starting"]
    unit = "" if job.unit == "bytes" else f" {plain(job.unit)}"
    if job.total > 1 and job.unit:
        words.append(f"{_amount(job.done, job.unit)} of {_amount(job.total, job.unit)}{unit}")
    if job.rate > 0 and job.total > 1:
        words.append(f"{_amount(job.rate, job.unit)}{unit}/s")
    if job.eta_seconds is not None and job.total > 1:
        words.append(f"{duration(job.eta_seconds)} left")
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
    """Show what went wrong and what to do, exactly as written."""
    st.error(plain(text), icon=":material/error:")


def cancel(bench: Service, job_id: str) -> None:
    """Stop a job; what it has so far is kept."""
    bench.jobs.cancel(job_id)


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return size(value)
    return f"{value:,.{0 if value >= 10 or value == int(value) else 1}f}"


def missing(words: str) -> None:
    """Say in place of a chart what has to be measured first."""
    with st.container(height=440, border=True, vertical_alignment="center"):
        st.caption(f"{words} Show “measured” and press Measure.", text_alignment="center")
