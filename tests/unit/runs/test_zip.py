"""A run as one file: it comes back whole, and hostile files are refused in a sentence. The library: rename, undo."""

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shortviz.errors import RunError
from shortviz.figures.cells import CLIPPED, block_in, in_common, maps, shared_limits
from shortviz.records.json import plain, to_json
from shortviz.runs.library import bring_back, described, folders, free_key, set_aside, title
from shortviz.runs.run import example_run, file_name, load_run, save_run
from shortviz.runs.zip import MOST_BYTES, pack_run, unpack_run
from tests.support.records import fixture_run

MEAN = "distances.criteria.angular_last.mean"
Change = Callable[[dict[str, Any]], object]


def packed(name: str = "run.json", content: bytes = b"{}", more: str = "") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for one in (name, more) if more else (name,):
            # The date of now would be in the names of the tests, and two workers would disagree about them.
            archive.writestr(zipfile.ZipInfo(one), content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def changed(change: Change) -> bytes:
    found = plain(fixture_run(6))
    change(found)
    return json.dumps(found).encode()


def mean_of(found: dict[str, Any]) -> list[Any]:
    return found["distances"]["criteria"]["angular_last"]["mean"]


def test_a_run_comes_back_from_its_file_as_it_was() -> None:
    run = example_run()
    again = unpack_run(pack_run(run), "the file")
    assert to_json(again) == to_json(run)


def test_a_bare_run_json_is_read_too_and_folders_inside_an_archive_do_not_matter() -> None:
    content = to_json(fixture_run(6))
    assert unpack_run(content, "x").model.num_layers == 6
    assert unpack_run(packed("../../etc/run.json", content), "x").model.num_layers == 6


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not JSON"),
        (b"not json", "not JSON"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"PK\x03\x04 broken", "not a zip file"),
        (packed("other.json"), "0 files named run.json"),
        (packed(more="a/run.json"), "2 files named run.json"),
        (packed(content=b"[" * 100_000), "not JSON"),
        (packed(content=b'"' + b"x" * (MOST_BYTES + 10) + b'"'), "unpacks to more than 50.0 MB"),
        (b"[1]", "None layers"),
        (b'{"model": {"num_layers": 1e9}}', "1000000000.0 layers"),
        (b'{"model": {"num_layers": 100000}}', "100000 layers"),
        (b'{"schema": 1, "model": {"num_layers": NaN}}', "NaN is not a number"),
        (changed(lambda f: f.update(schema=99)), "schema 99"),
        (changed(lambda f: f.pop("text")), "(text: field required)"),
        (changed(lambda f: f.update(name=["x"])), "(name: input should be a valid string)"),
        (changed(lambda f: f.update(created=7)), "(created: input should be a valid string)"),
        (changed(lambda f: f.update(name="x" * 30_000)), "30,000 characters"),
        (changed(lambda f: f.update(name="a\u202eb")), "do not show"),
        (changed(lambda f: f["model"].update(id={"a": 1})), "(model.id: input should be a valid string)"),
        (changed(lambda f: f["model"].update(layer_bytes=[1])), "differ"),
        (changed(lambda f: f["model"].update(parameters=0)), "no parameters"),
        (
            changed(lambda f: f["model"].update(parameters="many")),
            "(model.parameters: input should be a valid",
        ),
        (changed(lambda f: f["model"].update(more=1)), "(model.more: unexpected keyword argument)"),
        (changed(lambda f: f["text"].update(rows="8")), "(text.rows: input should be a valid integer)"),
        (
            changed(lambda f: mean_of(f).__setitem__(0, [1.0])),
            f"({MEAN}: row 1 has 1 numbers, 6 are expected)",
        ),
        (
            changed(lambda f: mean_of(f).pop()),
            f"({MEAN}: row 1 has 6 numbers, 5 are expected)",
        ),
        (changed(lambda f: f.update(distances=[1])), "(distances: input should be an object)"),
        (changed(lambda f: f["distances"]["norms"].update(first=[1.0])), "distances.norms.first"),
        (changed(lambda f: f["evaluations"][0].update(removed=[99])), "not there"),
        (changed(lambda f: f["evaluations"][0].update(removed=[True])), "(evaluations.0.removed.0: input should be"),
        (changed(lambda f: mean_of(f)[0].__setitem__(0, "1.5")), f"({MEAN}: it holds something else"),
        (changed(lambda f: mean_of(f)[0].__setitem__(0, True)), f"({MEAN}: it holds something else"),
        (changed(lambda f: mean_of(f)[0].__setitem__(0, [1])), f"({MEAN}: it holds something else"),
        (changed(lambda f: mean_of(f).__setitem__(0, "abcdef")), "row 1 has no numbers"),
        (changed(lambda f: mean_of(f).clear()), f"({MEAN}: it is of 0 layers"),
        (changed(lambda f: f["distances"].update(num_layers=7)), "distances.num_layers: it is of 7 layers"),
        (changed(lambda f: f["distances"]["norms"].update(rest=[[1.0]] * 7)), "distances.norms.rest"),
        (changed(lambda f: f.update(versions={str(i): i for i in range(2000)})), "2,000 names"),
    ],
)
def test_what_is_no_run_is_refused_in_a_sentence(content: bytes, why: str) -> None:
    with pytest.raises(RunError, match=r"^The file (is|says|holds|unpacks|has)") as error:
        unpack_run(content, "The file")
    assert why in str(error.value)


def test_a_file_over_the_cap_is_not_even_looked_at() -> None:
    with pytest.raises(RunError, match=r"at most 1\.0 KB"):
        unpack_run(b"x" * 1001, "The file", most_bytes=1000)


def test_a_name_becomes_a_file_name_that_is_safe_everywhere() -> None:
    assert file_name(described(fixture_run(6), name="../My run: <b>1</b>")) == "My-run-b-1-b.shortviz.zip"
    assert "/" not in file_name(described(fixture_run(6), name="///"))


def test_a_run_that_was_put_aside_is_not_listed_and_comes_back_byte_for_byte(tmp_path: Path) -> None:
    save_run(fixture_run(6), tmp_path / "six")
    (tmp_path / "six" / "heal.safetensors").write_bytes(b"weights")
    before = (tmp_path / "six" / "run.json").read_bytes()
    token = set_aside(tmp_path / "six")
    assert folders(tmp_path) == []
    assert bring_back(tmp_path, token) == "six"
    assert (tmp_path / "six" / "run.json").read_bytes() == before
    assert (tmp_path / "six" / "heal.safetensors").read_bytes() == b"weights"


def test_a_run_comes_back_under_another_key_where_its_own_is_taken(tmp_path: Path) -> None:
    save_run(fixture_run(6), tmp_path / "six")
    first = set_aside(tmp_path / "six")
    save_run(fixture_run(6), tmp_path / "six")
    second = set_aside(tmp_path / "six")
    assert (bring_back(tmp_path, second), bring_back(tmp_path, first)) == ("six-2", "six")
    assert free_key(tmp_path, "six") == "six-3"


@pytest.mark.parametrize("token", ["none", "../six", "six/..", ""])
def test_what_was_never_put_aside_cannot_be_brought_back(tmp_path: Path, token: str) -> None:
    save_run(fixture_run(6), tmp_path / "six")
    with pytest.raises(RunError, match="cannot be brought back"):
        bring_back(tmp_path, token)


def test_removing_twice_is_said(tmp_path: Path) -> None:
    save_run(fixture_run(6), tmp_path / "six")
    set_aside(tmp_path / "six")
    with pytest.raises(RunError, match="nothing was removed"):
        set_aside(tmp_path / "six")


def test_a_name_that_is_too_long_is_refused_and_an_empty_one_is_model_text_and_date() -> None:
    with pytest.raises(RunError, match="at most 120 characters"):
        described(fixture_run(6), name="x" * 121)
    run = replace(described(fixture_run(6), name="  "), created="2026-11-24T10:00:00+00:00")
    assert run.name == ""
    assert title(run) == f"{run.model.id} · {run.text.source} · 24 Nov 2026"
    assert described(run, name=title(run)).name == ""


def test_one_scale_holds_for_all_compared_maps() -> None:
    found = [one for n in (6, 9) if (one := maps(fixture_run(n))) is not None]
    low, high = shared_limits(found, "euclidean_last")
    for one in found:
        values = one.criteria["euclidean_last"].mean
        assert low <= np.nanmin(values)
        assert np.nanquantile(values, CLIPPED) <= high


def test_distances_and_losses_are_compared_by_what_both_runs_have() -> None:
    both, distances_only = maps(example_run()), maps(fixture_run(6))
    assert both is not None
    assert distances_only is not None
    assert {"nll_increase", "kl", "angular_last"} <= set(both.criteria)
    assert "nll_increase" not in in_common([both, distances_only])
    assert in_common([]) == []


def test_a_block_too_deep_for_one_of_the_runs_is_told_for_the_others_only() -> None:
    run = fixture_run(9)
    found = {name: one for name, n in (("six", 6), ("nine", 9)) if (one := maps(fixture_run(n))) is not None}
    block = run.evaluations[0].removed
    assert block
    from shortviz.records.plan import Block

    (row,) = block_in(found, "angular_last", Block(start=5, n=4))
    assert (row.name, row.blocks) == ("nine", 6)
    assert row.rank >= 1


def test_a_deep_run_opens_within_a_second_of_processor_time_and_without_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    save_run(fixture_run(126), tmp_path / "deep")
    program = (
        "import sys, time; from pathlib import Path; from shortviz.runs.run import load_run; "
        "from shortviz.figures.map import MapView, distance_map; begun = time.process_time(); "
        "run = load_run(Path(sys.argv[1])); "
        "distance_map(run.distances, 'angular_last', run.model, MapView()).to_json(); "
        "print(time.process_time() - begun, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "deep")], capture_output=True, text=True, check=True
    )
    seconds, torch = done.stdout.split()
    print(f"opened and drawn in {seconds} s of processor time")
    assert torch == "False"
    assert float(seconds) < 1
    assert load_run(tmp_path / "deep").model.num_layers == 126
