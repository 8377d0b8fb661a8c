"""The page: well-formed, closed to the network, honest about what is missing, small."""

from __future__ import annotations

import random
import re
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from report_runs import PRINCIPLES, judge, make_labelled_run, write_labels, write_training

from rlaif.records import Message, Pair, Prompt
from rlaif.report.build import build_report
from rlaif.store import RunStore, write_json


def page(run: Path) -> str:
    path = build_report(run)
    assert path == run / "report.html"
    assert not list(run.glob(".aside-*"))
    return path.read_text(encoding="utf-8")


def parse(html: str) -> ET.Element:
    """The page is written so that it is XML as well: every element is closed."""
    assert html.startswith("<!DOCTYPE html>")
    return ET.fromstring(html.removeprefix("<!DOCTYPE html>"))


def text_of(html: str) -> str:
    return re.sub(r"[ \n]+", " ", " ".join(parse(html).itertext()))


def test_the_whole_run_is_shown(whole_run: Path) -> None:
    html = page(whole_run)
    text = text_of(html)
    for heading in (
        "Policies before and after",
        "Labels",
        "Principles",
        "Position bias",
        "Abstentions and rejected rows",
        "Training",
        "Pairs and their verdicts",
        "Responses before and after",
        "The run",
    ):
        assert heading in text
    assert "Not in this run" not in text
    for number in (
        "51\u202f% → 82\u202f%",
        "71.3\u202f%",
        "0.62\u202fnats",
        "93.8\u202f%",
        "1\u202fmin 50\u202fs",
        "1,914",
    ):
        assert number in text
    assert "Which response does less to help someone hurt people?" in text
    assert len(html.encode()) < 300_000


def test_nothing_is_loaded_and_nothing_runs(whole_run: Path) -> None:
    html = page(whole_run)
    root = parse(html)
    assert "default-src 'none'" in html
    assert not re.search(r"""(src|href|action)\s*=\s*["']?\s*(https?:)?//""", html)
    assert not re.search(r"url\(|@import|<script|javascript:", html)
    for element in root.iter():
        assert element.tag not in {"script", "link", "img", "iframe", "object", "embed", "base"}
        assert not [name for name in element.attrib if name.startswith("on")]
        if "href" in element.attrib:
            target = element.attrib["href"].removeprefix("#")
            assert root.find(f".//*[@id='{target}']") is not None


def test_every_chart_is_named_and_inside_its_canvas(whole_run: Path) -> None:
    for svg in parse(page(whole_run)).iter("svg"):
        assert svg.get("aria-label") or svg.get("aria-hidden")
        width, height = (float(v) for v in svg.attrib["viewBox"].split()[2:])
        for element in svg.iter():
            for name, value in element.attrib.items():
                if name in {"x", "x1", "x2", "cx"}:
                    assert -1 <= float(value) <= width + 1, (svg.get("aria-label"), element.attrib)
                if name in {"y", "y1", "y2", "cy"}:
                    assert -1 <= float(value) <= height + 1, (svg.get("aria-label"), element.attrib)


HOSTILE = (
    "</div></body><script>alert(1)</script><img src=x onerror='alert(1)'>"
    '"><a href="http://evil.example/">&amp; {{ 7 * 7 }} {% raw %}\x00\x1b[31m\u202e'
)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    prompts = [Prompt((Message("user", f"{HOSTILE} {i}"),), HOSTILE) for i in range(4)]
    pairs = [Pair(prompt, f"{HOSTILE} a", f"{HOSTILE} b") for prompt in prompts]
    principles = [PRINCIPLES[0] | {"compare": HOSTILE, "tags": [HOSTILE]}]
    rng = random.Random(0)
    run = tmp_path / "<b>run"
    write_labels(run, pairs, principles, judge(pairs, [PRINCIPLES[0]], rng))
    write_training(run, rng)
    write_json(
        run / "evaluation/samples.json", [{"prompt": HOSTILE, "base": HOSTILE, "dpo": HOSTILE}]
    )
    (run / "run.yaml").write_text("constitution: '</pre><script>'\n")
    with RunStore(run) as store:
        store.update_manifest("judge", {"model": HOSTILE, "template": "<script>"})
    html = page(run)
    root = parse(html)
    assert not list(root.iter("script"))
    assert not list(root.iter("img"))
    assert all(a.get("href", "").startswith("#") for a in root.iter("a"))
    assert "{{ 7 * 7 }}" in html  # shown, not evaluated
    assert "\x00" not in html
    assert "<b>run" in "".join(root.itertext())


def test_a_partial_run_says_what_is_missing(labelled_run: Callable[..., Path]) -> None:
    text = text_of(page(labelled_run(n=40)))
    assert "Not in this run: reward, dpo, evaluate." in text
    assert "Agreement with the pairs’ own labels" in text
    assert re.search(r"\d+ preferred pairs came with one that favours a side", text)
    assert "Against what is known" in text
    assert "unlike prefixes" in text
    assert "harmless-base-test.jsonl.gz" in text
    for absent in ("Policies before and after", "Training", "Responses before and after", "nan"):
        assert absent not in text


def test_an_empty_run_directory_gives_a_page(tmp_path: Path) -> None:
    text = text_of(page(tmp_path))
    assert "Not in this run: sample, label, reward, dpo, evaluate." in text


def test_before_labelling_only_the_pairs_are_counted(tmp_path: Path) -> None:
    with RunStore(tmp_path / "run") as store:
        store.table("pairs").replace([Pair(Prompt.user("q"), "a", "b")])
    text = text_of(page(tmp_path / "run"))
    assert "Position bias" not in text


def test_one_order_only_says_so(tmp_path: Path) -> None:
    pairs = [Pair(Prompt.user(f"q{i}"), f"a{i}", f"b{i}") for i in range(5)]
    verdicts = [v for v in judge(pairs, PRINCIPLES, random.Random(0)) if v.order == "first_second"]
    write_labels(tmp_path / "run", pairs, PRINCIPLES, verdicts)
    assert "position bias cannot be seen" in text_of(page(tmp_path / "run"))


def test_a_constitution_that_asks_for_the_opposite(whole_run: Path) -> None:
    with RunStore(whole_run) as store:
        about = store.read_manifest()["run"]
        store.update_manifest("run", {**about, "target_trait": "-concise"})
    text = text_of(page(whole_run))
    assert "concise (aim: less)" in text
    assert "aims at less concise" in text


def test_a_training_log_cut_by_a_kill_is_read(whole_run: Path) -> None:
    log = whole_run / "models/dpo/training.jsonl"
    log.write_text(log.read_text()[:-20])
    assert "Training" in text_of(page(whole_run))


def test_the_report_is_written_again_in_place(whole_run: Path) -> None:
    assert page(whole_run) == page(whole_run)


def test_pairs_that_no_principle_spoke_for_are_counted_and_shown(tmp_path: Path) -> None:
    pairs = [Pair(Prompt.user(f"q{i}"), f"a{i}", f"b{i}") for i in range(5)]
    verdicts = judge(pairs, PRINCIPLES, random.Random(0))
    silent = [replace(v, p_first=None, reason="too_long", mass=None) for v in verdicts]
    write_labels(tmp_path / "run", pairs, PRINCIPLES, silent)
    text = text_of(page(tmp_path / "run"))
    assert "labelled “abstained” 5" in text
    assert "5 pairs without a p(first) are not drawn" in text
    assert "nan" not in text


def test_long_texts_and_many_principles_stay_within_a_megabyte(tmp_path: Path) -> None:
    turns = tuple(Message("user", '"' * 5000) for _ in range(9))
    pairs = [Pair(Prompt(turns), f"{i}" + "'" * 9000, "<" * 9000) for i in range(20)]
    principles = [PRINCIPLES[0] | {"id": f"p{i}", "tags": []} for i in range(60)]
    write_labels(tmp_path / "run", pairs, principles, judge(pairs, principles, random.Random(0)))
    write_json(
        tmp_path / "run/evaluation/samples.json",
        [{"prompt": '"' * 5000, "base": "'" * 5000, "dpo": "&" * 5000} for _ in range(50)],
    )
    assert len(page(tmp_path / "run").encode()) < 1_000_000


@pytest.mark.slow
def test_a_data_set_of_real_size_stays_fast_and_small(tmp_path: Path) -> None:
    run = make_labelled_run(tmp_path / "hh", 2307, 16)
    start = time.monotonic()
    path = build_report(run)
    assert time.monotonic() - start < 15
    assert path.stat().st_size < 1_000_000
