"""The Model page: presets first, then an id or a path; the estimate comes before the button."""

import streamlit as st

from shortviz.records.formatting import count, size
from shortviz.records.model import ModelEstimate, ModelRef
from shortviz.service import policy
from shortviz.service.queue import JobState
from shortviz.service.requests import LoadRequest, SizeRequest
from shortviz.service.service import Service
from shortviz.settings import settings
from shortviz.ui.parts import notes, texts
from shortviz.ui.parts.notes import main_button, plain
from shortviz.ui.session import state as s
from shortviz.ui.session.address import DTYPES
from shortviz.ui.session.service import bench, follow, start_job
from shortviz.ui.session.shown import look, ref_of

PRESETS = {
    "demo": "demo: SmolLM2-135M-Instruct, embedded, no network needed",
    "HuggingFaceTB/SmolLM2-360M": "SmolLM2-360M, 32 layers",
    "Qwen/Qwen2.5-0.5B": "Qwen2.5-0.5B, 24 layers",
    "google/gemma-3-270m": "gemma-3-270m, 18 layers (gated: accept its licence on the hub)",
    "openai-community/gpt2": "GPT-2, 12 layers",
}
OTHER = "other"
TICK_SECONDS = 0.5


def draw() -> None:
    """Draw the page."""
    tools, state = bench(), s.session()
    _prefill(tools, state)
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("Model")
        ref = _model_inputs(state)
        if ref is not None:
            _estimate(tools, state, ref)
    with right:
        texts.draw(tools, state)


def _prefill(tools: Service, state: s.State) -> None:
    """Give the inputs their first values: the session's model, or the demo."""
    if s.PRESET in state:
        return
    ref = ref_of(look(tools, state)) or ModelRef(id="demo")
    names = presets()
    state[s.PRESET] = ref.id if ref.id in names else names[-1]
    state[s.MODEL_ID] = "" if ref.id in names else ref.id
    state[s.REVISION], state[s.DTYPE], state[s.DEVICE] = ref.revision or "", ref.dtype, ref.device
    if ref.id == "demo":
        s.want_estimate(state)


def presets() -> list[str]:
    """Return what there is to choose: where the app is hosted, only the models that it offers."""
    return policy.offered_models(settings()) or [*PRESETS, OTHER]


def _model_inputs(state: s.State) -> ModelRef | None:
    st.selectbox(
        "A preset, or a model of your own",
        presets(),
        format_func=lambda name: PRESETS.get(name, "another: an id, a folder or a file" if name == OTHER else name),
        key=s.PRESET,
        on_change=_changed,
        persist_state="session",
    )
    if state[s.PRESET] == OTHER:
        st.text_input(
            "Hub id, checkpoint folder or .gguf file",
            key=s.MODEL_ID,
            placeholder="Qwen/Qwen2.5-0.5B or /models/my-model",
            max_chars=300,
            on_change=_changed,
            persist_state="session",
            help="Safetensors and GGUF only: pickled weights and models that bring their own code are refused.",
        )
    with st.expander("Revision, precision, device", icon=":material/tune:"), st.container(horizontal=True):
        st.text_input(
            "Revision",
            key=s.REVISION,
            placeholder="main",
            max_chars=100,
            on_change=_changed,
            persist_state="session",
            help="Branch, tag or commit of a hub model; it is resolved to a commit before anything is loaded.",
        )
        st.selectbox(
            "Precision",
            DTYPES,
            key=s.DTYPE,
            on_change=_changed,
            persist_state="session",
            help="auto: float32 on a CPU, bfloat16 on a GPU that has it.",
        )
        st.text_input(
            "Device",
            key=s.DEVICE,
            max_chars=10,
            on_change=_changed,
            persist_state="session",
            help="auto, cpu, cuda, cuda:1, or spread (over all GPUs).",
        )
    name = state[s.PRESET] if state[s.PRESET] != OTHER else str(state.get(s.MODEL_ID, "")).strip()
    if not name:
        st.caption("Type a hub id or a path to see what it takes.")
        return None
    return ModelRef(
        id=name,
        revision=str(state.get(s.REVISION, "")).strip() or None,
        dtype=str(state.get(s.DTYPE, "auto")),
        device=str(state.get(s.DEVICE, "")).strip() or "auto",
    )


def _changed() -> None:
    s.want_estimate(s.session())
    st.rerun()  # the whole page, not only the fragment that the widget is in


def _estimate(tools: Service, state: s.State, ref: ModelRef) -> None:
    """Show what loading would cost, then the button; the estimate is a job, because it imports the engine.

    Why a load failed is said by the status line, above every page.
    """
    if state.get(s.ESTIMATE_WANTED):
        s.want_estimate(state, False)
        start_job(SizeRequest(model=ref))
    job_id = s.job(state, SizeRequest.kind)
    context = tools.context(job_id or "")
    if context is None or context.request != SizeRequest(model=ref):
        job_id = None

    def estimate(job: JobState | None) -> None:
        if job is None:
            st.button("Estimate its size", icon=":material/straighten:", on_click=_changed, key="estimate_button")
        elif job.live:
            st.caption(":material/hourglass_top: Reading the config and the weight headers …")
        notes.job_error(job)
        found = job.result if job is not None and isinstance(job.result, ModelEstimate) else None
        if found is not None:
            _numbers(found)
        _load_button(tools, state, ref, found, job)

    follow(tools, tools.state(job_id), estimate, seconds=TICK_SECONDS)


def _numbers(found: ModelEstimate) -> None:
    with st.container(border=True, gap="small"):
        with st.container(horizontal=True, gap="medium"):
            st.metric("Layers", str(found.num_layers), width="content")
            st.metric("Parameters", count(found.parameters), width="content")
            st.metric("Download", size(found.download_bytes) if found.download_bytes else "none", width="content")
            st.metric("Memory", size(found.memory_bytes), width="content")
            st.metric("Free now", size(found.available_bytes), width="content")
        revision = f" · commit {found.revision[:12]}" if found.revision else ""
        st.caption(
            plain(f"{found.architecture} · {found.dtype} on {found.device}{revision}. {found.reason}"),
        )
        for sentence in found.left_out:
            st.caption(f":material/info: {plain(sentence)}")
        if not found.fits:
            notes.problem(
                f"{found.id} needs {size(found.memory_bytes)} and room to work, and {size(found.available_bytes)} are "
                "free; choose a smaller model or a shorter precision."
            )


def _load_button(
    tools: Service, state: s.State, ref: ModelRef, found: ModelEstimate | None, job: JobState | None
) -> None:
    loaded = tools.models.get(ref) is not None
    in_use = loaded and s.ref(state) == ref and (s.run_key(state) is None or _is_of_run(tools, state, ref))
    load_job = tools.state(s.job(state, "load"))
    loading = load_job is not None and load_job.live
    with st.container(horizontal=True, vertical_alignment="center"):
        why = "This model is in use: go on to the map." if in_use else "" if loaded else "The size is worked out first."
        if not loaded and found is not None:
            why = "It is being loaded." if loading else "" if found.fits else "It needs more memory than is free."
        st.button(
            "In use" if in_use else "Use this model" if loaded else "Load", type=main_button(),
            icon=":material/check:" if in_use else ":material/memory:", disabled=bool(why), help=why or None,
            on_click=_load, args=(tools, ref), key="load_button",
        )  # fmt: skip
        if in_use:
            st.page_link(s.page(s.session(), "Map"), label="Go to the map", icon=":material/grid_on:")


def _load(tools: Service, ref: ModelRef) -> None:
    state = s.session()
    if _is_of_run(tools, state, ref):
        s.load_for_run(state, ref)
    elif s.ref(state) != ref or s.run_key(state) is not None:
        s.set_model(state, ref)
    if tools.models.get(ref) is None:
        start_job(LoadRequest(model=ref, text=s.evaluation(state)))
    st.rerun()


def _is_of_run(tools: Service, state: s.State, ref: ModelRef) -> bool:
    """Return whether a choice of a model is that of the opened run, which then stays open."""
    model = look(tools, state).model if s.run_key(state) is not None else None
    if model is None or ref.id != model.id or ref.revision not in (None, model.revision):
        return False
    handle = tools.models.get(ref)
    dtype = ref.dtype if handle is None else handle.info.dtype
    return dtype in ("auto", model.dtype)
