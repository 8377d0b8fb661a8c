"""A jury as the live annotator of online training, with the labels that `rlaif label` gives."""

from __future__ import annotations

import json

import pytest
from test_ppo_command import Silent, run_stages

from rlaif.cli.common import with_section
from rlaif.config import load_config
from rlaif.errors import ConfigError, TrainingError
from rlaif.records import Pair, Prompt
from rlaif.stages import Run, label, live_label, train_grpo, train_online_dpo
from rlaif.store import RunStore
from rlaif.tiny import prompts

QUICK, MARKS = "{name: quick, weight: 3}", "{name: marks, method: rubric}"
MUTE = "{name: mute, method: text, rationale: {max_new_tokens: 4}}"
SMALL = [
    "train.online_dpo={steps: 2, batch_size: 4, learning_rate: 0.0001}",
    "train.grpo={steps: 2, batch_size: 4, group: 2, learning_rate: 0.0001}",
    "prompts.limit=8",
]


def jury(*jurors: str) -> list[str]:
    return [f"jury=[{', '.join(jurors)}]", "preferences.jury=weighted", *SMALL]


def journal(folder, name):
    return [json.loads(x) for x in (folder / f"models/{name}/training.jsonl").open()]


def test_live_labels_of_a_jury_are_those_of_the_label_stage(tmp_path):
    """The weighted mean of the two, each asked by itself in a run of its own."""
    texts = ["I will not help you.", "Just do it when nobody looks."]
    pairs = [Pair(Prompt.user(p.text), *texts) for p in prompts("train", kinds=["harm"], limit=6)]
    alone = {}
    for name, juror in {"quick": QUICK, "marks": MARKS, "both": f"{QUICK}, {MARKS}"}.items():
        out = tmp_path / name
        with RunStore(out) as store:
            store.table("pairs").replace(pairs)
        run_stages(out, jury(juror), label)
        with RunStore(out, read_only=True) as store:
            alone[name] = [p.p_first for p in store.table("preferences").read()]
    config = load_config("demo", jury(QUICK, MARKS), {"out": str(tmp_path / "both")})
    with RunStore(config.out) as store, Run(config, store, Silent()) as run:
        live, _ = live_label(run)
        found = [p.p_first for p in live(pairs)]
    expected = [(3 * p + q) / 4 for p, q in zip(alone["quick"], alone["marks"], strict=True)]
    assert found == pytest.approx(expected, abs=1e-5)
    assert found == pytest.approx(alone["both"], abs=1e-5)
    assert alone["quick"] != pytest.approx(alone["marks"], abs=1e-3)  # or either would do


def test_online_dpo_and_grpo_learn_from_a_jury_and_go_on(tmp_path):
    out = tmp_path / "r"
    said = run_stages(out, jury(QUICK, MARKS), train_online_dpo, train_grpo)
    spent = {}
    for name in ("online-dpo", "grpo"):
        assert any(text.startswith(f"{name}: 2 steps") for text in said), said
        spent[name] = [row["judge_tokens"] for row in journal(out, name)]
        assert all(n > 0 for n in spent[name])
        assert all(row["abstained"] == 0 for row in journal(out, name))
    # One juror alone, on the same first completions: the other's tokens are missing.
    run_stages(tmp_path / "s", jury(QUICK), train_online_dpo)
    assert journal(tmp_path / "s", "online-dpo")[0]["judge_tokens"] < spent["online-dpo"][0]
    before = (out / "models/online-dpo/model.safetensors").stat().st_mtime_ns
    run_stages(out, jury(QUICK, MARKS), train_online_dpo)  # finds its work done
    assert (out / "models/online-dpo/model.safetensors").stat().st_mtime_ns == before


def test_a_quorum_that_is_not_met_teaches_nothing_and_is_said(tmp_path):
    said = run_stages(tmp_path / "r", jury(QUICK, MUTE), train_online_dpo)
    assert journal(tmp_path / "r", "online-dpo")[0]["abstained"] == 0  # the other one decides
    assert not any("had no score" in text for text in said)
    short = [*jury(QUICK, MUTE), "preferences.quorum=2"]
    with pytest.raises(TrainingError, match=r"abstained on all .* pairs of step 1"):
        run_stages(tmp_path / "s", short, train_online_dpo)


def test_one_judge_beside_a_jury_is_refused(tmp_path):
    named = {"judge.model": "tiny"}
    with pytest.raises(ConfigError, match=r"the config has a jury.*--set jury=\[\]"):
        with_section("online_dpo", "demo", str(tmp_path), jury(QUICK, MARKS), named)
