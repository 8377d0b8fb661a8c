"""Metrics of texts: by hand, and against the well-known libraries' own ways of asking."""

from __future__ import annotations

import builtins
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlaif.cli.app import app
from rlaif.errors import ConfigError, DataError
from rlaif.evaluation.text import (
    distinct,
    measure,
    meteor,
    msttr,
    of_references,
    perplexity,
    repetition,
    words_of,
)
from rlaif.files.readers.texts import Text, read_texts
from rlaif.records import Prompt


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def text(said: str, *references: str, prompt: str = "") -> Text:
    asked = Prompt.user(prompt) if prompt else None
    return Text("a", said, said, asked, references)


# -------------------------------------------------------------------------------------- by hand


def test_distinct_n_and_repetition() -> None:
    """`a b a b a`: 1-grams 2 of 5, 2-grams ab ba 2 of 4, and with another text c 3 of 6."""
    row = list("ababa")
    assert distinct([row], 1) == pytest.approx(2 / 5)
    assert distinct([row], 2) == pytest.approx(2 / 4)
    assert distinct([row, ["c"]], 1) == pytest.approx(3 / 6)
    assert distinct([["c"]], 2) is None
    assert repetition(row, 2) == pytest.approx(1 - 2 / 4)
    assert repetition(list("abcdabcd"), 4) == pytest.approx(1 - 4 / 5)
    assert repetition(list("abc"), 4) is None


def test_msttr_by_segments() -> None:
    """Segments of 4: `a b c d` 1, `a a b b` ½; what is left over counts nothing."""
    assert msttr(list("abcdaabbzz"), 4) == pytest.approx(0.75)
    assert msttr(list("abc"), 4) is None


def test_msttr_is_lexicalrichness_own() -> None:
    """It leaves out the last segment, whole or not: here that one is not."""
    richness = pytest.importorskip("lexicalrichness", reason="lexicalrichness is not installed")
    random = np.random.default_rng(0)
    tokens = [chr(97 + i) for i in random.integers(0, 26, 1_050)]
    own = richness.LexicalRichness(" ".join(tokens)).msttr(segment_window=100)
    assert msttr(tokens) == pytest.approx(own)


def test_perplexity_is_over_all_tokens() -> None:
    """Two texts of 1 and 3 tokens, ½ and ⅛ likely: exp((ln 2 + ln 8)/4) = 2."""
    found = perplexity([(math.log(1 / 2), 1), (math.log(1 / 8), 3), None], ["p", "q", "r"])
    assert found is not None
    assert found["value"] == pytest.approx(2)
    assert (found["n"], found["left_out"]) == (2, 1)
    assert perplexity([None], ["p"]) is None


def test_words_are_counted_with_intervals_over_prompts() -> None:
    assert words_of("It's 1 test-case, yes!") == [
        "it",
        "'",
        "s",
        "1",
        "test",
        "-",
        "case",
        ",",
        "yes",
        "!",
    ]
    found = measure([text("a b", prompt="p"), text("c d e f", prompt="p"), text("", prompt="q")])
    assert found["words"]["value"] == pytest.approx(2)
    assert (found["n"], found["empty"], found["of_references"]) == (3, 1, None)
    assert found["words"]["low"] <= 0.1  # two prompts only: one of them is blank


# ------------------------------------------------------------------------------- the libraries'

SAID = ["The cat sat on the mat.", "Dogs are running fast", "nothing alike"]
WANTED = [["The cat was sitting on the mat."], ["A dog ran fast.", "Dogs run."], ["it is a test"]]


def rows() -> list[Text]:
    return [text(s, *w, prompt=f"q{i}") for i, (s, w) in enumerate(zip(SAID, WANTED, strict=True))]


def test_rouge_is_the_librarys_mean_of_the_best_reference() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="the extra `text` is missing")
    own = scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    found = of_references(rows())
    for metric in ("rouge1", "rougeL"):
        best = [
            max(own.score(w, s)[metric].fmeasure for w in wanted)
            for s, wanted in zip(SAID, WANTED, strict=True)
        ]
        assert found[metric]["value"] == pytest.approx(np.mean(best))
    # ROUGE-1 of the first by hand: 5 words of 6 and 7 (the cat on the mat; sat is no sitting)
    precision, recall = 5 / 6, 5 / 7
    assert best[0] <= 2 * precision * recall / (precision + recall) + 1e-9


def test_corpus_metrics_are_sacrebleus_own() -> None:
    metrics = pytest.importorskip("sacrebleu.metrics", reason="the extra `text` is missing")
    streams = [[w[0] for w in WANTED], [w[1] if len(w) > 1 else None for w in WANTED]]
    found = of_references(rows())
    for name, metric in (
        ("bleu", metrics.BLEU()),
        ("chrf", metrics.CHRF()),
        ("ter", metrics.TER()),
    ):
        assert found[name]["value"] == pytest.approx(metric.corpus_score(SAID, streams).score)
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]
    same = of_references([text(w[0], *w, prompt=w[0]) for w in WANTED])
    assert (same["bleu"]["value"], same["ter"]["value"]) == pytest.approx((100.0, 0.0))
    assert same["rougeL"]["value"] == 1.0


def test_meteor_by_hand() -> None:
    """`the cat` of `the cat sat`: P 1, R 2/3, one chunk of two matches. F = PR/(.9P + .1R), less a
    penalty of .5·(1/2)³."""
    pytest.importorskip("nltk", reason="the extra `text` is missing")
    values, synonyms = meteor([text("the cat", "the cat sat")])
    mean = (1 * 2 / 3) / (0.9 * 1 + 0.1 * 2 / 3)
    assert values[0] == pytest.approx(mean * (1 - 0.5 * (1 / 2) ** 3))
    assert isinstance(synonyms, bool)


def test_a_missing_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    own = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("rouge_score"):
            raise ImportError(name)
        return own(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ConfigError, match="measuring texts against references needs rouge-score: pip"
    ):
        measure([text("a", "b")])
    assert measure([text("a")])["n"] == 1  # no reference, no library


# ------------------------------------------------------------------------------------- the files


def test_rows_are_read_with_what_they_have(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.jsonl",
        {"prompt": "q", "completion": "a", "references": ["r", "s"]},
        {"response": "b", "reference": "r", "model": "gpt"},
        {"text": "c"},
    )
    found = list(read_texts(path))
    assert [(t.group, t.text, t.references) for t in found] == [
        ("mine", "a", ("r", "s")),
        ("gpt", "b", ("r",)),
        ("mine", "c", ()),
    ]
    assert found[0].prompt == Prompt.user("q", "mine.jsonl:1")
    write(path, {"completion": "a"}, {"said": "a"})
    with pytest.raises(DataError, match=r"mine\.jsonl:2: expected a text in one of completion, "):
        list(read_texts(path))


def run(*arguments: str) -> None:
    app(["eval", "text", *arguments], standalone_mode=False)


def test_texts_of_a_file_with_their_perplexity(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sacrebleu", reason="the extra `text` is missing")
    row = {"prompt": "Is grass green?", "completion": "The color of grass is green."}
    path = write(
        tmp_path / "t.jsonl",
        {**row, "reference": "Grass is green.", "policy": "one"},
        {**row, "completion": "green green green green green", "policy": "two"},
    )
    out = tmp_path / "run"
    run("--rows", str(path), "--perplexity", "tiny", "--out", str(out))
    found = json.loads((out / "evaluation/text.json").read_text())["groups"]
    assert list(found) == ["one", "two"]
    assert found["one"]["of_references"]["n"] == 1
    assert found["two"]["of_references"] is None
    assert found["two"]["repetition"]["value"] == pytest.approx(0.5)
    assert 1 <= found["one"]["perplexity"]["value"] < found["two"]["perplexity"]["value"]
    said = capsys.readouterr().out
    assert "one: 1 texts, 0 of them blank" in said
    kept = (out / "evaluation/text-scores.jsonl").read_text()
    run(str(out))  # computes none again
    assert (out / "evaluation/text-scores.jsonl").read_text() == kept


def test_a_runs_own_samples_against_references(tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu", reason="the extra `text` is missing")
    out = tmp_path / "run"
    with pytest.raises(DataError, match="no texts to measure: run `rlaif sample` first"):
        run("--out", str(out))
    arguments = ["sample", "--config", "demo", "--limit", "4", "--out", str(out)]
    app(arguments, standalone_mode=False)
    from rlaif.store import RunStore

    prompts = RunStore.open_readonly(out).table("prompts").read()
    wanted = [{"prompt": p.messages[-1].content, "completion": "I will."} for p in prompts[:2]]
    path = str(write(tmp_path / "wanted.jsonl", *wanted))
    run(str(out), "--references", path)
    (found,) = json.loads((out / "evaluation/text.json").read_text())["groups"].values()
    assert (found["n"], found["of_references"]["n"]) == (8, 4)
    path = str(write(tmp_path / "others.jsonl", {"prompt": "?", "completion": "!"}))
    with pytest.raises(DataError, match="none of its prompts is that of a text: 1 prompts there"):
        run(str(out), "--references", path)
