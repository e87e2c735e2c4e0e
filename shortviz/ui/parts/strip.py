"""Components of our own: what mounts one, and the token strip of the inspector (see `figures/strip.py`)."""

import math
from importlib import resources
from typing import Any

import streamlit as st

from shortviz.figures.strip import strip_data
from shortviz.records.plan import Block
from shortviz.service import measure
from shortviz.service.service import Service
from shortviz.ui.parts.notes import dark, plain
from shortviz.ui.session import state as s
from shortviz.ui.session.shown import Shown


@st.cache_resource
def component(name: str) -> Any:
    """Return what mounts the component whose three files have this name in `ui/assets`."""
    assets = resources.files("shortviz") / "ui" / "assets"
    html, css, js = ((assets / f"{name}.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    return st.components.v2.component(f"shortviz.{name}", html=html, css=css, js=js)


def draw(bench: Service, shown: Shown, block: Block) -> None:
    """Draw the strip of the chosen block; without a model, say that it takes one."""
    spec = s.evaluation(s.session())
    found = bench.words.get(measure.measured_key(shown.ref, spec, block.layers)) if shown.ref is not None else None
    if found is None and shown.handle is not None:
        return
    st.markdown("##### Which words need these layers?")
    if found is None:
        st.caption("Load the model to see by how much the loss of each word rises.")
        return
    scored = [token for token in found if not math.isnan(token.rise)]
    number = sum(token.tokens for token in scored)
    mean = sum(token.rise for token in scored) / number
    name = f"built-in {spec.value}" if spec.kind == "builtin" else "the evaluation text"
    words = f"The first {number} scored tokens of {name}: {mean:+.2f} nats a token."
    st.caption(f"{plain(words)} Point at one, or use the arrow keys.")
    data = strip_data(found, str(block), dark=dark())
    component("strip")(data=data, key="token_strip")
