"""The text picker: what distances are averaged over, losses are scored on, and repairs and trainings learn from."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import streamlit as st
from streamlit.runtime.uploaded_file_manager import DeletedFile

from shortviz.errors import ShortvizError
from shortviz.records.text import Bos, LongRows, SpecialTokens, TextSpec
from shortviz.service import inspect, measure, policy
from shortviz.service.service import Service
from shortviz.settings import settings
from shortviz.text.chats import Chat
from shortviz.text.sources import builtin_names, read_rows
from shortviz.text.tables import CHATS, SUFFIXES, TABLES, first_rows, kind_of, text_columns
from shortviz.text.tokens import encode, pieces
from shortviz.ui.parts import notes
from shortviz.ui.parts.notes import plain
from shortviz.ui.session import opened
from shortviz.ui.session import state as s

if TYPE_CHECKING:
    from shortviz.model.handle import ModelHandle

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
_READ_CHARACTERS = 4000
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
    if role != "training" and opened.gives(state, spec, chosen):
        s.give_text(state, role, chosen)
    elif chosen != spec:
        _SET[role](state, chosen)
    ref = s.ref(state)
    handle = bench.models.get(ref) if ref is not None else None
    try:
        _cost(role, measure.counts_of(bench, ref, chosen, handle, windows=role == "evaluation"))
        _first_row(handle, chosen)
    except ShortvizError as error:
        notes.problem(str(error))


def _key(role: str, name: str) -> str:
    return s.text_key(s.session(), role, name)


def _inputs(role: str, spec: TextSpec) -> TextSpec | None:
    kinds = [kind for kind in KINDS if kind != "dataset" or offers_datasets()]
    kind = st.segmented_control(
        "Source",
        kinds,
        format_func=lambda name: KINDS[name],
        default=spec.kind if spec.kind in kinds else "builtin",
        required=True,
        key=_key(role, "kind"),
        label_visibility="collapsed",
        persist_state="session",
    )
    base = spec if kind == spec.kind else TextSpec(kind="builtin", value="passages", limit=spec.limit)
    if kind == "paste":
        value = st.text_area(
            "Text", value=_value(base, "paste"), key=_key(role, "paste"), height=120, persist_state="session"
        )
        found = TextSpec(kind="paste", value=value) if value.strip() else None
        if found is None:
            st.caption("Paste some text; it is cut into rows.")
    elif kind == "file":
        found = _file(role, base)
    elif kind == "dataset":
        found = _dataset(role, base)
    else:
        names = builtin_names()
        value = base.value if base.value in names else "passages"
        name = st.selectbox(
            "Built-in text", names, index=names.index(value), key=_key(role, "builtin"), persist_state="session"
        )
        found = TextSpec(kind="builtin", value=name)
    return _sizes(role, spec, found) if found is not None else None


def offers_datasets() -> bool:
    """Return whether data sets of the hub may be read here."""
    return policy.offered_datasets(settings()) != ()


def _value(spec: TextSpec, kind: str) -> str:
    return spec.value if spec.kind == kind else ""


def _file(role: str, base: TextSpec) -> TextSpec | None:
    upload = uploaded("Upload a file", SUFFIXES, _key(role, "upload"))
    path = ""
    if not policy.reads_paths(settings()):
        st.caption("Where the page is shown inside another one, uploads may not work: paste the text instead.")
    else:
        path = st.text_input(
            "or a path on this machine", value=_value(base, "file"), key=_key(role, "path"), persist_state="session"
        ).strip()
    value = str(store_upload(upload)) if upload is not None else path
    if not value:
        return None
    policy.check(settings(), TextSpec(kind="file", value=value, limit=1))  # before it is opened
    return TextSpec(kind="file", value=value, key=_column(role, base, Path(value).expanduser()))


def uploaded(label: str, suffixes: Sequence[str], key: str) -> Any:
    """Draw where a file is uploaded; returns it, or None. A file that a server before this one had is asked for again.

    The open page of a browser outlives the server, and still shows the name.
    """
    shown = ", ".join(suffix for suffix in suffixes if suffix.count(".") == 1)
    packed = sorted({Path(suffix).suffix for suffix in suffixes if suffix.count(".") > 1})
    more = f"; {' or '.join(packed)} of one" if packed else ""
    found = st.file_uploader(f"{label} ({shown}{more})", type=list(suffixes), key=key)
    if isinstance(st.session_state.get(key), DeletedFile):
        notes.problem("The server was restarted and no longer has the uploaded file; give it again.")
    return found


def store_upload(upload: Any) -> Path:
    """Keep an uploaded file under the name of its content, never under the name that the browser sent."""
    content = upload.getvalue()
    policy.check_upload_bytes(settings(), len(content))
    name = upload.name.lower()
    suffix = max((known for known in SUFFIXES if name.endswith(known)), key=len, default=".txt")
    target = settings().uploads_dir / f"{hashlib.sha256(content).hexdigest()[:24]}{suffix}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        policy.keep_newest(settings(), target.parent, settings().max_runs)
    return target


def _column(role: str, base: TextSpec, path: Path) -> str:
    """Draw the choice of a column of a file with columns: the one in use, else chats, else the longest text."""
    if kind_of(path) not in TABLES:
        return "text"
    found = text_columns(first_rows(path))
    names = list(dict.fromkeys([*(name for name in ("text", *CHATS) if name in found), *found]))
    if not names:
        return base.key
    return st.selectbox(
        "Column", names, index=names.index(base.key) if base.key in names else 0,
        key=_key(role, f"column_{path.name}"), persist_state="session",
        help="Columns that hold text in the first rows, or chats.",
    )  # fmt: skip


def _dataset(role: str, base: TextSpec) -> TextSpec | None:
    name = st.text_input(
        "Data set id",
        value=_value(base, "dataset"),
        placeholder="allenai/c4",
        key=_key(role, "dataset"),
        persist_state="session",
        help="Streamed: only the rows that are used are fetched.",
    )
    with st.container(horizontal=True, gap="small"):
        subset = st.text_input("Subset", value=base.subset or "", key=_key(role, "subset"), persist_state="session")
        split = st.text_input("Split", value=base.split, key=_key(role, "split"), persist_state="session")
        key = st.text_input("Column", value=base.key, key=_key(role, "dataset_key"), persist_state="session")
    if not name.strip():
        return None
    return TextSpec(
        kind="dataset", value=name.strip(), subset=subset.strip() or None, split=split.strip() or "train", key=key
    )


def _sizes(role: str, spec: TextSpec, found: TextSpec) -> TextSpec:
    most, longest = policy.most_rows(settings()), policy.longest_row(settings())
    with st.container(horizontal=True, gap="small"):
        limit, length = spec.limit, spec.max_length
        if role != "evaluation":
            limit = st.number_input(
                "Rows, at most", 1, most, value=min(limit or 64, most), key=_key(role, "limit"), persist_state="session"
            )
            length = st.number_input(
                "Tokens a row", 2, longest, value=min(length, longest), key=_key(role, "length"),
                persist_state="session",
            )  # fmt: skip
        bos: Bos = _choice(
            "BOS", Bos, spec.bos, _key(role, "bos"),
            "auto: what the tokenizer itself does. Some models are far worse without it.",
        )  # fmt: skip
        special: SpecialTokens = _choice(
            "Special tokens", SpecialTokens, spec.special_tokens, _key(role, "special"),
            "What `</s>` in a text is: text like any other (literal) or the token (parsed). auto: literal in text, "
            "parsed in what a chat template writes.",
        )  # fmt: skip
        template = _template(role, spec) if found.kind in ("file", "dataset") else ""
        long_rows: LongRows = "auto"
        if role == "training" or (role != "evaluation" and found.kind != "builtin"):
            long_rows = _choice(
                "Longer text", LongRows, spec.long_rows, _key(role, "long_rows"),
                "Text longer than a row is cut into rows, or truncated; auto truncates built-in texts and cuts others.",
            )  # fmt: skip
    return replace(
        found, limit=limit, max_length=int(length), bos=bos, special_tokens=special, chat_template=template,
        long_rows=long_rows,
    )  # fmt: skip


def _choice(label: str, kind: Any, now: str, key: str, said: str) -> Any:
    """Draw the choice of one of a literal type's values."""
    names = get_args(kind)
    return st.selectbox(label, names, index=names.index(now), key=key, persist_state="session", help=said)


def _template(role: str, spec: TextSpec) -> str:
    """Draw what writes chats, where the text holds some; returns the field of the record."""
    offered = {"": "the model's", "off": "off"}
    if policy.reads_paths(settings()):
        offered["file"] = "a file"
    now = spec.chat_template if spec.chat_template in offered else "file"
    chosen = st.selectbox(
        "Chat template", list(offered), format_func=offered.__getitem__, index=list(offered).index(now),
        key=_key(role, "template"), persist_state="session",
        help="What writes chats as text, where the column holds some; off: their contents alone.",
    )  # fmt: skip
    if chosen != "file":
        return chosen
    named = "" if now != "file" else spec.chat_template
    return st.text_input("Jinja file", value=named, key=_key(role, "template_path"), persist_state="session").strip()


def _cost(role: str, counts: tuple[str, str]) -> None:
    found, more = counts
    words = {
        "training": "A repair takes as many tokens as its Method says, healing all but the end, which is held out.",
        "calibration": "Time grows with rows × tokens; four times the rows halve the error bars.",
        "evaluation": f"A first number comes after {inspect.FIRST_LOOK_TOKENS} tokens.",
    }
    st.caption(f"**{plain(found)}**{plain(f'; {more}' if more else '')}. {words[role]}")


def _first_row(handle: "ModelHandle | None", spec: TextSpec) -> None:
    """Show the first row: as tokens where a model is loaded, else as text; a data set only on request."""
    if spec.kind == "dataset":
        st.caption("The first rows are fetched when the measurement starts.")
        return
    text = read_rows(replace(spec, limit=1))
    row = text.rows[0]
    if handle is None:
        words = "; ".join(["First row (load a model to see it as tokens)", *text.told])
        shown = row.contents if isinstance(row, Chat) else row
    else:
        first = row if isinstance(row, Chat) else row[:_READ_CHARACTERS]
        found = encode(replace(text, rows=(first,)), handle.tokenizer)
        ids, number = found.ids[0][:_SHOWN_TOKENS], len(found.ids[0])
        more = f", of {min(number, spec.max_length):,}" if number > _SHOWN_TOKENS else ""
        words = f"First row as tokens of {handle.info.id}: the first {len(ids)}{more}"
        words = f"{words}; {found.told}" if found.told else words
        shown = " ¦ ".join(piece.replace("\n", "⏎") for piece, _ in pieces(ids, handle.tokenizer))
    st.caption(plain(words))
    short = shown if handle is not None or len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]} …"
    st.code(short, language=None, wrap_lines=True)
