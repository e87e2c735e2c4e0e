"""The Python lines and the commands that reproduce what the app measured; those of an export are in recipes."""

import shlex

from shortviz.records import Block, ModelRef, TextSpec, WindowSpec


def measure_python(ref: ModelRef, spec: TextSpec, criterion: str = "angular_last") -> str:
    """Return Python that measures the distance map."""
    return (
        "from shortviz import ModelRef, TextSpec, best_blocks, load, measure_distances, tokenize\n\n"
        f"model = load({_ref(ref)})\n"
        f"text = {_spec(spec)}\n"
        "distances = measure_distances(model, tokenize(text, model.tokenizer))\n"
        f"print(best_blocks(distances, {criterion!r}))\n"
    )


def measure_command(ref: ModelRef, spec: TextSpec) -> str:
    """Return the command that measures the distance map."""
    words = ["shortviz", "measure", ref.id, *_model_options(ref), *_text_options(spec), "--out", "RUN"]
    return _command(words, spec)


def evaluate_python(ref: ModelRef, block: Block, spec: TextSpec, windows: WindowSpec) -> str:
    """Return Python that measures what removing the block costs."""
    return (
        "from shortviz import Block, ModelRef, PrunePlan, TextSpec, WindowSpec\n"
        "from shortviz import evaluate, load, make_windows, prune\n\n"
        f"model = load({_ref(ref)})\n"
        f"{_plan(block)}"
        f"{_windows(spec, windows)}"
        "print(evaluate(prune(model, plan), windows, base=model))\n"
    )


def evaluate_command(ref: ModelRef, block: Block, spec: TextSpec, windows: WindowSpec) -> str:
    """Return the command that measures what removing the block costs."""
    words = ["shortviz", "evaluate", ref.id, *_model_options(ref), *_block(block), *_text_options(spec)]
    return _command([*words, *_window_options(windows)], spec)


def losses_python(ref: ModelRef, spec: TextSpec, windows: WindowSpec) -> str:
    """Return Python that measures the loss of every block, and what the removal curve is read off."""
    return (
        "from shortviz import ModelRef, TextSpec, WindowSpec, load, make_windows, measure_losses\n"
        "from shortviz.curve import curve_from_map\n\n"
        f"model = load({_ref(ref)})\n"
        f"{_windows(spec, windows)}"
        "losses = measure_losses(model, windows)\n"
        "print(losses.increase.row(1))  # nats, without each single layer\n"
        "print(curve_from_map(losses, model=model.info).lines[0])\n"
    )


def losses_command(ref: ModelRef, spec: TextSpec, windows: WindowSpec) -> str:
    """Return the command that measures the loss of every block."""
    return _losses_command("map", [ref.id, *_model_options(ref)], spec, windows)


def curve_command(ref: ModelRef, spec: TextSpec, windows: WindowSpec) -> str:
    """Return the command that measures every block and prints the removal curve."""
    return _losses_command("curve", [ref.id, *_model_options(ref)], spec, windows)


def agreement_python(ref: ModelRef, calibration: TextSpec, spec: TextSpec, windows: WindowSpec) -> str:
    """Return Python that measures both maps and compares them."""
    return (
        "from shortviz import ModelRef, TextSpec, WindowSpec\n"
        "from shortviz import load, make_windows, measure_distances, measure_losses, tokenize\n"
        "from shortviz.agreement import agreement, agreement_table\n\n"
        f"model = load({_ref(ref)})\n"
        f"calibration = {_spec(calibration)}\n"
        "distances = measure_distances(model, tokenize(calibration, model.tokenizer))\n"
        f"{_windows(spec, windows)}"
        "losses = measure_losses(model, windows)\n"
        "print(agreement_table(agreement(distances, losses, model.info)).to_string())\n"
    )


def agreement_command(ref: ModelRef, calibration: TextSpec, spec: TextSpec, windows: WindowSpec) -> str:
    """Return the commands that measure both maps into one run and show how well they agree."""
    first = measure_command(ref, calibration)
    return f"{first}\n{_losses_command('map', ['RUN'], spec, windows)}\nshortviz show RUN"


def _losses_command(command: str, model: list[str], spec: TextSpec, windows: WindowSpec) -> str:
    words = ["shortviz", command, *model, *_text_options(spec), *_window_options(windows)]
    return _command([*words, "--out", "RUN"] if model != ["RUN"] else words, spec)


def _window_options(windows: WindowSpec) -> list[str]:
    return ["--window", str(windows.window), "--windows", str(windows.windows)]


def _windows(spec: TextSpec, windows: WindowSpec) -> str:
    return (
        f"text = {_spec(spec)}\n"
        f"size = WindowSpec(window={windows.window}, windows={windows.windows})\n"
        "windows = make_windows(text, size, model.tokenizer)\n"
    )


def _plan(block: Block) -> str:
    return f"plan = PrunePlan.of_blocks(model.info.num_layers, Block(start={block.start}, n={block.n}))\n"


def _ref(ref: ModelRef) -> str:
    words = [f"id={ref.id!r}"]
    words += [f"revision={ref.revision!r}"] if ref.revision else []
    words += [f"{k}={v!r}" for k, v in (("dtype", ref.dtype), ("device", ref.device)) if v != "auto"]
    return f"ModelRef({', '.join(words)})"


def _spec(spec: TextSpec) -> str:
    words = [f"kind={spec.kind!r}", f"value={spec.value!r}"]
    words += [f"key={spec.key!r}"] if spec.key != "text" else []
    words += [f"subset={spec.subset!r}"] if spec.subset else []
    words += [f"split={spec.split!r}"] if spec.split != "train" else []
    words += [f"limit={spec.limit}"] if spec.limit is not None else []
    words += [f"max_length={spec.max_length}"] if spec.max_length != 256 else []
    words += [f"bos={spec.bos!r}"] if spec.bos != "auto" else []
    return f"TextSpec({', '.join(words)})"


def _model_options(ref: ModelRef) -> list[str]:
    words = ["--revision", ref.revision] if ref.revision else []
    for option, value in (("--dtype", ref.dtype), ("--device", ref.device)):
        words += [option, value] if value != "auto" else []
    return words


def _block(block: Block) -> list[str]:
    return ["--start", str(block.start), "--n", str(block.n)]


def _text_options(spec: TextSpec) -> list[str]:
    option = {"builtin": "--builtin", "file": "--text", "dataset": "--dataset", "paste": "--text"}[spec.kind]
    words = [option, "pasted.txt" if spec.kind == "paste" else spec.value]
    words += ["--key", spec.key] if spec.key != "text" else []
    words += ["--subset", spec.subset] if spec.subset else []
    words += ["--split", spec.split] if spec.split != "train" else []
    words += ["--limit", str(spec.limit)] if spec.limit is not None else []
    words += ["--max-length", str(spec.max_length)] if spec.max_length != 256 else []
    return words + (["--bos", spec.bos] if spec.bos != "auto" else [])


def _command(words: list[str], spec: TextSpec) -> str:
    note = "# save the pasted text as pasted.txt first\n" if spec.kind == "paste" else ""
    return note + shlex.join(words)
