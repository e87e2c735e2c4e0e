"""The Export page: what will be written, where, the proof as it ticks, and the lines that load it."""

import shlex
import uuid
from pathlib import Path

import streamlit as st

from shortviz.errors import PlanError
from shortviz.job_state import JobState
from shortviz.recipes import loading_python, mergekit_yaml, reproduce_python
from shortviz.records import ExportReport, ModelInfo, ModelRef, PrunePlan
from shortviz.settings import settings
from shortviz.treated_recipe import TreatedRecipe, treated_recipe
from shortviz.ui import export_actions, export_choice, inspector, notes, push_view, visit
from shortviz.ui import state as s
from shortviz.ui.bench import bench
from shortviz.ui.following import follow
from shortviz.ui.looks import main_button
from shortviz.ui.proof_view import checklist, report_lines
from shortviz.ui.resources import Bench
from shortviz.ui.shown import Shown, look, ref_of, settle_block
from shortviz.ui.words import plain
from shortviz.words import count, layers_text, percent, size

TARGETS = {"folder": "A folder on this machine", "zip": "Zip download", "hub": "The hub"}
TICK_SECONDS = 0.5


def draw() -> None:
    """Draw the page."""
    tools, state = bench(), s.session()
    shown = look(tools, state)
    ref = ref_of(shown)
    if shown.error:
        notes.problem(shown.error)
    if shown.model is None or ref is None:
        st.caption("Choose a model and a block first: on the Model page, then on the Map page.")
        return
    settle_block(state, shown.distances, shown.model)
    left, right = st.columns(2, gap="large")
    with left:
        alone = _choose(tools, shown, shown.model, ref)
    with right:
        _follow(tools, state, alone=alone)


def _choose(tools: Bench, shown: Shown, model: ModelInfo, ref: ModelRef) -> bool:
    """Draw what is to be written and where; return whether that is an adapter alone."""
    state = s.session()
    inspector.block_inputs(model.num_layers)
    block, removed = s.block(state), s.cut(state)
    if block is None:
        st.caption("Type a start layer and n, or choose a block on the map.")
        return False
    try:
        if removed == block.layers:
            block.check(model.num_layers)
        plan = PrunePlan(num_layers=model.num_layers, removed=removed)
    except PlanError as error:
        notes.problem(str(error))
        return False
    if removed != block.layers:
        st.caption(f"Exported is the cut that the Heal page shows: layers {layers_text(removed)} go.")
    reason = next((found for part in plan.blocks if (found := model.illegal_reason(part))), None)
    if reason is not None:
        notes.problem(f"This block cannot be exported: {reason}")
        return False
    methods = export_choice.choose(tools, shown, removed)
    alone = export_choice.adapter_alone(tools, shown, removed, methods)
    if not alone:
        _what(model, plan)
    targets = [name for name in TARGETS if name != "folder" or not settings().is_hosted]
    targets = [name for name in targets if name != "hub" or not alone]
    target = st.segmented_control(
        "Where to",
        targets,
        format_func=lambda name: TARGETS[name],
        default=targets[0],
        required=True,
        key=s.TARGET,
        persist_state="session",
    )
    name = export_choice.name_of(model, removed, methods) + ("-adapter" if alone else "")
    visit.suggest_folder(state, str(Path.home() / "shortviz-exports" / name))
    if target == "hub":
        st.caption("Written and proved here first; then you say in which repository it goes.")
    if target == "folder":
        st.text_input(
            "Folder, new or empty", key=s.FOLDER, max_chars=1000, persist_state="session", help="Never written over."
        )
    job = tools.state(s.newest_job(state, ("export", "adapter")))
    live = job is not None and job.live
    with st.container(horizontal=True):
        st.button(
            "Export",
            type=main_button(),
            icon=":material/download:",
            disabled=live,
            on_click=_export,
            args=(tools, shown, ref, removed, methods, name, alone),
            key="export_button",
        )
        st.button(
            "Cancel",
            icon=":material/close:",
            disabled=not live,
            on_click=tools.jobs.cancel,
            args=(job.id if job is not None else "",),
            key="cancel_export",
        )
    step = export_choice.step_of(shown, removed, methods)
    treatments = step.treatments if step is not None else ()
    folder = str(state.get(s.FOLDER, "")) if target == "folder" else name
    recipe = treated_recipe(
        ref.id, plan, treatments, folder=folder, adapter=alone, revision=ref.revision, dtype=ref.dtype,
        device=ref.device,
    )  # fmt: skip
    if alone:
        _command(recipe)
    else:
        _recipes(ref, model, plan, folder, recipe, treated=bool(treatments))
    return alone


def _what(model: ModelInfo, plan: PrunePlan) -> None:
    gone = sum(model.layer_parameters[i] for i in plan.removed)
    weights = model.bytes - sum(model.layer_bytes[i] for i in plan.removed)
    with st.container(horizontal=True, gap="medium", border=True):
        st.metric("Layers", f"{model.num_layers} → {len(plan.kept)}", width="content")
        st.metric(
            "Parameters",
            count(model.parameters - gone),
            f"-{percent(gone / model.parameters)}",
            "inverse",
            width="content",
        )
        st.metric("On disk", size(weights), f"-{percent(1 - weights / model.bytes)}", "inverse", width="content")
    st.caption(
        "Written: weights as safetensors, config, generation config, tokenizer, chat template, a model card, "
        "shortviz.json (plan and fingerprints) and a mergekit recipe."
    )


def _export(
    tools: Bench,
    shown: Shown,
    ref: ModelRef,
    removed: tuple[int, ...],
    methods: tuple[str, ...],
    name: str,
    alone: bool,
) -> None:
    state = s.session()
    target = str(state.get(s.TARGET))
    archive = target == "zip" or (settings().is_hosted and target != "hub")
    typed = str(state.get(s.FOLDER, "")).strip()
    if archive or target == "hub":
        folder = settings().downloads_dir / uuid.uuid4().hex[:12] / name
        folder.parent.mkdir(parents=True, exist_ok=True)
    elif typed:
        folder = Path(typed).expanduser()
    else:
        return
    if shown.ref is None:
        s.load_for_run(state, ref)
    if alone and shown.key is not None:
        job_id = export_actions.start_adapter(
            tools, ref, removed, folder, methods=methods, key=shown.key, archive=archive
        )
        s.set_job(state, "adapter", job_id)
        return
    job_id = export_actions.start_export(
        tools, ref, removed, folder, methods=methods, key=shown.key, spec=s.evaluation(state), archive=archive
    )
    s.set_job(state, "export", job_id)


def _follow(tools: Bench, state: s.State, *, alone: bool) -> None:
    """Show the newest export of this session: the checklist while it runs, then the result; before it, what to expect.

    `alone` says that an adapter alone is chosen.
    """
    job_id = s.newest_job(state, ("export", "adapter"))

    def export(job: JobState | None) -> None:
        context = tools.context(job_id or "")
        if context is not None and context.kind == "adapter":
            _adapter(context.ref, job)
            return
        if context is None and alone:
            st.subheader("Adapter")
            st.caption(
                "Written: the adapter, the repaired weights that it was trained on, and a card with the commands that "
                "make the cut. Nothing is merged, so there is nothing to prove."
            )
            return
        st.subheader("Proof" if context is None else f"Proof, without layers {layers_text(context.removed)}")
        if context is not None and context.methods:
            st.caption(f"After {', then '.join(method.replace('_', ' ') for method in context.methods)}.")
        checklist(job)
        notes.job_error(job)
        if job is not None and job.state == "cancelled":
            st.caption("Cancelled; nothing was left behind.")
        report = job.result if job is not None and isinstance(job.result, ExportReport) else None
        if report is not None:
            report_lines(report)
            _after(report, job)

    follow(tools, tools.state(job_id), export, seconds=TICK_SECONDS)
    context, ended = tools.context(job_id or ""), tools.state(job_id)
    report = ended.result if ended is not None and isinstance(ended.result, ExportReport) else None
    if context is not None and report is not None and Path(report.folder).is_dir():
        push_view.draw(tools, context.ref, Path(report.folder))


def _adapter(ref: ModelRef, job: JobState | None) -> None:
    """Show how the export of an adapter stands."""
    st.subheader("Adapter")
    notes.job_error(job)
    if job is not None and job.live:
        notes.job_progress(job)
    if job is None or not isinstance(job.result, str):
        return
    folder = Path(job.result)
    if folder.suffix == ".zip" and folder.is_file():
        _download(folder)
        st.caption(
            "Unpack it; its README.md says how to make the cut that it belongs to. Or put it on the uncut model:"
        )
    else:
        st.caption(
            f"Written to {plain(job.result)}; its README.md says how to make the cut that it belongs to. Or put it on "
            "the uncut model:"
        )
    adapter = shlex.quote(folder.stem if folder.suffix == ".zip" else job.result)
    st.code(f"shortviz evaluate {shlex.quote(ref.id)} --adapter {adapter}", language="bash", wrap_lines=True)


def _download(folder: Path) -> None:
    st.download_button(
        f"Download {folder.name} ({size(folder.stat().st_size)})",
        data=folder.read_bytes,
        file_name=folder.name,
        mime="application/zip",
        type=main_button(),
        icon=":material/download:",
        on_click="ignore",
        key="download_zip",
    )


def _after(report: ExportReport, job: JobState | None) -> None:
    folder = Path(report.folder)
    if folder.suffix == ".zip" and folder.is_file():
        _download(folder)
        st.caption("Unpack it, then load it:")
        st.code(loading_python(folder.stem), language="python", wrap_lines=True)
    elif job is not None and folder.is_relative_to(settings().downloads_dir):
        st.caption("Proved and ready to be pushed; it is kept here for an hour.")
    elif job is not None:
        st.caption(f"Written to {plain(report.folder)}. Load it with plain transformers:")
        st.code(loading_python(report.folder), language="python", wrap_lines=True)


def _command(recipe: TreatedRecipe) -> None:
    st.code(recipe.command, language="bash", wrap_lines=True)
    for note in recipe.notes:
        st.caption(plain(note))


def _recipes(
    ref: ModelRef, model: ModelInfo, plan: PrunePlan, folder: str, recipe: TreatedRecipe, *, treated: bool
) -> None:
    command, python, mergekit = st.tabs(["Command", "Python", "mergekit"])
    with command:
        _command(recipe)
    for tab in (python, mergekit) if treated else ():
        tab.caption("These lines repeat the cut alone.")
    python.code(
        reproduce_python(ref.id, plan, folder=folder, revision=ref.revision, dtype=ref.dtype, device=ref.device),
        language="python",
    )
    mergekit.code(mergekit_yaml(model.id, plan, model.dtype), language="yaml")
