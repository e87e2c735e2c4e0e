"""The proof of an export as a checklist that ticks while the job runs."""

import streamlit as st

from shortviz.records.formatting import count, duration, size
from shortviz.records.measured import ExportReport
from shortviz.service.queue import JobState
from shortviz.ui.parts.notes import progress_words

STAGES = {
    "write": "Written: weights, config, tokenizer",
    "reload": "Reloaded by stock transformers, in a fresh process",
    "prove logits": "Logits equal to the model in memory",
    "prove generation": "Cached generation equal to uncached",
}


def checklist(job: JobState | None) -> None:
    """Show each stage as open, running, done or failed."""
    reached = list(STAGES).index(job.stage) if job is not None and job.stage in STAGES else -1
    after = job is not None and job.stage == "zip"
    for place, words in enumerate(STAGES.values()):
        if job is not None and (job.state == "done" or after or place < reached):
            st.markdown(f":green[:material/check_circle:] {words}")
        elif job is not None and place == reached and job.live:
            st.markdown(f":material/pending: **{words}**")
        elif job is not None and place == reached and job.state == "failed":
            st.markdown(f":red[:material/cancel:] {words}")
        else:
            st.markdown(f":gray[:material/radio_button_unchecked: {words}]")
    if job is not None and job.live:
        st.progress(job.fraction, text=progress_words(job))
    elif job is None:
        st.caption("Nothing is called done before it was reloaded and proved equal.")


def report_lines(report: ExportReport) -> None:
    """Show what was written and how equal it is."""
    st.success(
        f"Done in {duration(report.seconds)}: {count(report.parameters)} parameters, {size(report.bytes)}, "
        f"{len(report.files)} files. Largest logit difference {report.max_logit_diff:g}.",
        icon=":material/verified:",
    )
