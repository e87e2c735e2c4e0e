"""The text picker of the Model page: what distances are averaged over, and what losses are scored on."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import streamlit as st

from shortviz.errors import ShortvizError
from shortviz.records.text import Bos, TextSpec
from shortviz.service import inspect, measure, policy
from shortviz.service.service import Service
from shortviz.settings import settings
from shortviz.text.sources import builtin_names, read_rows
from shortviz.text.tokens import FIT_TOKENS
from shortviz.ui.parts import notes
from shortviz.ui.parts.notes import plain
from shortviz.ui.session import state as s

KINDS = {"builtin": "Built-in", "paste": "Paste", "file": "File", "dataset": "Hub data set"}
_ROLES = {
    "calibration": "Distances are averaged over this text.",
    "evaluation": "Perplexity is scored on this text; keep it different from the calibration text.",
}
_WORDS = _ROLES | {
    "training": "Repairs are fitted to this text and healing trains on it; keep it different from the evaluation text."
}
_READ = {"calibration": s.calibration, "evaluation": s.evaluation, "training": s.training}
_SET = {"calibration": s.set_calibration, "evaluation": s.set_evaluation, "training": s.set_training}
_SHOWN_TOKENS, _SHOWN_CHARACTERS = 64, 400  # a box that scrolls could not be scrolled by keyboard


def draw(bench: Service, state: s.State) -> None:
    """Draw the picker for both texts."""
    st.subheader("Text")
    role = st.segmented_control(
        "Role",
        list(_ROLES),
        format_func=lambda name: f"{name.capitalize()} text",
        default="calibration",
        required=True,
        key=s.TEXT_ROLE,
        label_visibility="collapsed",
        persist_state="session",
    )
    pick(bench, state, role if role in _ROLES else "calibration")


def pick(bench: Service, state: s.State, role: str) -> None:
    """Draw the picker of one text: `calibration`, `evaluation` or `training`."""
    st.caption(_WORDS[role])
    spec = _READ[role](state)
    try:
        chosen = _inputs(role, spec)
        policy.check(settings(), chosen)
    except ShortvizError as error:
        notes.problem(str(error))
        return
    if chosen is None:
        return
    if chosen != spec:
        _SET[role](state, chosen)
    _cost(role, chosen)
    _first_row(bench, state, chosen)


def _inputs(role: str, spec: TextSpec) -> TextSpec | None:
    kinds = _kinds()
    kind = st.segmented_control(
        "Source",
        kinds,
        format_func=lambda name: KINDS[name],
        default=spec.kind if spec.kind in kinds else "builtin",
        required=True,
        key=f"{role}_kind",
        label_visibility="collapsed",
        persist_state="session",
    )
    base = spec if kind == spec.kind else TextSpec(kind="builtin", value="passages", limit=spec.limit)
    if kind == "paste":
        value = st.text_area(
            "Text", value=_value(base, "paste"), key=f"{role}_paste", height=120, persist_state="session"
        )
        found = TextSpec(kind="paste", value=value) if value.strip() else None
        if found is None:
            st.caption("Paste some text; it is one row.")
    elif kind == "file":
        found = _file(role, base)
    elif kind == "dataset":
        found = _dataset(role, base)
    else:
        names = builtin_names()
        value = base.value if base.value in names else "passages"
        name = st.selectbox(
            "Built-in text", names, index=names.index(value), key=f"{role}_builtin", persist_state="session"
        )
        found = TextSpec(kind="builtin", value=name)
    return _sizes(role, spec, found) if found is not None else None


def _kinds() -> list[str]:
    """Return the sources that there are: where the app is hosted, data sets only where some are offered."""
    return [kind for kind in KINDS if kind != "dataset" or offers_datasets()]


def offers_datasets() -> bool:
    """Return whether data sets of the hub may be read here."""
    return policy.offered_datasets(settings()) != ()


def _value(spec: TextSpec, kind: str) -> str:
    return spec.value if spec.kind == kind else ""


def _file(role: str, base: TextSpec) -> TextSpec | None:
    upload = st.file_uploader(
        "Upload (.txt, .jsonl, .csv, .parquet)", type=["txt", "jsonl", "csv", "parquet"], key=f"{role}_upload"
    )
    path = ""
    if not policy.reads_paths(settings()):
        st.caption("Where the page is shown inside another one, uploads may not work: paste the text instead.")
    else:
        path = st.text_input(
            "or a path on this machine", value=_value(base, "file"), key=f"{role}_path", persist_state="session"
        )
    key = st.text_input("Column", value=base.key, key=f"{role}_key", persist_state="session")
    if upload is not None:
        return TextSpec(kind="file", value=str(store_upload(upload)), key=key)
    return TextSpec(kind="file", value=path.strip(), key=key) if path.strip() else None


def store_upload(upload: Any) -> Path:
    """Keep an uploaded file under the name of its content, never under the name that the browser sent."""
    content = upload.getvalue()
    policy.check_upload_bytes(settings(), len(content))
    suffix = Path(upload.name).suffix.lower()
    suffix = suffix if suffix in (".txt", ".jsonl", ".csv", ".parquet") else ".txt"
    target = settings().uploads_dir / f"{hashlib.sha256(content).hexdigest()[:24]}{suffix}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        policy.keep_newest(settings(), target.parent, settings().max_runs)
    return target


def _dataset(role: str, base: TextSpec) -> TextSpec | None:
    name = st.text_input(
        "Data set id",
        value=_value(base, "dataset"),
        placeholder="allenai/c4",
        key=f"{role}_dataset",
        persist_state="session",
        help="Streamed: only the rows that are used are fetched.",
    )
    with st.container(horizontal=True, gap="small"):
        subset = st.text_input("Subset", value=base.subset or "", key=f"{role}_subset", persist_state="session")
        split = st.text_input("Split", value=base.split, key=f"{role}_split", persist_state="session")
        key = st.text_input("Column", value=base.key, key=f"{role}_dataset_key", persist_state="session")
    if not name.strip():
        return None
    return TextSpec(
        kind="dataset", value=name.strip(), subset=subset.strip() or None, split=split.strip() or "train", key=key
    )


def _sizes(role: str, spec: TextSpec, found: TextSpec) -> TextSpec:
    most, longest = policy.most_rows(settings()), policy.longest_row(settings())
    with st.container(horizontal=True, gap="small"):
        limit = (
            st.number_input(
                "Rows, at most",
                1,
                most,
                value=min(spec.limit or 64, most),
                key=f"{role}_limit",
                persist_state="session",
            )
            if role != "evaluation"
            else spec.limit
        )
        length = (
            st.number_input(
                "Tokens a row",
                2,
                longest,
                value=min(spec.max_length, longest),
                key=f"{role}_length",
                persist_state="session",
            )
            if role != "evaluation"
            else spec.max_length
        )
        bos = st.selectbox(
            "BOS",
            ("auto", "always", "never"),
            index=("auto", "always", "never").index(spec.bos),
            key=f"{role}_bos",
            persist_state="session",
            help="auto: what the tokenizer itself does. Some models are far worse without it.",
        )
    return replace(found, limit=limit, max_length=int(length), bos=cast(Bos, bos))


def _cost(role: str, spec: TextSpec) -> None:
    if role == "training" and spec.limit is not None:
        st.caption(
            f"Up to {spec.limit * spec.max_length:,} tokens; a repair takes the first {FIT_TOKENS:,}, healing all "
            "but the end, which is held out to find the best step."
        )
    elif role == "calibration" and spec.limit is not None:
        st.caption(
            f"Up to {spec.limit * spec.max_length:,} tokens: time grows with rows × tokens; four times the rows "
            "halve the error bars."
        )
    elif role == "evaluation":
        windows = measure.APP_WINDOWS
        st.caption(
            f"The app scores up to {windows.windows} windows of {windows.window} tokens; a first number comes after "
            f"{inspect.FIRST_LOOK_TOKENS} tokens."
        )


def _first_row(bench: Service, state: s.State, spec: TextSpec) -> None:
    """Show the first row: as tokens where a model is loaded, else as text; a data set only on request."""
    ref = s.ref(state)
    handle = bench.models.get(ref) if ref is not None else None
    if spec.kind == "dataset":
        st.caption("The first rows are fetched when the measurement starts.")
        return
    try:
        row = read_rows(replace(spec, limit=1)).rows[0]
    except ShortvizError as error:
        notes.problem(str(error))
        return
    if handle is None:
        st.caption("First row (load a model to see it as tokens)")
        st.code(
            row[:_SHOWN_CHARACTERS] + (" …" if len(row) > _SHOWN_CHARACTERS else ""), language=None, wrap_lines=True
        )
        return
    ids = handle.tokenizer(row[:4000], add_special_tokens=False, verbose=False)["input_ids"]
    shown = inspect.first_row_tokens(ids[:_SHOWN_TOKENS], handle)
    more = f", of {min(len(ids), spec.max_length):,}" if len(ids) > _SHOWN_TOKENS else ""
    st.caption(f"First row as tokens of {plain(handle.info.id)}: the first {len(shown)}{more}")
    st.code(" ¦ ".join(token.replace("\n", "⏎") for token in shown), language=None, wrap_lines=True)
