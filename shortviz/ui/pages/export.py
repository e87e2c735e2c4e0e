"""The Export page: what will be written, where, the proof as it ticks, and the lines that load it."""

import os
import shlex
import uuid
from pathlib import Path

import streamlit as st

from shortviz.errors import PlanError, ShortvizError
from shortviz.export import recipes
from shortviz.export.folder import GGUF, check_target, is_gguf
from shortviz.records.formatting import count, counted, duration, layers_text, percent, size
from shortviz.records.ledger import LedgerStep
from shortviz.records.measured import ExportReport
from shortviz.records.model import STORED, ModelInfo, ModelRef, OutDtype
from shortviz.records.plan import PrunePlan, Removal
from shortviz.service import kept, policy
from shortviz.service.export import came_as_gguf, out_sizes
from shortviz.service.ledger import known_ledger, ledger_of, treated, verdict
from shortviz.service.queue import JobState
from shortviz.service.requests import AskRequest, BringBackRequest, ExportRequest
from shortviz.service.service import Service
from shortviz.settings import settings
from shortviz.ui.pages import inspector, push
from shortviz.ui.parts import ledger as ledger_view
from shortviz.ui.parts import notes
from shortviz.ui.parts.notes import main_button, plain, progress_words
from shortviz.ui.session import state as s
from shortviz.ui.session.service import bench, follow
from shortviz.ui.session.shown import Shown, look, ref_of, settle_block

PARTS = {"model": "The whole model", "adapter": "The adapter alone"}


def choose(tools: Service, shown: Shown, removed: tuple[int, ...]) -> tuple[str, ...]:
    """Draw the versions of a cut that can be exported, and return the methods of the chosen one; () is the cut itself.

    Those that are not in memory any more are named, with the button that brings them back.
    """
    ledger = known_ledger(tools, shown.ref, shown.run, removed, s.evaluation(s.session()))
    steps = [step for step in ledger.steps if step.treatments] if ledger is not None else []
    here = [step for step in steps if treated(tools, shown.ref, removed, step) is not None]
    chosen: tuple[str, ...] = ()
    if here:
        by_methods = {step.methods: step for step in here}
        best = min(here, key=lambda step: step.evaluation.score.nll).methods
        options = [(), *by_methods]
        chosen = st.selectbox(
            "Which model",
            options,
            index=options.index(best),
            format_func=lambda methods: _label(by_methods.get(methods)),
            key=f"version_{layers_text(removed)}_{len(here)}",
        )
        if chosen:
            if words := verdict(ledger, chosen):
                st.warning(plain(words), icon=":material/warning:")
                st.checkbox("Export it all the same", key=s.ANYWAY)
            st.caption(ledger_view.step_words(by_methods[chosen]))
    if not chosen and (price := ledger_view.cut_price(shown, removed, ledger)):
        st.caption(f"The cut as it is, nothing repaired: {price}.")
    job = tools.treating((AskRequest.kind, BringBackRequest.kind), shown.ref, removed)
    live = job is not None and job.live
    ledger_view.gone(tools, shown, removed, ledger, live=live)
    if live:
        follow(tools, job, _waiting, seconds=TICK_SECONDS)
    notes.job_error(job)
    return chosen


def _waiting(job: JobState | None) -> None:
    """Show how a model is brought back."""
    if job is not None:
        notes.job_progress(job)


def adapter_alone(tools: Service, shown: Shown, removed: tuple[int, ...], methods: tuple[str, ...]) -> bool:
    """Return whether only what was learned is to be written; asks where that is kept."""
    if not kept.has_adapter(tools, shown.key, removed, methods):
        return False
    chosen = st.segmented_control(
        "What to write", list(PARTS), format_func=lambda name: PARTS[name], default="model", required=True,
        key=s.PART, persist_state="session",
    )  # fmt: skip
    if chosen == "adapter":
        st.caption("A LoRA adapter in peft's format. It fits this cut of this model and no other; its card says which.")
    return chosen == "adapter"


def step_of(shown: Shown, removed: tuple[int, ...], methods: tuple[str, ...]) -> LedgerStep | None:
    """Return the ledger's step of the model that is chosen; None for the cut itself."""
    ledger = ledger_of(shown.run, removed)
    found = [step for step in ledger.steps if methods and step.methods == methods] if ledger is not None else []
    return found[-1] if found else None


def _label(step: LedgerStep | None) -> str:
    return "Cut, nothing done after it" if step is None else step.label[:1].upper() + step.label[1:]


def name_of(model: ModelInfo, removed: tuple[int, ...], methods: tuple[str, ...] = ()) -> str:
    """Return the name of the model: what it was, which layers went, and what was done after."""
    kept = "".join(c if c.isalnum() or c in "._-" else "-" for c in Path(model.id).name).strip(".-") or "model"
    gone = layers_text(removed).replace(", ", "_")
    done = "".join(f"-{method.replace('_', '-')}" for method in methods)
    return f"{kept}-without-{gone[:60]}{done}"


TARGETS = {"folder": "A folder on this machine", "zip": "Zip download", "gguf": "A GGUF file", "hub": "The hub"}
TICK_SECONDS = 0.5


def draw() -> None:
    """Draw the page."""
    tools, state = bench(), s.session()
    shown = look(tools, state)
    if shown.error:
        notes.problem(shown.error)
    if shown.model is None or (ref := ref_of(shown)) is None:
        st.caption("Choose a model and a block first: on the Model page, then on the Map page.")
        return
    settle_block(state, shown.run, shown.model)
    left, right = st.columns(2, gap="large")
    with left:
        alone = _choose(tools, shown, shown.model, ref)
    with right:
        _follow(tools, state, alone=alone)


def _choose(tools: Service, shown: Shown, model: ModelInfo, ref: ModelRef) -> bool:
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
    methods = choose(tools, shown, removed)
    alone = adapter_alone(tools, shown, removed, methods)
    targets = [name for name in TARGETS if name != "folder" or policy.offers_folders(settings())]
    impossible = {"hub", "gguf"} if alone else set() if came_as_gguf(ref) else {"gguf"}
    targets = [name for name in targets if name not in impossible]
    target = st.segmented_control(
        "Where to", targets, format_func=TARGETS.__getitem__, default=targets[0], required=True, key=s.TARGET,
        persist_state="session", wrap=True,
    )  # fmt: skip
    if not alone:
        _what(shown, model, plan, gguf=target == "gguf")
    name = name_of(model, removed, methods) + ("-adapter" if alone else "")
    s.suggest_folder(state, str(Path.home() / "shortviz-exports" / name))
    if target == "hub":
        st.caption("Written and proved here first; then you say in which repository it goes.")
    typed = target in ("folder", "gguf") and policy.offers_folders(settings())
    if typed:
        label = "Folder, new or empty" if target == "folder" else f"File; {GGUF} is added where it is missing"
        st.text_input(label, key=s.FOLDER, max_chars=1000, persist_state="session", help="Never written over.")
    job = tools.state(s.job(state, ExportRequest.kind))
    live = job is not None and job.live
    wanted = _target(state, gguf=target == "gguf") if typed else None
    why = notes.why_off(False, live) or (_where(wanted, job) if typed else "")
    with st.container(horizontal=True):
        st.button(
            "Export", type=main_button(), icon=":material/download:", disabled=bool(why), help=why or None,
            on_click=_export, args=(tools, shown, ref, removed, methods, name, alone), key="export_button",
        )  # fmt: skip
        notes.cancel_button(tools, job, "No export is at work: there is nothing to cancel.", key="cancel_export")
    step = step_of(shown, removed, methods)
    treatments, command = (step.treatments, step.command) if step is not None else ((), "")
    command += " --anyway" if command and state.get(s.ANYWAY, False) else ""
    folder = str(wanted) if wanted is not None else with_suffix(name) if target == "gguf" else name
    copied = alone or target == "gguf"
    precision = STORED if copied else _precision(state)
    recipe = recipes.recipe_of(
        ref.id, plan, treatments, command, folder=folder, adapter=alone, revision=ref.revision, dtype=ref.dtype,
        device=ref.device, out_dtype=precision,
    )  # fmt: skip
    if copied:
        _command(recipe)
    else:
        _recipes(ref, model, plan, folder, recipe, precision, treated=bool(treatments))
    return alone


def with_suffix(path: str) -> str:
    """Return the path of a GGUF file that somebody named with its ending or without."""
    return path if not path or is_gguf(Path(path)) else path + GGUF


def _target(state: s.State, *, gguf: bool) -> Path | None:
    """Return the whole path of what somebody typed, a relative one in the home folder; None where nothing is typed."""
    typed = str(state.get(s.FOLDER, "")).strip()
    named = with_suffix(typed) if gguf else typed
    return Path(os.path.abspath(Path.home() / os.path.expanduser(named))) if named else None


def _where(target: Path | None, job: JobState | None) -> str:
    """Say where the export goes, and return ""; or say why the typed path cannot be used, and return that."""
    why = ""
    if target is None:
        why = "Give the export a name."
    elif job is not None and isinstance(job.result, ExportReport) and job.result.folder == str(target):
        why = f"{target} is what was written last; another export needs another name."
    else:
        try:
            check_target(target)
        except ShortvizError as error:
            why = str(error)
    st.caption(f":orange[:material/warning: {plain(why)}]" if why else f"Writes to {plain(str(target))}.")
    return plain(why)


def _precision(state: s.State) -> OutDtype:
    found: OutDtype = state.get(s.PRECISION) or STORED
    return found


def _what(shown: Shown, model: ModelInfo, plan: PrunePlan, *, gguf: bool) -> None:
    gone = sum(model.layer_parameters[i] for i in plan.removed)
    sizes = {} if gguf else out_sizes(model, plan, shown.handle)
    if sizes:
        st.selectbox(
            "Precision of the files", list(sizes), key=s.PRECISION, persist_state="session",
            format_func=lambda name: f"{'as stored' if name == STORED else name}, about {size(sizes[name])}",
            help="A weight that a smaller one does not hold is rounded, and what that changes is measured and said.",
        )  # fmt: skip
    with st.container(horizontal=True, gap="medium", border=True):
        st.metric("Layers", f"{model.num_layers} → {len(plan.kept)}", width="content")
        less = f"-{percent(gone / model.parameters)}"
        st.metric("Parameters", count(model.parameters - gone), less, "inverse", width="content")
        if sizes:  # a GGUF file's tensors keep the types that it has
            less = f"-{percent(model.sizes(plan.removed)[1] / model.bytes)}"
            st.metric("On disk", size(sizes[_precision(s.session())]), less, "inverse", width="content")
    if gguf:
        st.caption(
            "What is written: one file, for llama.cpp and the like. Tensors are copied as they are quantised; what a "
            "repair or healing changed is quantised anew; tokenizer, chat template and all other keys stay."
        )
        return
    st.caption(
        "What is written: weights as safetensors, config, generation config, tokenizer, chat template, a model "
        "card, shortviz.json (plan and fingerprints) and a mergekit recipe."
    )


def _export(
    tools: Service,
    shown: Shown,
    ref: ModelRef,
    removed: tuple[int, ...],
    methods: tuple[str, ...],
    name: str,
    alone: bool,
) -> None:
    state = s.session()
    target = str(state.get(s.TARGET))
    owned, gguf = policy.offers_folders(settings()), target == "gguf"
    archive = target == "zip" or (target == "folder" and not owned)
    if archive or target == "hub" or not owned:
        folder = settings().downloads_dir / uuid.uuid4().hex[:12] / (with_suffix(name) if gguf else name)
        folder.parent.mkdir(parents=True, exist_ok=True)
    elif (wanted := _target(state, gguf=gguf)) is not None:
        folder = wanted
    else:
        return
    if shown.ref is None:
        s.load_for_run(state, ref)
    asked = ExportRequest(
        model=ref, folder=str(folder), removal=Removal.of_layers(removed), methods=methods,
        run=shown.key if methods else None, adapter_only=alone, archive=archive, stream=False,
        anyway=bool(state.get(s.ANYWAY, False)), out_dtype=STORED if alone or gguf else _precision(state),
    )  # fmt: skip
    s.set_job(state, asked.kind, tools.submit(asked, key=shown.key))


def _follow(tools: Service, state: s.State, *, alone: bool) -> None:
    """Show the newest export of this session: the checklist while it runs, then the result; before it, what to expect.

    `alone` says that an adapter alone is chosen.
    """
    job_id = s.job(state, ExportRequest.kind)
    context = tools.context(job_id or "")
    asked = context.request if context is not None else None

    def export(job: JobState | None) -> None:
        if isinstance(asked, ExportRequest) and asked.adapter_only:
            _adapter(asked.model, job)
            return
        if asked is None and alone:
            st.subheader("Adapter")
            st.caption(
                "What is written: the adapter, the repaired weights that it was trained on, and a card with the "
                "commands that make the cut. Nothing is merged, so there is nothing to prove."
            )
            return
        cut = asked.removal if isinstance(asked, ExportRequest) else None
        st.subheader("Proof" if cut is None else f"Proof, without layers {layers_text(cut.removed)}")
        if isinstance(asked, ExportRequest) and asked.methods:
            st.caption(f"After {', then '.join(method.replace('_', ' ') for method in asked.methods)}.")
        checklist(job)
        notes.job_error(job)
        if job is not None and job.state == "cancelled":
            st.caption("Cancelled; nothing was left behind.")
        report = job.result if job is not None and isinstance(job.result, ExportReport) else None
        if report is not None:
            report_lines(report)
            _after(report, job)

    follow(tools, tools.state(job_id), export, seconds=TICK_SECONDS)
    ended = tools.state(job_id)
    report = ended.result if ended is not None and isinstance(ended.result, ExportReport) else None
    if report is not None and Path(report.folder).is_dir():
        push.draw(tools, Path(report.folder))


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
        f"Download {folder.name} ({size(folder.stat().st_size)})", data=folder.read_bytes, file_name=folder.name,
        mime="application/octet-stream" if is_gguf(folder) else "application/zip",
        type=main_button(),
        icon=":material/download:",
        on_click="ignore",
        key="download_zip",
    )  # fmt: skip


def _after(report: ExportReport, job: JobState | None) -> None:
    folder = Path(report.folder)
    if folder.suffix == ".zip" and folder.is_file():
        _download(folder)
        st.caption("Unpack it, then load it:")
        st.code(recipes.loading_python(folder.stem), language="python", wrap_lines=True)
    elif is_gguf(folder) and folder.is_file():
        if folder.is_relative_to(settings().downloads_dir):
            _download(folder)
        st.caption(f"Written to {plain(folder.name)}. Open it with llama.cpp:")
        st.code(shlex.join(["llama-cli", "-m", report.folder]), language="bash", wrap_lines=True)
    elif job is not None and folder.is_relative_to(settings().downloads_dir):
        st.caption("Proved and ready to be pushed; it is kept here for an hour.")
    elif job is not None:
        st.caption(f"Written to {plain(report.folder)}. Load it with plain transformers:")
        st.code(recipes.loading_python(report.folder), language="python", wrap_lines=True)


def _command(recipe: recipes.Recipe) -> None:
    st.code(recipe.command, language="bash", wrap_lines=True)
    for note in recipe.notes:
        st.caption(plain(note))


def _recipes(
    ref: ModelRef, model: ModelInfo, plan: PrunePlan, folder: str, recipe: recipes.Recipe, precision: OutDtype, *,
    treated: bool,
) -> None:  # fmt: skip
    command, python, mergekit = st.tabs(["Command", "Python", "mergekit"])
    with command:
        _command(recipe)
        if not came_as_gguf(ref):
            st.caption("llama.cpp's converter makes a GGUF file of the folder:")
            st.code(recipes.converter_command(folder), language="bash", wrap_lines=True)
    for tab in (python, mergekit) if treated else ():
        tab.caption("These lines repeat the cut alone.")
    python.code(
        recipes.reproduce_python(
            ref.id, plan, folder=folder, revision=ref.revision, dtype=ref.dtype, device=ref.device, out_dtype=precision
        ),
        language="python",
    )
    mergekit.code(
        recipes.mergekit_yaml(model.id, plan, model.dtype if precision == STORED else precision), language="yaml"
    )


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
        f"Done in {duration(report.seconds)}: {count(report.parameters)} parameters, {size(report.bytes)} "
        f"{report.dtypes}, {counted(len(report.files), 'file')}. Largest logit difference {report.max_logit_diff:g}.",
        icon=":material/verified:",
    )
    for note in report.notes:
        st.caption(plain(note))
