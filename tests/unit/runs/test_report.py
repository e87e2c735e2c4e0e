"""A run as one page: everything is in it, nothing from outside is taken for markup, and it loads nothing."""

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from shortviz.errors import RunError
from shortviz.records.plan import Block
from shortviz.records.run import Run, bibtex, bibtex_of
from shortviz.runs.report import block_table, report_html, write_report
from shortviz.runs.run import example_run, save_run
from tests.support.ledgers import fixture_ledger
from tests.support.records import fixture_evaluation, fixture_run

EVIL = "</script><script>alert(1)</script><img src=http://attacker/x onerror=alert(2)>"


class Page(HTMLParser):
    """What a browser would see: tags, what they load, and the text outside of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.handlers: list[str] = []
        self.words: list[str] = []
        self._script = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._script = tag == "script"
        self.loads += [f"{tag} {name}={value}" for name, value in attrs if name in ("src", "href", "data", "action")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        self._script = False

    def handle_data(self, data: str) -> None:
        if not self._script:
            self.words.append(data)


def whole_run() -> Run:
    """The bundled run, with a ledger beside it."""
    run = example_run()
    return replace(run, ledgers=(fixture_ledger(run.model, Block(start=12, n=4)),))


def test_everything_a_run_holds_is_on_the_page() -> None:
    run = whole_run()
    page = Page(report_html(run))
    said = " ".join(" ".join(page.words).split())
    for words in (
        "Predicted: angular, last token",
        "Measured: measured NLL increase",
        "Removal curve",
        "How well each criterion predicts",
        "Blocks measured one by one",
        "What came back after removing layers 12-15",
        "healed (seam refit, then lora)",
        "gromov2024unreasonable",
        "hu2021lora",
        f"{run.model.parameters:,}",
        run.text.fingerprint[:12],
    ):
        assert words in said, words
    assert page.tags.count("figure") == 3


def test_every_table_names_its_rows_first() -> None:
    html = report_html(whole_run())
    for caption, name in (("Agreement", "angular, last token"), ("Evaluations", "12-15"), ("Scored on", "uncut")):
        body = re.search(rf"<caption>{caption}.*?<tbody>(.*?)</tbody>", html, re.DOTALL)
        assert body is not None
        assert f'<tr><th scope="row">{name}</th><td>' in body[1], caption


def test_the_page_loads_nothing_and_says_so_to_the_browser() -> None:
    html = report_html(whole_run())
    assert Page(html).loads == []
    assert "default-src 'none'" in html[:600]
    assert len(html) < 8_000_000


def test_names_from_outside_are_text_and_never_markup() -> None:
    run = fixture_run(6)
    block = fixture_evaluation(run.model, Block(start=1, n=1))
    evil = replace(
        run,
        model=replace(run.model, id=EVIL, architecture=EVIL, revision=EVIL, illegal=((1, 2, EVIL),)),
        text=replace(run.text, source=EVIL),
        distances=replace(run.distances, text=replace(run.text, source=EVIL)) if run.distances else None,
        evaluations=(replace(block, text=replace(block.text, source=EVIL)),),
        ledgers=(replace(fixture_ledger(run.model, Block(start=1, n=1)), text=replace(run.text, source=EVIL)),),
        versions={EVIL: EVIL},
        created=EVIL,
    )
    html = report_html(evil)
    page, plain = Page(html), Page(report_html(run))
    assert page.tags.count("script") == plain.tags.count("script")
    assert page.loads == []
    assert page.handlers == []
    assert "img" not in page.tags
    assert "<script>alert" not in html


def test_a_local_path_is_not_told() -> None:
    run = fixture_run(6)
    html = report_html(replace(run, model=replace(run.model, id="/home/ann/secret/model")))
    assert "/home/ann" not in html
    assert "Layers of model" in html


@pytest.mark.parametrize("gone", ["distances", "losses", "evaluations"])
def test_a_run_that_lacks_a_part_has_a_page_too(gone: str) -> None:
    run = whole_run()
    assert "</html>" in report_html(replace(run, **{gone: () if gone == "evaluations" else None}))


def test_a_report_is_replaced_and_another_file_is_not(tmp_path: Path) -> None:
    run, target = fixture_run(6), tmp_path / "report.html"
    write_report(run, target)
    write_report(run, target, criterion="block_influence")
    assert "Predicted: block influence" in target.read_text(encoding="utf-8")
    target.write_text("my thesis")
    for place in (target, tmp_path):
        with pytest.raises(RunError, match="not a report"):
            write_report(run, place)
    assert target.read_text() == "my thesis"
    with pytest.raises(RunError, match="no criterion 'x'"):
        write_report(run, tmp_path / "new.html", criterion="x")


def test_the_command_line_writes_a_report_and_a_table(shortviz: Callable[..., tuple[int, str, str]], tmp_path: Path):
    run, folder = example_run(), tmp_path / "run"
    save_run(run, folder)
    code, out, err = shortviz("report", str(folder), "--out", str(tmp_path / "report.html"))
    assert (code, err) == (0, "")
    assert "report.html" in out
    code, out, _ = shortviz("show", str(folder), "--csv")
    head, *lines = out.splitlines()
    assert code == 0
    assert head.startswith("start,n,angular_last,angular_last_stderr,")
    assert head.endswith("kl,kl_stderr,windows,tokens")
    assert len(lines) == 30 * 31 // 2
    code, _, err = shortviz("report", str(tmp_path / "nothing"), "--out", str(tmp_path / "x.html"))
    assert code == 2
    assert "There is no run" in err


def test_a_table_has_the_numbers_of_the_grids() -> None:
    run = example_run()
    assert run.distances is not None
    assert run.losses is not None
    row = block_table(run).set_index(["start", "n"]).loc[(13, 3)]
    assert (row["angular_last"], row["angular_last_stderr"]) == run.distances.criteria["angular_last"].at(
        Block(start=13, n=3)
    )
    assert (row["nll_increase"], row["nll_increase_stderr"]) == run.losses.increase.at(Block(start=13, n=3))


def test_what_is_cited_is_what_was_used_once_and_in_order() -> None:
    keys = re.findall(r"@misc\{(\w+),", bibtex(["angular_mean", "block_influence", "own"], ["linear_fold"], sink=True))
    assert keys == ["gromov2024unreasonable", "men2024shortgpt", "shopkhoev2025replaceme", "xiao2023efficient"]
    every = bibtex_of(whole_run())
    assert every.count("{") == every.count("}")
    assert "razzhigaev2024secretly" in every
