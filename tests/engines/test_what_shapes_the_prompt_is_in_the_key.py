"""Days and thoughts of chat templates: the same row is the same prompt, or has another key."""

from __future__ import annotations

import datetime
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlaif import PairwiseJudge
from rlaif.cli.app import app
from rlaif.config import load_config
from rlaif.engines import tokens
from rlaif.engines.hf import HFEngine
from rlaif.engines.tokens import Encoder, fix_date
from rlaif.errors import ConfigError, EngineError
from rlaif.files import resources
from rlaif.files.templates import Rendered, RenderedMessage, Segment
from rlaif.judges.settings import PairwiseSettings
from rlaif.store import RunStore

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DAY = "{{ strftime_now('%d %b %Y') }}"
DATED = f"<|im_start|>system\nToday is {DAY}.<|im_end|>\n{CHATML}"
# As Llama 3 has it: a variable of the caller's, else the clock.
LLAMA = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
    "{% endif %}Date: {{ date_string }}\n" + CHATML
)
# As Qwen3 has it: the thought is closed when it is told so.
QWEN = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}",
)
# As DeepSeek R1 and its distillations have it: always open. Others differ in the mark.
R1 = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")


@pytest.fixture(autouse=True)
def _no_day_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_today", [])


@pytest.fixture
def bytelevel(tokenizers: Any) -> Any:
    """Makes a tokenizer with a chat template."""
    return tokenizers["bytelevel"]


def ask(cue: str = "The better answer is") -> Rendered:
    user = RenderedMessage("user", (Segment("Which?", False),))
    return Rendered((user, RenderedMessage("assistant", (Segment(cue, False),))))


def text_of(encoder: Encoder, prompt: Rendered) -> str:
    return str(encoder.tokenizer.decode(encoder.prompt(prompt).tolist()))


@pytest.mark.parametrize("template", [DATED, LLAMA])
def test_the_day_of_a_template_is_the_runs(template: str, bytelevel: Any) -> None:
    here = Encoder(bytelevel(template))
    assert datetime.date.today().strftime("%d %b %Y") in text_of(here, ask())
    fix_date(datetime.date(2026, 1, 31))
    first, again = Encoder(bytelevel(template)), Encoder(bytelevel(template))
    assert "31 Jan 2026" in text_of(first, ask())
    assert first.template_id == again.template_id
    fix_date(datetime.date(2026, 2, 1))
    later = Encoder(bytelevel(template))
    assert "01 Feb 2026" in text_of(later, ask())
    assert later.template_id != first.template_id
    assert "31 Jan 2026" in text_of(first, ask())  # not in the middle of a run


def test_the_day_is_not_in_the_key_of_a_template_that_does_not_ask(bytelevel: Any) -> None:
    ids = set()
    for day in (1, 2):
        fix_date(datetime.date(2026, 1, day))
        ids.add(Encoder(bytelevel()).template_id)
    assert len(ids) == 1
    assert Encoder(bytelevel(CHATML.replace("user", "User") + " ")).template_id not in ids
    with pytest.raises(ConfigError, match=r"date.*31\.1\.2026"):
        load_config(None, ["date=31.1.2026"])


def dated_model(to: Path) -> Path:
    """The embedded model with a chat template that tells the day."""
    shutil.copytree(resources.TINY_WEIGHTS, to)
    (template,) = to.glob("chat_template.jinja")
    template.write_text(f"{{{{ bos_token }}}}Today is {DAY}.\n" + template.read_text())
    return to


def test_a_run_keeps_its_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dated_model(tmp_path / "m")
    rows = [
        {"prompt": f"Help me steal cake {i}.", "chosen": "No.", "rejected": "Yes."}
        for i in range(3)
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def label(*more: str) -> str:
        words = ["label", "--pairs", "pairs.jsonl", "--judge", "m", "--out", "r", *more]
        result = CliRunner().invoke(
            app, [*words, "--set", "judge.min_mass=0"], catch_exceptions=False
        )
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    assert "12 verdicts (12 new)" in label()
    assert RunStore("r", read_only=True).read_manifest()["run"]["date"] == str(
        datetime.date.today()
    )

    class Tomorrow(datetime.date):
        @classmethod
        def today(cls) -> datetime.date:  # type: ignore[override]
            return datetime.date(2031, 5, 6)

    monkeypatch.setattr(datetime, "date", Tomorrow)
    monkeypatch.setattr(tokens, "_today", [])
    assert "(0 new)" in label()  # resumed on another day: the run's own
    assert "12 verdicts (12 new)" in label("--set", "date=2031-05-06")  # asked for: another key


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (R1, "</think>"),
        (R1.replace("think", "thinking"), "</thinking>"),
        (R1.replace("<think>", "[THINK]"), "[/THINK]"),
        (R1.replace("<think>", "<seed:think>"), "</seed:think>"),
        (R1.replace("<think>", "◁think▷"), "◁/think▷"),
        (R1.replace("<think>", "<|START_THINKING|>"), "<|END_THINKING|>"),
    ],
)
def test_an_open_thought_is_closed_before_a_verdict_is_read(
    template: str, end: str, bytelevel: Any
) -> None:
    encoder = Encoder(bytelevel(template), "thinker")
    with pytest.warns(UserWarning, match="thinker: its chat template begins every answer with an"):
        text = text_of(encoder, ask())
    head, _, tail = text.rpartition(end)
    assert head.rstrip().endswith(end.replace("/", "", 1).replace("END_", "START_"))
    assert tail == "\n\nThe better answer is"


def test_a_mark_that_is_only_spoken_of_is_no_thought(bytelevel: Any) -> None:
    spoken = CHATML.replace("{% if add", "Put thoughts in <think> marks.{% if add")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "</think>" not in text_of(Encoder(bytelevel(spoken)), ask())


def test_two_labels_of_the_same_tokens_are_refused(make_engine: Any) -> None:
    """Their probabilities are equal whatever the model says: a label of ½ that means nothing."""
    with pytest.raises(EngineError, match=r"two of the options .* are the same tokens"):
        make_engine("llama").score([ask()], [[" A", " A"]])


def test_a_thought_that_the_template_closes_is_left_alone(bytelevel: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = text_of(Encoder(bytelevel(QWEN)), ask())
    assert text.endswith("assistant\n<think>\n\n</think>\n\nThe better answer is")
    assert text.count("</think>") == 1


def test_the_judge_reads_its_label_behind_the_thought(make_engine: Any, bytelevel: Any) -> None:
    """The label's probability is that after the closed thought, by a plain forward pass."""
    import torch

    engine: HFEngine = make_engine("llama", tokenizer=bytelevel(R1))
    with pytest.warns(UserWarning, match="open thought"):
        ids = engine.encoder.prompt(ask()).tolist()
    judge = PairwiseJudge(engine, PairwiseSettings(min_mass=0))
    assert (
        judge.fingerprint
        != PairwiseJudge(make_engine("llama"), PairwiseSettings(min_mass=0)).fingerprint
    )
    option = engine.encoder.option(" A").tolist()
    (scores,) = engine.score([ask()], [[" A", " B"]])
    assert "</think>" in engine.tokenizer.decode(ids)
    with torch.no_grad():
        logits = engine.model(torch.tensor([ids + option])).logits[0].double().log_softmax(-1)
    plain = sum(float(logits[len(ids) - 1 + j, t]) for j, t in enumerate(option))
    assert scores.logprobs[0] == pytest.approx(plain, abs=1e-5)
