"""A part of a page that follows a job: drawn again and again while it runs, and the whole page once it has ended."""

from collections.abc import Callable

import streamlit as st

from shortviz.job_state import JobState
from shortviz.ui.resources import Bench


def follow(tools: Bench, first: JobState | None, draw: Callable[[JobState | None], None], *, seconds: float) -> None:
    """Call `draw` with how a job stands now, every so many seconds while it runs; None where there is no job.

    `first` is the job as the rest of the page was drawn with: where it has ended since, the page is drawn anew.
    """
    live = first is not None and first.live

    @st.fragment(run_every=seconds if live else None)
    def following() -> None:
        job = tools.state(first.id) if first is not None else None
        if live and (job is None or not job.live):
            st.rerun()
        draw(job)

    following()
