"""`rlaif train dpo` and `train sft` take the ids that the completions of a run were sampled as."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from rlaif import tiny
from rlaif.config import load_config
from rlaif.files.templates import Rendered
from rlaif.records import Completion, Pair, Preference, Prompt
from rlaif.stages import Run, train_dpo
from rlaif.stages.record import Rejected
from rlaif.stages.sft import _answers
from rlaif.store import RunStore
from rlaif.training.data import Row, row_key
from rlaif.training.models import load_policy


class Silent:
    """A reporter that keeps what it is told."""

    def say(self, text: str) -> None:
        del text

    warn = say

    def progress(self, title: str, total: int | None):
        del title, total
        return nullcontext(lambda *_: None)


def test_the_stages_train_on_the_ids_of_the_store(tmp_path: Path) -> None:
    loaded = load_policy("tiny")
    tokenizer, encoder = loaded.tokenizer, loaded.encoder.encoder
    prompts = [Prompt.user(p.text) for p in tiny.prompts("train", limit=2)]
    texts = ("I can help you with that.", "I do not know.")

    def letter_by_letter(text: str) -> tuple[int, ...]:
        ids = [i for c in text for i in tokenizer(c, add_special_tokens=False)["input_ids"]]
        assert encoder.completion(ids, ()) == text
        assert len(ids) > len(tokenizer(text)["input_ids"])
        return (*ids, loaded.encoder._end[0].item())

    config = load_config(
        "demo", ["train.dpo.epochs=1", "train.sft={}"], {"out": str(tmp_path / "run")}
    )
    with RunStore(config.out) as store, Run(config, store, Silent()) as run:
        store.table("completions").append(
            [
                Completion(f"{p.id}{i}", p.id, "base", i, text, "stop", 9, letter_by_letter(text))
                for p in prompts
                for i, text in enumerate(texts)
            ]
        )
        store.table("preferences").replace(
            [Preference(Pair(p, *texts), "preferred", 0.9) for p in prompts]
        )
        train_dpo(run)
        settings = run.config.train.sft
        assert settings is not None
        _, sampled = _answers(run, settings, Rejected("sft"))
    good, bad = (np.array(letter_by_letter(text), np.int32) for text in texts)
    wanted = {
        row_key(Row("", p.id, encoder.prompt(Rendered.chat(p.messages)), good, bad, 0.9))
        for p in prompts
    }
    known = json.loads((tmp_path / "run/models/dpo/reference.json").read_text("utf-8"))
    assert set(known["reference"]) == wanted
    assert sampled.tokens == {(p.id, t): letter_by_letter(t) for p in prompts for t in texts}
