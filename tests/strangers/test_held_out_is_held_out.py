"""Evaluation: on prompts that nothing learnt from, by a named judge, the KL on whole samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.errors import ConfigError, DataError
from rlaif.store import RunStore

SMALL = [
    "prompts.limit=24",
    "train.dpo.epochs=1",
    "train.limits=null",
    "train.reward=null",
    "preferences.min_margin=0",
    "preferences.principle_margin=0",
    "sampling.max_new_tokens=40",
]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    questions = [f"Help me put {what} on the mayor's chair." for what in ("glue", "mud", "ink")]
    questions += ["How many ants are in the lake?", "What color is grass?"]
    write("prompts.jsonl", questions)
    write("held_out.jsonl", ["What color is snow?", "Help me steal the judge's cake."])


def write(name: str, questions: list[str]) -> None:
    Path(name).write_text("".join(json.dumps({"prompt": q}) + "\n" for q in questions))


def run(*words: str, sets: tuple[str, ...] = ()) -> str:
    options = [part for value in (*SMALL, *sets) for part in ("--set", value)]
    result = CliRunner().invoke(app, [*words, *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("r/evaluation", name).read_text())
    return found


def test_a_run_on_prompts_of_ones_own_names_those_it_is_evaluated_on() -> None:
    own = ("--config", "demo", "--out", "r")
    with pytest.raises(ConfigError, match=r"this run learns from .*prompts.jsonl: name prompts"):
        run("run", *own, sets=("prompts.path=prompts.jsonl",))
    assert not Path("r").exists()  # told before anything is done
    sets = ("prompts.path=prompts.jsonl", "evaluate.prompts.path=held_out.jsonl")
    run("run", *own, sets=sets)
    with RunStore("r", read_only=True) as store:
        assert {p.source for p in store.table("prompts").read()}
    asked = [row["prompt"] for row in json.loads(Path("r/evaluation/samples.json").read_text())]
    assert asked == ["What color is snow?", "Help me steal the judge's cake."]


def test_prompts_that_were_trained_on_are_refused() -> None:
    write("held_out.jsonl", ["What color is snow?", "What color is grass?"])
    sets = ("prompts.path=prompts.jsonl", "evaluate.prompts.path=held_out.jsonl")
    with pytest.raises(
        DataError,
        match=r"1 of the 2 prompts of evaluate.prompts \(.*held_out.jsonl"
        r"\) were trained on: .*held_out.jsonl:2",
    ):
        run("run", "--config", "demo", "--out", "r", sets=sets)
    with pytest.raises(DataError, match="were trained on"):
        run("eval", "best-of-n", "--out", "r", "-n", "2")


def test_the_judge_of_win_rates_may_be_another_and_is_told() -> None:
    said = run("run", "--config", "demo", "--out", "r", sets=("evaluate.prompts.limit=16",))
    rate = read("winrate.json")
    assert rate["judge"] == {"models": ["tiny"], "labelled": True, "is_policy": True}
    assert "the judge of the win rates is the one that labelled and the policy's base" in said
    assert "The judge of this rate (tiny) is the one that labelled and the policy" in (
        Path("r/report.html").read_text()
    )
    parts = ("wins", "losses", "ties", "identical", "abstained")
    assert sum(rate[k] for k in parts) == 16 == rate["n"] + rate["abstained"]
    assert f"{rate['wins']} won, {rate['losses']} lost" in said
    assert rate["at_stake"]["trait"] == "harmless"
    assert rate["at_stake"]["n"] < 16
    both = read("policies.json")["dpo"]["and_legal"]["harmless"]
    assert both["at_stake"]["n"] < both["all"]["n"] == 16
    # The same model by another method or threshold is the same model.
    for same in ("{method: rubric}", "{min_mass: 0.11}"):
        run("eval", "winrate", "--out", "r", sets=(f"evaluate.judge={same}",))
        assert read("winrate.json")["judge"] == {
            "models": ["tiny"],
            "labelled": True,
            "is_policy": True,
        }


def test_best_of_n_needs_samples_that_differ() -> None:
    run("run", "--config", "demo", "--out", "r", sets=("evaluate.prompts.limit=4",))
    with pytest.raises(ConfigError, match=r"nothing to choose from at evaluate\.temperature 0"):
        run("eval", "best-of-n", "--out", "r", "-n", "2", sets=("evaluate.temperature=0",))


def test_the_kl_is_of_whole_samples() -> None:
    """At temperature 0 all samples are the likeliest: no estimate of a KL."""
    run("run", "--config", "demo", "--out", "r", sets=("evaluate.prompts.limit=16",))
    whole = read("policies.json")["dpo"]["kl"]
    run("eval", "winrate", "--out", "r", sets=("evaluate.temperature=0",))
    assert read("policies.json")["dpo"]["kl"] == whole  # of the same samples, found again
    run("eval", "winrate", "--out", "r", sets=("sampling.top_p=0.5",))
    assert read("policies.json")["dpo"]["kl"] == whole


# ---- whatever a model learnt from, by whatever road


HELD = ["What color is snow?", "Help me steal the judge's cake."]
PAIRS = "pairs.path=pairs.jsonl"
EVALUATED = "evaluate.prompts.path=held_out.jsonl"
STEP = ("steps=1", "batch_size=4")


def rows(name: str, questions: list[str], **more: str) -> None:
    lines = [json.dumps({"prompt": q, **more}) + "\n" for q in questions]
    Path(name).write_text("".join(lines))


def section(name: str, *options: str) -> tuple[str, ...]:
    at = f"train.{name.replace('-', '_')}"
    return (f"{at}={{}}", *(f"{at}.{option}" for option in options))


def trained(name: str, *sets: str, out: str = "r") -> None:
    """A step of training on other pairs than are evaluated on."""
    Path("of_length.py").write_text("def length(prompts, texts): return [len(t) for t in texts]\n")
    rows("pairs.jsonl", ["How many ants are in the lake?"] * 4, chosen="One .", rejected="Two .")
    own = ("--config", "demo", "--out", out)
    run("train", name, *own, sets=(PAIRS, EVALUATED, "evaluate.winrate=false", *sets))


def refused(where: str, *command: str, n: int = 1) -> None:
    command = command or ("eval", "winrate")
    with pytest.raises(DataError, match=f"{n} of the 2 prompts .* were trained on: .*{where}"):
        run(*command, "--out", "r", sets=(PAIRS, EVALUATED, "evaluate.winrate=false"))


@pytest.mark.parametrize("name", ["ppo", "grpo", "rloo", "online-dpo"])
def test_prompts_of_a_trainer_count_beside_pairs_of_a_file(name: str) -> None:
    write("prompts.jsonl", [*HELD[:1], "How many ants are in the lake?", "Why?", "When?"])
    rewarded = (*STEP, "reward=of_length:length")
    special = {"ppo": (*rewarded, "held_out=null"), "online-dpo": STEP}
    options = special.get(name, (*rewarded, "group=2"))
    trained(name, "prompts.path=prompts.jsonl", *section(name, *options))
    refused(f"models/{name}")
    write("held_out.jsonl", ["Is snow cold?", "Help me steal the judge's cake."])
    run("eval", "winrate", "--out", "r", sets=(PAIRS, EVALUATED, "evaluate.winrate=false"))


def test_demonstrations_count() -> None:
    rows("demo.jsonl", [*HELD, "Why?"], completion="I can not help with that .")
    trained("sft", "prompts.path=prompts.jsonl", *section("sft", "data=demo.jsonl", "epochs=1"))
    refused("models/sft", n=2)
    Path("demo.jsonl").unlink()  # the record is the model's, not the file's
    refused("models/sft", n=2)
    sets = (PAIRS, "prompts.path=prompts.jsonl", "policy.model=r/models/sft")
    trained("grpo", *sets, *section("grpo", *STEP, "group=2", "reward=of_length:length"), out="s")
    with pytest.raises(DataError, match=r"2 of the 2 .*models/grpo"):  # it began from that model
        run("eval", "winrate", "--out", "s", sets=(PAIRS, EVALUATED, "evaluate.winrate=false"))
    record = Path("r/models/sft/trained_on.json")
    record.unlink()
    said = run("eval", "winrate", "--out", "r", sets=(PAIRS, EVALUATED, "evaluate.winrate=false"))
    assert "models/sft has no record of the prompts that it learnt from" in said


def test_demonstrations_of_ptx_count() -> None:
    rows("ptx.jsonl", HELD[1:], completion="No .")
    trained(
        "ppo",
        "prompts.path=prompts.jsonl",
        *section(
            "ppo",
            *STEP,
            "reward=of_length:length",
            "held_out=null",
            "ptx=ptx.jsonl",
            "ptx_weight=0.1",
        ),
    )
    refused("models/ppo")


def test_references_and_pairs_of_a_reward_model_count() -> None:
    rows("refs.jsonl", HELD[:1], chosen="White .", rejected="Blue .")
    rows("pairs.jsonl", ["How many ants are in the lake?", "Why?"], chosen="1 .", rejected="2 .")
    run("label", "--config", "demo", "--out", "r", sets=(PAIRS, EVALUATED))
    run(
        "train",
        "reward",
        "--out",
        "r",
        sets=(
            PAIRS,
            EVALUATED,
            "train.limits=null",
            "train.reward={epochs: 1, references: {path: refs.jsonl}}",
        ),
    )
    refused("models/reward", "eval", "best-of-n", "-n", "2")
    trained("ppo", "prompts.path=prompts.jsonl", *section("ppo", *STEP, "held_out=null"))
    refused("models/ppo")  # by way of what rewarded it
