"""How many files of shortviz/ a stranger opens who follows one piece of work on a tiny model, and what is read twice.

    PYTHONPATH=. python benchmarks/trace.py [--files]

`measure` is the command, from its first line; `click` is the app from the choice of a block to its number on the page,
the model loaded and the map measured before. A file is entered where one of its functions runs, in any thread; what
runs while a module is imported is not counted. Prints a table, then one JSON line; `--files` names the files.
"""

import argparse
import contextlib
import inspect
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = str(ROOT / "shortviz") + os.sep
AIMS = {"measure": 25, "click": 35}
COUNTED = {
    "files found": ("model/files.py", "find_files"),
    "config read": ("model/files.py", "read_config"),
    "headers read": ("model/headers.py", "safetensors_header"),  # the tiny checkpoint has one file
    "text read": ("text/sources.py", "_builtin_rows"),  # the command measures on the built-in text
}
"""The functions whose calls are counted: a model is resolved once, a text read once."""


class Tracer:
    """Hears every Python function that starts in any thread from now on, while `on`."""

    def __init__(self) -> None:
        self.on = False
        self.files: Counter[str] = Counter()
        self.calls: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
        self._seen: set[CodeType] = set()
        threading.setprofile(self._heard)
        sys.setprofile(self._heard)

    def _heard(self, frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        is_function = code.co_flags & inspect.CO_OPTIMIZED  # else a module, or the body of a class
        if not self.on or event != "call" or not is_function or not code.co_filename.startswith(PACKAGE):
            return
        if _importing(frame.f_back):
            return
        file = code.co_filename.removeprefix(PACKAGE)
        self.calls.update(name for name, where in COUNTED.items() if where == (file, code.co_name))
        if code not in self._seen:
            self._seen.add(code)
            self.files[file] += 1


def _importing(frame: FrameType | None) -> bool:
    """Return whether a module of shortviz is being imported further up; a script that Streamlit runs is none."""
    while frame is not None:
        code = frame.f_code
        if (
            code.co_name == "<module>"
            and code.co_filename.startswith(PACKAGE)
            and frame.f_globals["__name__"] != "__main__"
        ):
            return True
        frame = frame.f_back
    return False


def tiny_checkpoint(folder: Path) -> Path:
    """Write a checkpoint of a tiny random Llama, with a tokenizer that reads anything."""
    from tests.support.families import build_tiny, tiny_tokenizer

    build_tiny("llama").save_pretrained(folder / "tiny-llama")
    tiny_tokenizer().save_pretrained(folder / "tiny-llama")
    return folder / "tiny-llama"


def trace_measure(folder: Path, tracer: Tracer) -> None:
    """Run `shortviz measure` on the checkpoint."""
    from shortviz.cli.main import main

    settings = ("--limit", "8", "--max-length", "64", "--out", str(folder / "run"))
    tracer.on = True
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main(["measure", str(folder / "tiny-llama"), *settings])
    tracer.on = False
    assert (folder / "run" / "run.json").is_file(), "the command measured nothing"


def trace_click(folder: Path, tracer: Tracer) -> None:
    """Choose a block on the map of the measured checkpoint, until its number is on the page."""
    from shortviz.records.text import TextSpec
    from shortviz.ui.session import state as s
    from tests.support.app import TEXT, App

    page = App(model=str(folder / "tiny-llama")).page("model")
    for button, job in (("estimate_button", "size"), ("load_button", "load")):
        page.click(button)
        assert page.finish(job).state == "done"
    page.state[s.CALIBRATION] = TextSpec(kind="paste", value=TEXT, max_length=64)
    page.state[s.EVALUATION] = TextSpec(kind="paste", value=TEXT)
    page.page("map").click("measure_button")
    assert page.finish("measure").state == "done"
    page.number("n").set_value(2)
    tracer.on = True
    page.run()
    assert page.finish("evaluate").state == "done"
    tracer.on = False
    assert any(one.label == "Perplexity" and one.value != "…" for one in page.at.metric), "the page shows no number"


WORK: dict[str, Callable[[Path, Tracer], None]] = {"measure": trace_measure, "click": trace_click}


def traced(name: str) -> dict[str, Any]:
    """Return the files and counts of one piece of work, from a fresh process."""
    with tempfile.TemporaryDirectory() as runs:
        settings = {"SHORTVIZ_RUNS_DIR": runs, "SHORTVIZ_PRELOAD": "0", "PYTHONPATH": str(ROOT)}
        # -P: this folder must not be searched first, where this very file would be the standard library's `trace`.
        command = [sys.executable, "-P", __file__, "--of", name]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} could not be traced:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Trace both, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", action="store_true", help="name the files, with how many of their functions ran")
    parser.add_argument("--of", choices=WORK, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.of:
        tracer = Tracer()
        with tempfile.TemporaryDirectory() as folder:
            tiny_checkpoint(Path(folder))
            WORK[options.of](Path(folder), tracer)
        sys.setprofile(None)
        print(json.dumps({"files": dict(sorted(tracer.files.items())), "calls": tracer.calls}))
        return
    for file, function in COUNTED.values():
        if not (ROOT / "shortviz" / file).is_file() or f"def {function}(" not in (ROOT / "shortviz" / file).read_text():
            sys.exit(f"There is no {function} in shortviz/{file} any more; name in COUNTED what does its work now.")
    found = {name: traced(name) for name in WORK}
    for name, one in found.items():
        ui = sum(file.startswith("ui/") for file in one["files"])
        print(f"{name:8} {len(one['files']):3} files entered, {ui} of them in ui/ (aim {AIMS[name]} in all)")
        print(f"{'':8} " + ", ".join(f"{what} {count}x" for what, count in one["calls"].items()))
        if options.files:
            print(*(f"{'':10}{count:4} {file}" for file, count in one["files"].items()), sep="\n")
    counts = {name: {"files": len(one["files"]), **one["calls"]} for name, one in found.items()}
    print(json.dumps({"benchmark": "trace", **counts}))


if __name__ == "__main__":
    main()
