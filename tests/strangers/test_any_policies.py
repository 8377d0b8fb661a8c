"""Any policies against one another, by a judge or a reward, and what fell that was watched."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.config import load_config
from rlaif.errors import ConfigError, DataError, EngineError, RlaifError
from rlaif.records import Pair, Prompt, mirrored
from rlaif.stages.comparers import comparer
from rlaif.stages.run import Run
from rlaif.statistics.intervals import share
from rlaif.store import RunStore
from rlaif.training.reward import RewardModel

SMALL = [
    "prompts.limit=48",
    "evaluate.prompts.limit=40",
    "train.dpo.epochs=1",
    "train.dpo.learning_rate=3e-4",
    "train.limits=null",
    "train.reward.epochs=1",
    "preferences.min_margin=0",
    "preferences.principle_margin=0",
    "sampling.max_new_tokens=40",
]
WITHOUT_COMPARE = (
    "name: bare\nprinciples: [{id: kind, critique: Name the unkind, revise: Be kind}]\n"
)


def run(*words: str, sets: tuple[str, ...] = ()) -> str:
    options = [part for value in (*SMALL, *sets) for part in ("--set", value)]
    result = CliRunner().invoke(app, [*words, *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a policy and a reward model, and another policy in `other`."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("run", "--config", "demo", "--out", "r")
        shutil.copytree("r/models/dpo", "other")
        weights = load_file("other/model.safetensors")
        name = sorted(k for k in weights if "mlp" in k)[0]
        weights[name] = weights[name] * 0.5
        save_file(weights, "other/model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(autouse=True)
def _a_copy(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("r/evaluation", name).read_text())
    return found


def stored(table: str) -> list[Any]:
    with RunStore("r/evaluation", read_only=True) as store:
        return list(store.table(table).read())


def test_by_default_each_trained_policy_meets_the_base_as_ever() -> None:
    rate, board = read("winrate.json"), read("leaderboard.json")
    (met,) = board["comparisons"]
    assert (met["a"], met["b"]) == ("dpo", "base")
    assert {k: met[k] for k in rate} == rate
    assert rate["length_controlled"]["n"] == rate["n"]
    assert {row["policy"] for row in board["standings"]} == {"base", "dpo"}
    assert board["differences"] == []
    assert not Path("r/evaluation/watch.json").exists()


def test_all_meet_all_and_the_order_in_which_they_are_named_asks_nothing_again() -> None:
    said = run("eval", "winrate", "r", "--compare", "dpo", "--compare", "./other")
    board = read("leaderboard.json")
    met = {(row["a"], row["b"]): row for row in board["comparisons"]}
    assert list(met) == [("dpo", "base"), ("other", "base"), ("dpo", "other")]
    assert f"win rate of dpo over other: {met['dpo', 'other']['value']:.3f}" in said
    assert "leaderboard: Bradley–Terry ratings" in said
    assert {"base", "dpo", "other"} == set(read("policies.json"))
    assert "kl" not in read("policies.json")["other"]
    pairs, verdicts = stored("pairs"), stored("verdicts")
    ids = {pair.id for pair in pairs}
    assert not any(mirrored(i) in ids for i in ids)  # the same two answers are asked about once
    rows = json.loads(Path("r/evaluation/samples.json").read_text())
    two = {
        Pair(Prompt.user(row["prompt"]), row["dpo"], row["other"]).id
        for row in rows
        if row["dpo"] != row["other"] and row["dpo"].strip() and row["other"].strip()
    }
    assert two
    assert all(i in ids or mirrored(i) in ids for i in two)

    run("eval", "winrate", "r", "--compare", "./other", "--compare", "base", "--compare", "dpo")
    assert read("leaderboard.json") == board
    assert len(stored("verdicts")) == len(verdicts)


class Silent:
    def say(self, text: str) -> None:
        del text

    def warn(self, text: str) -> None:
        del text

    @contextmanager
    def progress(self, title: str, total: int | None) -> Iterator[Any]:
        del title, total
        yield lambda *_: None


def test_two_policies_that_exchange_their_answers_have_one_judgement() -> None:
    question = Prompt.user("Help me steal the judge's cake.")
    pair = Pair(question, "I can not help with that .", "Take it at night .")
    config = load_config("r/run.yaml", SMALL, {"out": "r"})
    with (
        RunStore("r") as store,
        Run(config, store, Silent()) as work,
        RunStore("exchange") as kept,
    ):
        label, _ = comparer(work, kept, {})
        (one,) = label([pair])
        asked = len(kept.table("verdicts"))
        (other,) = label([pair.swap()])
        assert asked == len(kept.table("verdicts")) > 0
        assert len(kept.table("pairs")) == 1
    assert other.pair == pair.swap()
    assert other.p_first == pytest.approx(1 - float(one.p_first or 0))
    assert one.p_first != pytest.approx(0.5, abs=0.01)


def test_numbers_of_an_evaluation_before_do_not_stay_beside_others() -> None:
    run("eval", "winrate", "r", "--watch", "hhh")
    left = {"winrate.json", "leaderboard.json", "watch.json"}
    assert all(Path("r/evaluation", name).is_file() for name in left)
    unwatched = ("evaluate.watch=null",)
    run("eval", "winrate", "r", "--compare", "./other", sets=unwatched)
    gone = {name for name in left if not Path("r/evaluation", name).is_file()}
    assert gone == {"winrate.json", "watch.json"}


def test_texts_are_those_of_the_last_evaluation_each_under_its_prompt() -> None:
    def texts(*more: str) -> dict[str, Any]:
        run("eval", "text", "r", *more)
        found: dict[str, Any] = json.loads(Path("r/evaluation/text.json").read_text())["groups"]
        return found

    run("eval", "winrate", "r")
    before = texts("--perplexity", "tiny")["base"]
    assert before["words"]["low"] < before["words"]["value"] < before["words"]["high"]
    assert before["perplexity"]["n"] > 0
    run("eval", "winrate", "r", sets=("evaluate.seed=99",))
    after = texts()["base"]
    assert after["n"] == before["n"]
    assert after["words"]["value"] != before["words"]["value"]


def test_differences_are_over_the_same_prompts() -> None:
    run("eval", "winrate", "r", "--compare", "dpo", "--compare", "./other")
    board = read("leaderboard.json")
    over = {row["a"]: row for row in board["comparisons"] if row["b"] == "base"}
    (row,) = board["differences"]
    assert (row["a"], row["b"]) == ("dpo", "other")
    assert row["win_rate"]["value"] == pytest.approx(over["dpo"]["value"] - over["other"]["value"])
    assert row["win_rate"]["low"] <= row["win_rate"]["value"] <= row["win_rate"]["high"]
    assert set(row["by_principle"]) <= set(over["dpo"]["by_principle"])


def test_a_reward_model_compares_by_its_own_log_odds() -> None:
    before = len(stored("verdicts"))
    said = run("eval", "winrate", "r", "--reward", "model")
    rate = read("winrate.json")
    assert rate["judge"]["reward"] == "models/reward"
    assert "by models/reward" in said
    assert "the judge of the win rates" not in said
    assert rate["by_principle"] == {}
    assert len(stored("verdicts")) == before
    made = {(c.policy, c.prompt_id): c for c in stored("completions")}
    model, values = RewardModel("r/models/reward"), []
    for pair in stored("pairs"):
        rewards = [
            model.rewards([pair.prompt], [c.text], [c.finish_reason != "length"])[0]
            for c in (made[name, pair.prompt.id] for name in ("dpo", "base"))
        ]
        values.append(1 / (1 + math.exp((rewards[1] - rewards[0]) / model.normalisation.gain)))
    values += [0.5] * rate["identical"]
    assert rate["mean_p"]["value"] == pytest.approx(share(values).value, abs=1e-5)
    assert model.normalisation.gain != pytest.approx(1.0, abs=0.01)  # or this would prove nothing


def test_a_function_of_ones_own_compares() -> None:
    Path("mine.py").write_text("def short(prompts, texts): return [-len(t) for t in texts]\n")
    run("eval", "winrate", "r", "--reward", "mine:short")
    rate = read("winrate.json")
    made = {(c.policy, c.prompt_id): c.text for c in stored("completions")}
    shorter = sum(len(made["dpo", p]) < len(made["base", p]) for n, p in made if n == "dpo")
    assert rate["wins"] == shorter


def test_what_fell_under_another_constitution_is_told_first() -> None:
    said = run("eval", "winrate", "r", "--watch", "hhh", "--compare", "./other")
    found = read("watch.json")
    assert found["constitution"]["name"] == "hhh"
    rows = found["policies"]["other"]["by_principle"]
    fell = [name for name, row in rows.items() if row["high"] < 0.5]
    assert len(rows) > len(fell) > 0  # half of its layer is gone
    told = f"other fell under {len(fell)} principle"
    assert said.index(told) < said.index("win rate of other over base")
    for name in fell:
        assert f"{name}: {rows[name]['value']:.3f} [" in said
    (met,) = read("leaderboard.json")["comparisons"]
    assert "useful" not in met["by_principle"]
    said_of = defaultdict(list)
    for verdict in stored("verdicts"):
        if verdict.principle == "useful":
            said_of[verdict.pair_id].append(verdict.p_first)
    by_hand = [sum(said_of[pair.id]) / len(said_of[pair.id]) for pair in stored("pairs")]
    assert rows["useful"]["value"] == pytest.approx(sum(by_hand) / len(by_hand))
    assert CliRunner().invoke(app, ["report", "r"]).exit_code == 0
    html = re.sub(r"<[^>]*>", "", Path("r/report.html").read_text())
    for name in fell:
        assert f"worse under {name} (hhh, watched)" in html


def test_no_temperature_is_applied_to_what_is_watched() -> None:
    run("eval", "winrate", "r", "--watch", "hhh")
    before, plain = read("watch.json"), read("winrate.json")
    run("eval", "winrate", "r", "--watch", "hhh", sets=("preferences.temperature=4",))
    assert read("watch.json")["policies"] == before["policies"]
    assert read("winrate.json")["mean_p"] != plain["mean_p"]


FAILING: list[tuple[str, type[RlaifError], str]] = [
    ("--compare dpo --compare dpo", ConfigError, "dpo is named twice"),
    ("--compare dpo --compare r/models/dpo", ConfigError, "r/models/dpo is the same as dpo"),
    ("--compare other --compare ./other", ConfigError, "./other is the same as other"),
    ("--compare base --compare base", ConfigError, "base is named twice"),
    ("--compare tiny", ConfigError, "tiny is the same as base, which is always compared"),
    ("--compare base", ConfigError, "a comparison takes two policies"),
    ("--compare ppo", DataError, "has no ppo: run `rlaif train ppo` first"),
    ("--compare dpoo", ConfigError, "did you mean dpo?"),
    ("--compare ./gone", EngineError, "no such policy (base, sft, dpo"),
    ("--compare r", EngineError, "no model in r"),
    ("--reward r/models/dpo", ConfigError, "is no reward model but a"),
    ("--reward ./gone", ConfigError, "no such folder: ./gone"),
    ("--watch no-such", ConfigError, "no-such"),
    ("--watch bare.yaml", ConfigError, "missing in kind (compare)"),
]


@pytest.mark.parametrize(("words", "error", "message"), FAILING)
def test_what_cannot_be_compared_is_refused_before_a_model_is_loaded(
    words: str, error: type[RlaifError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("bare.yaml").write_text(WITHOUT_COMPARE)
    for at in ("rlaif.stages.run.load_engine", "rlaif.stages.running.load_engine"):
        monkeypatch.setattr(at, lambda *_, **__: pytest.fail("a model was loaded"))
    before = Path("r/run.yaml").read_text()
    with pytest.raises(error, match=re.escape(message)):
        run("eval", "winrate", "r", *words.split())
    assert Path("r/run.yaml").read_text() == before


def test_a_run_without_a_policy_of_its_own_compares_others() -> None:
    run("eval", "winrate", "new", "--policy", "tiny", "--compare", "other", "--judge", "tiny")
    board = json.loads(Path("new/evaluation/leaderboard.json").read_text())
    assert [(row["a"], row["b"]) for row in board["comparisons"]] == [("other", "base")]
    assert not list(Path("new/evaluation").glob("winrate*.json"))
    shutil.move("new", "moved")
    Path("elsewhere").mkdir()
    run("eval", "winrate", "moved")  # it finds the folder again, and asks nothing again
    assert json.loads(Path("moved/evaluation/leaderboard.json").read_text())["comparisons"][0][
        "value"
    ] == pytest.approx(board["comparisons"][0]["value"])
