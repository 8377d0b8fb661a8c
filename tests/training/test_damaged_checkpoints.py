"""Nothing broken is gone on from, or called finished: in each trainer, for each file it keeps."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import how, make_preferences

from rlaif.constitution import Principle
from rlaif.errors import RlaifError, TrainingError
from rlaif.records import Demonstration, Preference, Prompt
from rlaif.stages.run import is_finished
from rlaif.training.aside import bring_back, set_aside
from rlaif.training.checkpoints import SEAL
from rlaif.training.dpo import train_dpo
from rlaif.training.judge import Question, train_judge
from rlaif.training.loop import Journal
from rlaif.training.models import load_policy, save_model
from rlaif.training.reward import train_reward
from rlaif.training.rl.group import train_group
from rlaif.training.rl.online_dpo import train_online_dpo
from rlaif.training.rl.ppo_run import train_ppo
from rlaif.training.rl.scorers import FunctionScorer, Labels
from rlaif.training.rl.settings import AlarmLimits, GRPOSettings, OnlineDPOSettings, PPOSettings
from rlaif.training.settings import (
    DPOSettings,
    JudgeTrainSettings,
    RewardSettings,
    Runtime,
    SFTSettings,
)
from rlaif.training.sft import train_sft

PROMPTS = [Prompt.user(f"the {a} {b}") for a in ("cat", "dog", "red") for b in ("ran", "sat")]
STEPS, STOP = 6, 5  # a run is stopped after its fifth step; checkpoints are of every second one
PAIRS = {"device": "cpu", "batch_size": 8, "learning_rate": 3e-3, "epochs": 1}
LIVE = {"steps": STEPS, "batch_size": 4, "max_new_tokens": 6, "learning_rate": 1e-3}


def length(_: Any, texts: list[str]) -> list[float]:
    return [len(text) / 10 for text in texts]


def longer(pairs: list[Any]) -> list[Preference]:
    return [Preference(p, "preferred", 0.9 if len(p.first) > len(p.second) else 0.1) for p in pairs]


Train = Callable[..., Any]


def dpo(model: str, out: Path, **more: Any) -> Any:
    return train_dpo(make_preferences(48), model, out, **how(DPOSettings, **PAIRS, **more))


def reward(model: str, out: Path, **more: Any) -> Any:
    return train_reward(
        make_preferences(48), model, out, **how(RewardSettings, held_out=0, **PAIRS, **more)
    )


def sft(model: str, out: Path, **more: Any) -> Any:
    rows = [Demonstration(p.pair.prompt, p.pair.first) for p in make_preferences(48)]
    return train_sft(rows, model, out, **how(SFTSettings, **PAIRS, **more))


QUIET = AlarmLimits(kl=None, entropy=None, length=None, ended=None)


def ppo(model: str, out: Path, checkpoint_every: int = 20, **more: Any) -> Any:
    settings = PPOSettings(**LIVE, alarms=QUIET, checkpoint_every=checkpoint_every)
    scorer, runtime = FunctionScorer(length), Runtime("cpu", **more)
    return train_ppo(PROMPTS, model, out, scorer, settings, runtime=runtime)


def grpo(model: str, out: Path, checkpoint_every: int = 20, **more: Any) -> Any:
    settings = GRPOSettings(**LIVE, group=2, alarms=QUIET, checkpoint_every=checkpoint_every)
    scorer, runtime = FunctionScorer(length), Runtime("cpu", **more)
    return train_group(PROMPTS, model, out, scorer, settings, runtime=runtime)


def online_dpo(model: str, out: Path, checkpoint_every: int = 20, **more: Any) -> Any:
    settings = OnlineDPOSettings(**LIVE, alarms=QUIET, checkpoint_every=checkpoint_every)
    runtime = Runtime("cpu", **more)
    return train_online_dpo(PROMPTS, model, out, Labels(longer, "key"), settings, runtime=runtime)


def judge(model: str, out: Path, **more: Any) -> Any:
    asked = Principle(id="p", compare="red")
    rows = [Question(p.pair, asked, p.p_first) for p in make_preferences(48)]
    settings = {**PAIRS, "gradient_accumulation": 1, "held_out": 0, "template": "pairwise/tiny"}
    return train_judge(rows, model, out, **how(JudgeTrainSettings, **settings, **more))


TRAINERS: dict[str, Train] = {
    f.__name__: f for f in (dpo, reward, sft, ppo, grpo, online_dpo, judge)
}


class Stopped(Exception):
    pass


def stop(line: dict[str, Any]) -> None:
    if line["step"] == STOP:
        raise Stopped


@pytest.fixture(scope="module")
def runs(
    causal: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Path]]:
    """(an uninterrupted run, one stopped with checkpoints 2 and 4) of a trainer, made once."""
    made: dict[str, tuple[Path, Path]] = {}

    def get(name: str) -> tuple[Path, Path]:
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            TRAINERS[name](causal, root / "whole", checkpoint_every=2)
            with pytest.raises(Stopped):
                TRAINERS[name](causal, root / "stopped", checkpoint_every=2, on_log=stop)
            made[name] = root / "whole", root / "stopped"
        return made[name]

    return get


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 4
    path.write_bytes(held)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def resumed(name: str, causal: str, out: Path, **expected: str) -> list[int]:
    """The steps that going on took, with the warnings that it gave."""
    steps: list[int] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        TRAINERS[name](
            causal, out, checkpoint_every=2, on_log=lambda line: steps.append(line["step"])
        )
    told = [str(w.message) for w in caught if "checkpoint" in str(w.message)]
    assert [m for m in told if expected.get("told", "set aside as damaged-") in m] == told
    assert len(told) == int(expected.get("times", 1))
    return steps


@pytest.mark.parametrize("name", TRAINERS)
def test_a_sound_checkpoint_is_gone_on_from(
    name: str, runs: Any, causal: str, tmp_path: Path
) -> None:
    whole, stopped = runs(name)
    shutil.copytree(stopped, tmp_path / "r")
    assert resumed(name, causal, tmp_path / "r", times="0") == [5, 6]
    assert same(tmp_path / "r", whole)


@pytest.mark.parametrize("damage", [remove, cut, flip])
@pytest.mark.parametrize("name", TRAINERS)
def test_each_file_of_a_checkpoint(
    name: str, damage: Callable[[Path], None], runs: Any, causal: str, tmp_path: Path
) -> None:
    """One damaged file after the other; training itself goes on from the one before, once."""
    from rlaif.training.checkpoints import check, last_checkpoint

    whole, stopped = runs(name)
    names = sorted(p.name for p in (stopped / "checkpoints" / "checkpoint-4").iterdir())
    assert SEAL in names
    assert len(names) >= (3 if name in ("ppo", "online_dpo") else 6)
    for i, file in enumerate(names):
        here = tmp_path / str(i)
        shutil.copytree(stopped, here)
        damage(here / "checkpoints" / "checkpoint-4" / file)
        if (file, damage) == (SEAL, remove):  # as a kill leaves it: nothing to tell
            check(here)
        else:
            named = file if file != SEAL else ".*"  # a flipped digest accuses the file it is of
            with pytest.warns(UserWarning, match=rf"checkpoint-4: its {named} .*set aside"):
                check(here)
        last = last_checkpoint(here)
        assert last is not None
        assert last.name == "checkpoint-2", file
    here = tmp_path / "again"
    shutil.copytree(stopped, here)
    damage(here / "checkpoints" / "checkpoint-4" / names[-1])
    assert resumed(name, causal, here) == [3, 4, 5, 6]
    assert same(here, whole)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_checkpoint_is_due_by_time_too(
    name: str, runs: Any, causal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a step takes as long as a kill may cost, each is kept, whatever the number of steps."""
    monkeypatch.setattr("rlaif.training.checkpoints.SECONDS", 0.0)
    with pytest.raises(Stopped):
        TRAINERS[name](causal, tmp_path / "r", checkpoint_every=1000, on_log=stop)
    monkeypatch.undo()
    kept = sorted(p.name for p in (tmp_path / "r/checkpoints").glob("checkpoint-*"))
    assert kept == ["checkpoint-3", "checkpoint-4"]
    assert resumed(name, causal, tmp_path / "r", times="0") == [5, 6]
    assert same(tmp_path / "r", runs(name)[0])


def test_all_checkpoints_damaged_is_from_the_start(runs: Any, causal: str, tmp_path: Path) -> None:
    whole, stopped = runs("dpo")
    shutil.copytree(stopped, tmp_path / "r")
    for folder in (tmp_path / "r" / "checkpoints").iterdir():
        flip(folder / "model.safetensors")
    assert resumed("dpo", causal, tmp_path / "r", times="2") == list(range(1, STEPS + 1))
    assert same(tmp_path / "r", whole)


@pytest.mark.parametrize("damage", [cut, flip])
def test_the_reference_and_the_journal(
    damage: Callable[[Path], None], runs: Any, causal: str, tmp_path: Path
) -> None:
    whole, stopped = runs("dpo")
    shutil.copytree(stopped, tmp_path / "r")
    for name in ("reference.json", "training.jsonl"):
        damage(tmp_path / "r" / name)
    with pytest.warns(UserWarning, match=r"reference\.json is not what was written"):
        dpo(causal, tmp_path / "r", checkpoint_every=2)
    assert same(tmp_path / "r", whole)
    told = [json.loads(x) for x in (tmp_path / "r" / "training.jsonl").read_text().splitlines()]
    assert [line["step"] for line in told] == list(range(1, STEPS + 1))


def test_a_finished_model_that_lost_a_file_is_trained_anew(
    runs: Any, causal: str, tmp_path: Path
) -> None:
    whole, _ = runs("dpo")
    shutil.copytree(whole, tmp_path / "r")
    before = weights(whole)
    cut(tmp_path / "r" / "model.safetensors")
    with pytest.warns(
        UserWarning, match=r"model\.safetensors: expected .* The model is trained anew"
    ):
        dpo(causal, tmp_path / "r", checkpoint_every=2)
    after = weights(tmp_path / "r")
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_a_half_written_model_is_not_finished(runs: Any, tmp_path: Path) -> None:
    whole, stopped = runs("dpo")
    assert is_finished(whole)
    shutil.copytree(whole, tmp_path / "r")
    (tmp_path / "r" / "metrics.json").unlink()
    assert not is_finished(tmp_path / "r")
    assert not is_finished(stopped)


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_no_number_ends_the_training(
    name: str, value: float, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "training.jsonl", None, 3, 1, Runtime())
    journal.write(1, {"loss": 0.5, "grad_norm": 1.0})
    with pytest.raises(TrainingError, match=rf"is {value} at step 2 of 3"):
        journal.write(2, {"loss": 0.5, "grad_norm": 1.0, name: value})


@pytest.mark.parametrize("name", ["dpo", "reward", "sft", "grpo"])
def test_a_gradient_that_is_no_number_leaves_no_model(
    name: str, causal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight whose gradient is NaN at the second step, with a loss that is one."""
    steps = []

    def poison(line: dict[str, Any]) -> None:
        steps.append(line["step"])
        if line["step"] == 1:
            monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", _nan)

    def _nan(*_: Any, **__: Any) -> torch.Tensor:
        return torch.tensor(float("nan"))

    with pytest.raises(TrainingError, match=r"norm of the gradient is nan at step 2"):
        TRAINERS[name](causal, tmp_path / "r", checkpoint_every=1, on_log=poison)
    assert steps == [1]
    assert not (tmp_path / "r" / "metrics.json").exists()
    assert [p.name for p in (tmp_path / "r/checkpoints").glob("*-*")] == ["checkpoint-1"]


def test_weights_that_are_not_finite_are_not_saved(causal: str, tmp_path: Path) -> None:
    loaded = load_policy(causal)
    with torch.no_grad():
        next(loaded.model.parameters()).view(-1)[3] = float("inf")
    with pytest.raises(TrainingError, match="not finite after training, so nothing is saved"):
        save_model(loaded, tmp_path, lora=False, merge=True)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", TRAINERS)
def test_a_base_with_weights_of_no_numbers_is_named(name: str, causal: str, tmp_path: Path) -> None:
    """Not the learning rate is to blame."""
    base = shutil.copytree(causal, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights[sorted(weights)[1]].view(-1)[3] = float("nan")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=r"base.* holds NaN or infinity as it was saved"):
        TRAINERS[name](str(base), tmp_path / "r")
    assert not (tmp_path / "r" / "metrics.json").exists()


def test_a_base_that_changes_between_kill_and_resume_is_another_run(
    runs: Any, causal: str, tmp_path: Path
) -> None:
    _, stopped = runs("dpo")
    shutil.copytree(stopped, tmp_path / "r")
    shutil.copytree(causal, tmp_path / "base")
    changed = load_file(tmp_path / "base" / "model.safetensors")
    changed[sorted(changed)[0]] += 0.5
    save_file(changed, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    steps: list[int] = []
    dpo(str(tmp_path / "base"), tmp_path / "r", on_log=lambda line: steps.append(line["step"]))
    assert steps == list(range(1, STEPS + 1))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", TRAINERS)
def test_a_training_that_fails_costs_nobody_the_model_that_was_there(
    name: str, runs: Any, causal: str, tmp_path: Path
) -> None:
    whole, _ = runs(name)
    out = shutil.copytree(whole, tmp_path / "r")
    before, base = contents(out), shutil.copytree(causal, tmp_path / "base")
    other = shutil.copytree(causal, tmp_path / "other")
    changed = load_file(other / "model.safetensors")
    changed[sorted(changed)[0]] += 0.01
    save_file(changed, other / "model.safetensors", metadata={"format": "pt"})
    cut(base / "model.safetensors")
    with pytest.raises(RlaifError):
        TRAINERS[name](str(base), out)
    assert contents(out) == before

    def stop(_: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # it may go on, so it stays; so does the other
        TRAINERS[name](str(other), out, on_log=stop)
    assert not is_finished(out)
    TRAINERS[name](causal, out, checkpoint_every=2)  # as `whole` was made
    assert contents(out) == before
    TRAINERS[name](str(other), out)
    assert not (out / ".before").exists()
    assert contents(out)["run.key"] != before["run.key"]


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("moved", range(6))
def test_a_kill_while_the_old_model_is_moved_loses_nothing(
    back: bool, moved: int, runs: Any, causal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On its way aside, for another training that is not asked for again, or on its way back."""
    whole, _ = runs("sft")
    out = shutil.copytree(whole, tmp_path / "r")
    before, names = contents(out), [name for name in contents(out) if name != "metrics.json"]
    if back:
        set_aside(out, names, "metrics.json")
    left = iter(range(moved))

    def kill(self: Path, to: Path) -> Path:
        if next(left, None) is None:
            raise Stopped
        return Path(shutil.move(self, to))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", kill)
        patch.setattr(Path, "replace", kill)
        with pytest.raises(Stopped):
            bring_back(out, "metrics.json") if back else set_aside(out, names, "metrics.json")
    sft(causal, out, checkpoint_every=2)
    assert contents(out) == before


def test_a_damaged_model_that_comes_back_is_told_and_trained_anew(
    runs: Any, causal: str, tmp_path: Path
) -> None:
    whole, _ = runs("sft")
    out = shutil.copytree(whole, tmp_path / "r")
    names = [name for name in contents(out) if name != "metrics.json"]
    set_aside(out, names, "metrics.json")
    cut(out / ".before" / "model.safetensors")
    with pytest.warns(UserWarning, match="The model is trained anew"):
        sft(causal, out, checkpoint_every=2)
    assert same(out, whole)
