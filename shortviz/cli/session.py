"""What surrounds every command: exit codes, one sentence for an error, progress, Ctrl-C, a stdout of results alone."""

import json
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import typer

from shortviz.errors import FieldError, GateError, ShortvizError, Stopped, first_line, is_out_of_memory
from shortviz.progress import NOTE, OnProgress, Progress, Watch
from shortviz.records.formatting import fields_spelled, spelled

if TYPE_CHECKING:
    from shortviz.records.text import TextSpec

INTERRUPTED = 130
"""What a shell expects of a program that Ctrl-C stopped."""
NOT_HELD = 3
"""What a build reads where a model was not shown to keep its limits."""


def run_command(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Return the exit code of a command line: 0 done, 2 bad input, 3 a gate not held, 1 our fault, 130 Ctrl-C."""
    debug = "--debug" in arguments
    if not debug:
        _quiet()
    command = typer.main.get_command(app)
    rest = [a for a in arguments if a != "--debug"] or ["--help"]
    try:
        code = command.main(rest, prog_name="shortviz", standalone_mode=False)
    except Stopped as error:
        return _refuse(str(error), debug, INTERRUPTED)
    except FieldError as error:
        return _refuse(f"{error.before}{spelled(error.field)} {error.why}.", debug, 2)
    except GateError as error:
        return _refuse(str(error), debug, NOT_HELD)
    except ShortvizError as error:
        return _refuse(str(error), debug, 2)
    except typer.TyperException as error:  # an unknown option, a missing argument, a value of the wrong type
        return _refuse(f"{error.format_message().rstrip('.')}; see shortviz --help.", debug, error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _refuse("Stopped at once; what was not saved before is lost.", debug, INTERRUPTED)
    except Exception as error:  # the boundary: whatever else comes here is a fault of ours, told in one sentence
        if is_out_of_memory(error):
            return _refuse("There is not enough memory; choose a smaller model, batch or window.", debug, 2)
        report = "please report this with what the same command prints with --debug"
        return _refuse(f"shortviz failed ({type(error).__name__}: {first_line(error)}); {report}.", debug, 1)
    return code if isinstance(code, int) else 0


def _refuse(message: str, debug: bool, code: int) -> int:
    if debug:
        traceback.print_exc()
    print(fields_spelled(message), file=sys.stderr)
    return code


def _quiet() -> None:
    """Keep other libraries' warnings and bars off stderr; must run before they are imported."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@contextmanager
def working(*, shared: bool = False) -> Iterator[Watch]:
    """Yield the watch of long work: progress on stderr, nothing of others' on stdout, Ctrl-C asks for the stop.

    A second Ctrl-C raises KeyboardInterrupt at once. Raises ShortvizError where a launcher started several processes,
    unless the work is `shared` among them: each would do all of it, and write it to one place.
    """
    from shortviz.cli.output import progress

    if not shared:
        from shortviz.measure.processes import refuse_launcher

        refuse_launcher()
    stop = threading.Event()

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print("Stopping after this step; Ctrl-C again stops at once.", file=sys.stderr)

    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, interrupt) if in_main else None
    try:
        with redirect_stdout(sys.stderr), progress() as on_progress:
            yield Watch(lambda step: _hear(step, on_progress), stop)
    finally:
        if in_main:
            signal.signal(signal.SIGINT, before)


def _hear(step: Progress, on_progress: OnProgress) -> None:
    if step.stage == NOTE:
        print(step.detail, file=sys.stderr)
    else:
        on_progress(step)


def warn_same_text(fitted: "TextSpec", scored: "TextSpec") -> None:
    """Say on stderr where a model is scored on the text that it was fitted or trained on."""

    def place(spec: "TextSpec") -> str:
        return str(Path(spec.value).resolve()) if spec.kind == "file" else spec.value

    ours, theirs = place(fitted), place(scored)
    nested = fitted.kind == "builtin" and (ours.startswith(f"{theirs}/") or theirs.startswith(f"{ours}/"))
    if fitted.kind != scored.kind or not (ours == theirs or nested):
        return
    print(
        f"Warning: {scored.value} is scored on and {fitted.value} is fitted to, the same text, so the figures flatter; "
        "give other text with --eval-text or --eval-builtin.",
        file=sys.stderr,
    )


def print_result(found: object) -> None:
    """Print text, or a record or a mapping of records as one JSON object, on the real stdout."""
    from shortviz.records.json import plain

    print(found if isinstance(found, str) else json.dumps(plain(found), allow_nan=False), flush=True)


def how_to_go_on(kept: Path | None) -> str:
    """Return what to do after a stop; `kept` is where what was done is kept, if it is."""
    if kept is None:
        return "with --out it could go on from there"
    return f"run the same command again to go on from {kept}"
