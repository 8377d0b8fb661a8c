"""A judge thinks, its thought is closed at the budget, and the label is read off the
log-probabilities after it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from rlaif import PairwiseJudge, load_engine
from rlaif.cli.app import app
from rlaif.config import load_config
from rlaif.constitution import Principle
from rlaif.engines.base import Engine, Generation, Sampling, ScriptedEngine
from rlaif.engines.thinking import Mode
from rlaif.errors import ConfigError, EngineError
from rlaif.files.templates import Rendered
from rlaif.judges.base import expand
from rlaif.judges.load import judge_class, make_judge
from rlaif.judges.methods import METHODS
from rlaif.judges.settings import PairwiseSettings, RationaleSettings, TextSettings
from rlaif.judges.text import TextJudge
from rlaif.records import Pair, Prompt, Verdict
from rlaif.store import RunStore

KIND = (Principle(id="kind", compare="Which response is kinder?"),)
PAIRS = [
    Pair(Prompt.user(f"Help me steal cake {i}."), "No, that would hurt them.", "Yes, take it.")
    for i in range(2)
]


@pytest.fixture(scope="module")
def engine(thinker: Path) -> Engine:
    return load_engine(str(thinker), device="cpu")


def after_each(
    engine: Any, judge: PairwiseJudge, prompt: Rendered, verdict: Verdict
) -> list[float]:
    """P(first shown) by plain passes after the verdict's thoughts, sampled again one by one."""
    drawn = Sampling(
        n=len(verdict.thoughts), temperature=2.0, max_new_tokens=0, seed=0, thinking=12
    )
    (row,) = engine.generate([prompt.without_cue()], drawn)
    assert tuple(g.thought for g in row) == verdict.thoughts
    found = []
    for g in row:
        begun = engine.encoder.prompt(replace(prompt.without_cue(), thinking="open")).tolist()
        tail = engine.tokenizer("</think>", add_special_tokens=False)["input_ids"]  # it has no cue
        scores = []
        for option in judge.template.options:
            ids = begun + list(g.ids) + tail
            own = engine.encoder.option(option).tolist()
            with torch.no_grad():
                logits = engine.model(torch.tensor([ids + own])).logits[0].double()
            steps = logits.log_softmax(-1)
            scores.append(sum(float(steps[len(ids) - 1 + j, t]) for j, t in enumerate(own)))
        found.append(1 / (1 + math.exp(scores[1] - scores[0])))
    return found


def test_the_label_is_the_mean_of_those_after_its_thoughts(engine: Any) -> None:
    how = RationaleSettings(samples=3, temperature=2.0, clamp=None)
    settings = PairwiseSettings(min_mass=0, rationale=how, thinking=12)
    judge = PairwiseJudge(engine, settings)
    asks = expand(PAIRS[:1], KIND)
    for ask, verdict in zip(asks, judge.judge(asks), strict=True):
        assert len(set(verdict.thoughts)) == 3
        assert not verdict.rationales
        assert 0 <= verdict.thoughts_cut <= 3
        assert 0 < verdict.tokens <= 36
        shown = after_each(engine, judge, judge.render(ask), verdict)
        p = sum(shown) / 3
        first = p if ask.order == "first_second" else 1 - p
        assert verdict.p_first == pytest.approx(first, abs=1e-5)
    clamped = PairwiseJudge(engine, settings.but(rationale=how.but(clamp=0.4))).judge(asks)
    assert all(0.4 <= v.p_first <= 0.6 for v in clamped)


def test_a_thought_closed_at_its_budget_is_counted_and_no_abstention(engine: Any) -> None:
    asks = expand(PAIRS, KIND)
    for budget, cut in ((1, True), (200, False)):
        how = RationaleSettings(temperature=1.0)
        settings = PairwiseSettings(min_mass=0, rationale=how, thinking=budget)
        found = PairwiseJudge(engine, settings).judge(asks)
        assert not any(v.abstained for v in found)
        assert (sum(v.thoughts_cut for v in found) >= 3) is cut


def test_how_it_thinks_is_in_the_key_and_nothing_is_in_that_of_one_that_does_not(
    engine: Any,
) -> None:
    (ask, _) = expand(PAIRS[:1], KIND)
    base = PairwiseSettings(thinking=8)
    changes: list[dict[str, Any]] = [
        {"samples": 2},
        {"seed": 1},
        {"temperature": 0.9},
        {"clamp": None},
    ]
    ways = [
        base,
        base.but(thinking=9),
        *(base.but(rationale=RationaleSettings(**change)) for change in changes),
        base.but(thinking=False),
    ]
    keys = [PairwiseJudge(engine, how).key(ask) for how in ways]
    plain = PairwiseJudge(engine).key(ask)
    assert len({*keys, plain}) == len(ways) + 1
    # how it would write is nothing to one that writes nothing
    several = PairwiseSettings(rationale=RationaleSettings(samples=5, seed=3))
    assert PairwiseJudge(engine, several).key(ask) == plain
    same = base.but(rationale=RationaleSettings(max_new_tokens=9))
    assert PairwiseJudge(engine, same).key(ask) == keys[0]


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_can_think(method: str, engine: Any) -> None:
    config = load_config(
        None,
        [
            f"judge.method={method}",
            "judge.thinking=6",
            "judge.min_mass=0",
            "judge.rationale.max_new_tokens=6",
            "judge.band=0.5",
        ],
    )
    judge = make_judge(engine, config.judge)
    orders = ("first_second",) if not judge_class(method).both_orders else None
    asks = expand(PAIRS, KIND, orders) if orders else expand(PAIRS, KIND)
    verdicts = judge.judge(asks)
    assert all(v.thoughts for v in verdicts)
    assert all(v.tokens > 0 for v in verdicts)
    assert judge.judge(asks) == verdicts
    off = make_judge(engine, config.judge.model_copy(update={"thinking": False}))
    assert off.fingerprint != judge.fingerprint
    assert not any(v.thoughts for v in off.judge(asks))


def test_a_model_without_thoughts_is_refused_by_every_method() -> None:
    plain = load_engine("tiny", device="cpu")
    for method in METHODS:
        config = load_config(None, [f"judge.method={method}", "judge.thinking=on"])
        with pytest.raises(EngineError, match=r"tiny cannot think: its template knows no thought"):
            make_judge(plain, config.judge)
        quiet = load_config(None, [f"judge.method={method}", "judge.thinking=off"])
        make_judge(plain, quiet.judge)


def test_an_engine_that_cannot_be_told_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot tell its model to think or not to"):
        PairwiseJudge(Mute(), PairwiseSettings(thinking=5))
    for method in sorted(set(METHODS) - {"text"}):
        with pytest.raises(ConfigError, match=r"judge.*needs engine hf or vllm.*Over http"):
            load_config(None, [f"judge.method={method}", "judge.engine=http", "judge.thinking=on"])
    load_config(None, ["judge.method=text", "judge.engine=http", "judge.thinking=on"])


def test_the_setting_is_a_word_or_a_number() -> None:
    def tokens(value: str) -> int | None:
        return load_config(None, [f"judge.thinking={value}"]).judge.thought_tokens

    assert [tokens(v) for v in ("null", "off", "on", "512", "1")] == [None, 0, 1024, 512, 1]
    for nonsense in ("-3", "soon", "1.5", "[]"):
        with pytest.raises(ConfigError, match=r"judge\.thinking"):
            tokens(nonsense)


class Mute(ScriptedEngine):
    """An engine from before there were thoughts."""

    thinking_id = None  # type: ignore[assignment]


@dataclass
class Spoken(ScriptedEngine):
    """An engine that cannot close thoughts, as a server: its text comes with its thought."""

    closes_thoughts: bool = False
    said: list[Generation] = field(default_factory=list)
    drawn: list[Sampling] = field(default_factory=list)

    def thinking_id(self, mode: Mode) -> str:
        return mode

    def generate(self, prompts: Sequence[Rendered], sampling: Sampling) -> list[list[Generation]]:
        self.drawn.append(sampling)
        return [[g] * sampling.n for _, g in zip(prompts, self.said, strict=True)]


def test_a_verdict_in_a_thought_is_no_verdict() -> None:
    said = [
        Generation("So: [[A]]", "stop", 9, thought="[[B]]? No [[C]]"),
        Generation("", "length", 50, thought="It is [[A]], it is [[A]]"),
        Generation("I do not know.", "stop", 9, thought="[[A]]"),
    ]
    engine = Spoken(said=said)
    judge = TextJudge(engine, TextSettings(thinking=40))
    pairs = [Pair(Prompt.user(f"q{i}"), "yes", "no") for i in range(3)]
    found = judge.judge(expand(pairs, KIND, ("first_second",)))
    assert [(v.p_first, v.reason) for v in found] == [
        (1.0, None),
        (None, "cut"),
        (None, "unparsable"),
    ]
    assert [v.thoughts for v in found] == [(g.thought,) for g in said]
    assert [v.rationales for v in found] == [(g.text,) for g in said]
    assert [v.thoughts_cut for v in found] == [0, 1, 0]
    (drawn,) = engine.drawn
    assert (drawn.thinking, drawn.max_new_tokens, drawn.temperature) == (40, 256, 0.6)
    with pytest.raises(ConfigError, match="set the judge's method to `text`"):
        PairwiseJudge(engine, PairwiseSettings(thinking=40))


def test_a_run_with_a_judge_that_thinks(
    thinker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": p.prompt.messages[0].content, "chosen": p.first, "rejected": p.second}
        for p in PAIRS
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def label(*more: str) -> str:
        words = ["label", "--pairs", "pairs.jsonl", "--judge", str(thinker), "--out", "r"]
        sets = ["judge.min_mass=0", "judge.principles=[no-harm]", *more]
        words += [word for one in sets for word in ("--set", one)]
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    told = label("judge.thinking=4", "judge.rationale.samples=2")
    assert "4 of 4 verdicts after a text of the judge's own" in told
    store = RunStore("r", read_only=True)
    verdicts = store.table("verdicts").read()
    facts = store.read_manifest()["stages"]["label"]
    cut = sum(v.thoughts_cut for v in verdicts)
    assert (facts["thoughts"], facts["thoughts_cut"]) == (8, cut)
    assert cut
    assert f"{cut} of 8 thoughts of the judge were closed at their budget" in told
    assert all(len(v.thoughts) == 2 for v in verdicts)
    assert "(0 new)" in label()
    assert "(4 new)" in label("judge.thinking=5")
    # another threshold: what it said is a mean, so it is asked again
    assert "(4 new)" in label("judge.min_mass=0.0001")
