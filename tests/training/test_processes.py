"""Two processes over gloo train what one process trains, and take up what they left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_models import how, make_preferences

from rlaif.errors import ConfigError
from rlaif.files.resources import folder
from rlaif.store import RunStore
from rlaif.training.dpo import train_dpo
from rlaif.training.models import load_policy
from rlaif.training.processes import gathered, refuse_spread, share, world
from rlaif.training.reward import train_reward
from rlaif.training.settings import DPOSettings, LoraSettings, RewardSettings

# Trains by reward, judge, dpo and ppo, and PPO once more with a crash between two checkpoints.
# Losses of one process and of two are compared; `learning_rate` is high: a wrong gradient would
# show.
WORKER = """
import sys
import numpy as np
import torch
torch.set_num_threads(1)
sys.path.insert(0, {here!r})
from small_models import how, make_preferences
from rlaif.constitution import Principle
from rlaif.records import Prompt
from rlaif.training.dpo import train_dpo
from rlaif.training.judge import Question, train_judge
from rlaif.training.rl.ppo_run import train_ppo
from rlaif.training.rl.settings import HeldOutSettings, PPOSettings
from rlaif.training.settings import Runtime
from rlaif.training.reward import train_reward
from rlaif.training.rl.scorers import Labels, FunctionScorer
from rlaif.training.settings import DPOSettings, JudgeTrainSettings, RewardSettings

model, out, processes = {model!r}, {out!r}, {processes}
quick = dict(learning_rate=3e-3, batch_size=8 // processes, device="cpu")
reward = train_reward(make_preferences(32), model, out + "/reward", **how(RewardSettings, **quick))
assert reward.accuracy is not None
asked = Principle(id="happy", compare="happily")
rows = [Question(p.pair, asked, p.p_first) for p in make_preferences(32)]
options = how(JudgeTrainSettings, template="pairwise/tiny", gradient_accumulation=1, **quick)
judge = train_judge(rows, model, out + "/judge", **options)
assert judge.agreement is not None
train_dpo(make_preferences(32), model, out + "/dpo", **how(DPOSettings, **quick))
frozen = how(RewardSettings, trunk="frozen", device="cpu")
train_reward(make_preferences(120), model, out + "/frozen", **frozen)

calls = 0
crash = None
def score(prompts, completions):
    global calls
    calls += 1
    if calls == crash:
        raise KeyboardInterrupt
    return [None if len(text) % 7 == 0 else text.count("a") / 4 for text in completions]

prompts = [Prompt.user(f"the {{x}} cat {{i}}") for i, x in enumerate(["big", "red", "blue"] * 4)]
settings = PPOSettings(
    steps=5, batch_size=8, max_new_tokens=8, learning_rate=3e-3, target_kl=0.1, horizon=50,
    no_end_score=None, whiten_rewards=True, entropy_weight=0.01, ptx_weight=0.5, minibatches=2,
    checkpoint_every=2, held_out=HeldOutSettings(every=2, prompts=5), seed=0,
)
draw = np.random.default_rng(0)
ptx = [draw.integers(5, 200, n).astype(np.int32) for n in (6, 9, 12)]
def lengths(prompts, completions):
    return [None if "a" in text else len(text) / 9 for text in completions]
scorer = FunctionScorer(score, "score")  # keyed once: what `score` reads changes below
looking_on = FunctionScorer(lengths, "lengths")
def ppo(name):
    global calls
    calls = 0
    return train_ppo(prompts, model, f"{{out}}/{{name}}", scorer, settings,
                     ptx=ptx, judge=looking_on, runtime=Runtime("cpu"))
ppo("ppo")
crash = 4
try:
    ppo("again")
    raise SystemExit("it should have stopped")
except KeyboardInterrupt:
    crash = None
ppo("again")
assert calls == 3, calls
"""

# Registered before anything of ours, so it looks last. A thread of gloo that outlives Python can
# abort a process that had finished; errors at exit do not reach the exit code, so it sets one.
NOTHING_LEFT = """
import atexit, glob, os, sys
@atexit.register
def nothing_left():
    names = [open(task).read() for task in glob.glob("/proc/self/task/*/comm")]
    left = [name.strip() for name in names if "gloo" in name]
    if left:
        sys.stderr.write(f"threads left at the end: {left}\\n")
        os._exit(70)
"""


def run(causal: str, out: Path, processes: int, worker: str = WORKER, **environ: str) -> None:
    script = out.with_suffix(".py")
    here = str(Path(__file__).parent)
    code = worker.format(here=here, model=causal, out=str(out), processes=processes)
    done = launch(script, code, processes, [], **environ)
    assert done.returncode == 0, done.stderr


def launch(
    script: Path, code: str, processes: int, arguments: list[str], **environ: str
) -> subprocess.CompletedProcess[str]:
    script.write_text(NOTHING_LEFT + code)
    command = [sys.executable, str(script), *arguments]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
        command[1:1] = [*launcher, str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environ}
    return subprocess.run(command, env=environment, timeout=240, capture_output=True, text=True)


def journal(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(causal, tmp_path_factory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("processes")
    for processes in (1, 2):
        run(causal, root / f"out{processes}", processes)
    return {n: root / f"out{n}" for n in (1, 2)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "steps"), [("reward", 4), ("judge", 4), ("dpo", 4), ("ppo", 5)]
)
def test_two_processes_are_one(runs, trainer, steps):
    one, two = (journal(runs[n] / trainer) for n in (1, 2))
    assert len(one) == len(two) == steps
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        # while the policy is the reference, which is the likelier is decided by rounding
        ties = {"accuracy"} if trainer == "dpo" and a["step"] <= 2 else set()
        for name in a.keys() - {"seconds", "alarms", "rollout_gap", "rollout_gap_mean"} - ties:
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-5), (name, a["step"])
    if trainer == "ppo":
        assert sum(line["abstained"] for line in one) > 0
        assert all(line["first_ratio_gap"] == 0 for line in two)
        assert one[-1]["beta"] != one[0]["beta"]
        assert [i for i, line in enumerate(two) if line.get("held_out")] == [0, 2, 4]
    weights = [load_file(runs[n] / trainer / "model.safetensors") for n in (1, 2)]
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=2e-5), name


@pytest.mark.slow
def test_two_processes_share_the_completions_of_a_frozen_trunk(runs):
    one, two = (load_file(runs[n] / "frozen" / "model.safetensors") for n in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], atol=2e-4 * value.abs().max().item(), rtol=0)
    sizes = [
        [path.stat().st_size for path in sorted((runs[n] / "frozen").glob("features/*/*.rows"))]
        for n in (1, 2)
    ]
    assert [len(found) for found in sizes] == [1, 2]
    assert sum(sizes[1]) == sizes[0][0]  # no completion was computed twice
    assert min(sizes[1]) > 0


# The trainers that build on TRL, and online DPO. Answers and completions differ in length, so that
# a mean of the processes' means would show.
MORE = """
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, {here!r})
from small_models import how, make_preferences
from rlaif.records import Demonstration, Preference, Prompt
from rlaif.training.dpo import train_dpo
from rlaif.training.rl.group import train_group
from rlaif.training.rl.online_dpo import train_online_dpo
from rlaif.training.rl.scorers import Labels, FunctionScorer
from rlaif.training.settings import DPOSettings, SFTSettings
from rlaif.training.rl.settings import GRPOSettings, OnlineDPOSettings, RLOOSettings
from rlaif.training.settings import Runtime
from rlaif.training.settings import DPOSettings
from rlaif.training.sft import train_sft

model, out, processes = {model!r}, {out!r}, {processes}
answers = [Demonstration(p.pair.prompt, p.pair.first) for p in make_preferences(22)]
size = dict(batch_size=4 // processes, gradient_accumulation=2, device="cpu")
options = how(SFTSettings, learning_rate=3e-3, **size)
train_sft(answers, model, out + "/sft", **options)  # the last step has 6 rows
hard = make_preferences(24, p=1.0)
hinge = how(DPOSettings, loss="hinge", learning_rate=3e-3, **size)
train_dpo(hard, model, out + "/hinge", **hinge)

def label(pairs):
    gaps = [p.first.count("a") - p.second.count("a") + 0.5 for p in pairs]
    return [
        Preference(p, "abstained", None) if len(p.first) % 7 == 0
        else Preference(p, "preferred", 0.9 if gap > 0 else 0.2)
        for p, gap in zip(pairs, gaps)
    ]
def score(prompts, completions):
    return [None if len(x) % 7 == 0 else x.count("a") / 4 for x in completions]

prompts = [Prompt.user(f"the {{x}} cat {{i}}") for i, x in enumerate(["big", "red", "blue"] * 4)]
online = OnlineDPOSettings(
    steps=3, batch_size=8, minibatches=2, learning_rate=3e-3, max_new_tokens=8, keep_cut=True,
    seed=0,
)
cpu = Runtime("cpu")
train_online_dpo(prompts, model, out + "/online", Labels(label, "label"), online, runtime=cpu)
for name, kind in (("grpo", GRPOSettings), ("rloo", RLOOSettings)):
    settings = kind(
        steps=3, batch_size=16, group=4, iterations=2, learning_rate=3e-3,
        max_new_tokens=8, no_end_score=None, seed=0,
    )
    scorer = FunctionScorer(score, "score")
    train_group(prompts, model, f"{{out}}/{{name}}", scorer, settings, runtime=cpu)
"""


@pytest.fixture(scope="module")
def more(causal, tmp_path_factory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("more")
    for processes in (1, 2):
        run(causal, root / f"out{processes}", processes, MORE)
    return {n: root / f"out{n}" for n in (1, 2)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "steps"), [("sft", 3), ("hinge", 3), ("online", 3), ("grpo", 6), ("rloo", 6)]
)
def test_two_processes_are_one_in_the_other_trainers(more, trainer, steps):
    one, two = (journal(more[n] / trainer) for n in (1, 2))
    assert len(one) == len(two) == steps
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"seconds"}:
            wanted = b[name] if name == "alarms" else pytest.approx(b[name], rel=1e-4, abs=1e-5)
            assert a[name] == wanted, (name, a["step"])
    if trainer == "hinge":
        assert one[0]["margin"] == two[0]["margin"] == 0
    elif trainer != "sft":
        assert sum(line["abstained"] for line in one) > 0
    weights = [load_file(more[n] / trainer / "model.safetensors") for n in (1, 2)]
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=2e-5), name


@pytest.mark.slow
def test_two_processes_go_on_where_they_stopped(runs):
    whole, again = runs[2] / "ppo", runs[2] / "again"
    a, b = (load_file(folder / "model.safetensors") for folder in (whole, again))
    assert all(torch.equal(a[name], b[name]) for name in a)
    for one, two in zip(journal(whole), journal(again), strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_one_process_has_all_to_itself():
    assert world() == 1
    assert share("abc") == "abc"
    assert gathered([1, 2]) == [1, 2]


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_ppo_refuses_a_model_that_is_spread(monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ConfigError, match=rf"spread by {name}.*multi_gpu"):
        refuse_spread()


COMMAND = """
import sys
import torch
torch.set_num_threads(1)
from rlaif.cli import main
main()
"""


@pytest.mark.slow
def test_a_command_under_the_launcher_speaks_and_writes_once(causal, tmp_path):
    out = tmp_path / "run"
    with RunStore(out) as store:
        store.table("preferences").append(make_preferences(32))
    options = ["--set", "train.dpo.batch_size=4", "--set", "policy.device=cpu", "--set"]
    options += ["train.dpo.learning_rate=0.003", "--out", str(out), "--policy", causal]
    done = launch(tmp_path / "command.py", COMMAND, 2, ["train", "dpo", *options])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("dpo: 32 pairs, 4 steps") == 1
    quick = {"learning_rate": 3e-3, "batch_size": 8, "device": "cpu", "seed": 7}
    train_dpo(make_preferences(32), causal, tmp_path / "one", **how(DPOSettings, **quick))
    losses = [
        [x["loss"] for x in journal(folder)] for folder in (tmp_path / "one", out / "models/dpo")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["stages"]["dpo"]["rows"] == 32
    with RunStore(out):  # the lock is free again
        pass


@pytest.mark.slow
def test_processes_that_train_a_judge_read_the_pairs_once(tmp_path):
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "run"
    rows = [{"prompt": f"Is {i} even?", "chosen": "Yes.", "rejected": "No."} for i in range(12)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--pairs", str(pairs), "--out", str(out), "--judge", "tiny"]
    options += ["--set", "train.judge.batch_size=2"]
    done = launch(tmp_path / "command.py", COMMAND, 2, ["train", "judge", *options])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("12 pairs read") == 1
    assert done.stdout.count("judge: 11 pairs, 11 questions in both orders") == 1
    assert done.stdout.count("on 1 held-out prompts") == 1


def test_other_commands_refuse_the_launcher(monkeypatch, tmp_path):
    from rlaif.cli.common import configure, execute
    from rlaif.stages import label

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="only `rlaif train"):
        execute(configure(None, str(tmp_path / "run"), None, {}), label)
    assert not (tmp_path / "run").exists()


# Accelerate offers FSDP to GPUs only; PyTorch runs it over gloo too. So the processes call
# themselves GPU processes, and everything after that is the real thing.
SPREAD = """
import os, sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, {here!r})
import accelerate.state
from accelerate.utils import DistributedType
joined = accelerate.state.PartialState.__init__
def join(self, *args, **kwargs):
    fresh = not self.initialized
    joined(self, *args, **kwargs)
    if fresh and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU
accelerate.state.PartialState.__init__ = join

from small_models import how, make_preferences
import rlaif.training.loop as loop
from rlaif.training.dpo import train_dpo
from rlaif.training.models import load_policy
from rlaif.training.settings import DPOSettings, LoraSettings, RewardSettings
from rlaif.training.reward import train_reward

model, out = {model!r}, {out!r}
quick = dict(learning_rate=3e-3, batch_size=4, device="cpu", checkpoint_every=2)
lora = LoraSettings(rank=4)
train_dpo(make_preferences(32), model, out + "/dpo", **how(DPOSettings, lora=lora, **quick))

step, steps = loop.Trainer.training_step, 0
def stop_before_the_last(*args, **kwargs):
    global steps
    steps += 1
    if steps == 4:
        raise KeyboardInterrupt
    return step(*args, **kwargs)
loop.Trainer.training_step = stop_before_the_last
try:
    train_reward(make_preferences(32), model, out + "/reward", **how(RewardSettings, **quick))
    raise SystemExit("it should have stopped")
except KeyboardInterrupt:
    loop.Trainer.training_step = step
train_reward(make_preferences(32), model, out + "/reward", **how(RewardSettings, **quick))
os._exit(0)  # the caches of DTensor hold gloo's threads to the end; FSDP meets gloo only here
"""


@pytest.mark.slow
def test_a_model_spread_by_fsdp_learns_the_same(causal, tmp_path):
    environment = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    }
    run(causal, tmp_path / "spread", 2, SPREAD, **environment)
    learns_as_one_process(causal, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
def test_a_model_spread_by_zero3_learns_the_same(causal, tmp_path):
    shipped = (folder("configs") / "accelerate" / "zero3.yaml").read_text()
    config, script = tmp_path / "zero3.yaml", tmp_path / "spread.py"
    config.write_text(shipped.replace("use_cpu: false", "use_cpu: true"))
    here = str(Path(__file__).parent)
    script.write_text(SPREAD.format(here=here, model=causal, out=str(tmp_path / "spread")))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["--num_processes", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=environment, timeout=240, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    learns_as_one_process(causal, tmp_path)


def learns_as_one_process(causal: str, tmp_path: Path) -> None:
    quick = {"learning_rate": 3e-3, "batch_size": 8, "device": "cpu"}
    lora = LoraSettings(rank=4)
    train_dpo(
        make_preferences(32),
        causal,
        tmp_path / "one" / "dpo",
        **how(DPOSettings, lora=lora, **quick),
    )
    train_reward(
        make_preferences(32), causal, tmp_path / "one" / "reward", **how(RewardSettings, **quick)
    )
    for name in ("dpo", "reward"):  # the reward model's run was stopped and resumed
        one, spread = (tmp_path / where / name for where in ("one", "spread"))
        losses = [[line["loss"] for line in journal(folder)] for folder in (one, spread)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
        a, b = (load_file(folder / "model.safetensors") for folder in (one, spread))
        assert a.keys() == b.keys()
        assert all(torch.allclose(a[key], b[key], atol=1e-5) for key in a)
    rewards = [
        json.loads((tmp_path / where / "reward" / "metrics.json").read_text())["held_out"]
        for where in ("one", "spread")
    ]
    assert rewards[0]["log_loss"] == pytest.approx(rewards[1]["log_loss"], abs=1e-5)


def test_a_model_is_loaded_whole_under_zero3(causal):
    """Spread at once, as Transformers would, it computes nothing before training."""
    from transformers.integrations import deepspeed

    class Config:  # all that Transformers asks of it
        def is_zero3(self) -> bool:
            return True

    config = Config()  # Transformers keeps a weak reference
    deepspeed.set_hf_deepspeed_config(config)
    try:
        model = load_policy(causal).model
        assert deepspeed.is_deepspeed_zero3_enabled()  # for what comes after
    finally:
        deepspeed.unset_hf_deepspeed_config()
    assert model.get_input_embeddings().weight.numel() > 0


# ---- the files for `accelerate launch`


def launched(name: str):
    """What `accelerate launch --config_file NAME` makes of a shipped file."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    file = folder("configs") / "accelerate" / f"{name}.yaml"
    arguments = ["--config_file", str(file), "--num_processes", "2", "--no_python", "rlaif"]
    return _validate_launch_command(launch_command_parser().parse_args(arguments))[0]


def test_accelerate_reads_multi_gpu():
    found = launched("multi_gpu")
    assert found.multi_gpu
    assert not found.use_fsdp
    assert not found.use_deepspeed
    assert found.num_processes == 2


def test_accelerate_reads_fsdp(monkeypatch):
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env

    found = launched("fsdp")
    assert found.use_fsdp
    for key, value in prepare_multi_gpu_env(found).items():
        if key.startswith("FSDP"):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert "SHARDED" in str(plugin.state_dict_type)
    assert not plugin.cpu_ram_efficient_loading
    assert not plugin.activation_checkpointing


def test_accelerate_reads_zero3():
    found = launched("zero3")
    assert found.use_deepspeed
    assert found.zero_stage == 3
    assert found.zero3_save_16bit_model is True
    assert found.zero3_init_flag is False
    known = {"zero_stage", "zero3_init_flag", "zero3_save_16bit_model"}
    known |= {"offload_optimizer_device", "offload_param_device"}
    from accelerate.commands.config.config_args import load_config_from_file

    file = folder("configs") / "accelerate" / "zero3.yaml"
    assert set(load_config_from_file(str(file)).deepspeed_config) == known
