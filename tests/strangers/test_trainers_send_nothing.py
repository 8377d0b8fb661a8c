"""Training sends nothing anywhere: every trainer runs in a process whose sockets are watched.

TRL's trainers report each start to the Hugging Face hub (model type, device, GPU) unless told not
to. `HF_HUB_OFFLINE`, `CI` and the like, which would silence them, are unset here. The watch is an
audit hook: it sees every connection and look-up of a name that Python makes, in any thread.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

TRAINING = Path(__file__).resolve().parents[1] / "training"

WATCHED = """
import json, os, sys

seen = []

def watch(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        seen.append([event, str(args[0])])
        raise OSError(f"no network here: {event} {args[0]!r}")
    if event in ("socket.connect", "socket.sendto"):
        where = args[1]
        host = where[0] if isinstance(where, tuple) else "a local socket"
        if isinstance(where, tuple) and not host.startswith("127.") and host != "::1":
            seen.append([event, str(where)])
            raise OSError(f"no network here: {event} {where}")

sys.addaudithook(watch)
"""

# Each trainer for a step, and what the hub's own thread has been given is waited for.
TRAIN = """
from pathlib import Path

from small_models import how, make_preferences, make_tokenizer, save_causal

from rlaif.records import Demonstration, Prompt
from rlaif.training.dpo import train_dpo
from rlaif.training.settings import DPOSettings, LoraSettings, SFTSettings
from rlaif.training.rl.group import train_group
from rlaif.training.settings import DPOSettings, LoraSettings
from rlaif.training.rl.online_dpo import train_online_dpo
from rlaif.training.rl.ppo_run import train_ppo
from rlaif.training.reward import train_reward
from rlaif.training.rl.scorers import FunctionScorer, Labels
from rlaif.training.rl.settings import GRPOSettings, OnlineDPOSettings, PPOSettings, RLOOSettings
from rlaif.training.sft import train_sft

out = Path(sys.argv[1])
model = str(save_causal(out / "model", make_tokenizer()))
few, hard = make_preferences(8), make_preferences(8, p=1.0)
prompts = [Prompt.user(p.pair.prompt.messages[0].content) for p in few]
demonstrations = [Demonstration(p.pair.prompt, p.chosen) for p in few]
lengths = FunctionScorer(lambda _, texts: [float(len(text)) for text in texts])
lora = LoraSettings(rank=2)
ran = []

def run(name, train, *args, **options):
    train(*args, **options)
    ran.append(name)

def group(algorithm, **more):
    kind = {"grpo": GRPOSettings, "rloo": RLOOSettings}[algorithm]
    settings = kind(steps=1, batch_size=4, group=2, max_new_tokens=4, **more)
    run(algorithm, train_group, prompts, model, out / f"{algorithm}{bool(more)}", lengths, settings)

def label(pairs):
    from dataclasses import replace
    return [replace(few[0], pair=pair, p_first=0.9) for pair in pairs]

run("sft", train_sft, demonstrations, model, out / "sft")
run("sft", train_sft, demonstrations, model, out / "sft-lora", SFTSettings(lora=lora))
by_trl = [how(DPOSettings, loss="hinge"), how(DPOSettings, loss="apo_zero", lora=lora)]
for i, options in enumerate(by_trl):
    run("dpo by trl", train_dpo, hard, model, out / f"trl-{i}", **options)
for name in ("grpo", "rloo"):
    group(name)
    group(name, lora=lora)
run("dpo", train_dpo, few, model, out / "dpo")
run("reward", train_reward, few, model, out / "reward")
run("ppo", train_ppo, prompts, model, out / "ppo", lengths,
    PPOSettings(steps=1, batch_size=4, minibatches=1, epochs=1, max_new_tokens=4))
run("online dpo", train_online_dpo, prompts, model, out / "online", Labels(label, "k"),
    OnlineDPOSettings(steps=1, batch_size=4, max_new_tokens=4, keep_cut=True))

from huggingface_hub.utils import _telemetry, send_telemetry

_telemetry._TELEMETRY_QUEUE.join()
print(json.dumps({"ran": ran, "seen": seen}))
seen.clear()
send_telemetry("a message that people's own code sends", library_name="x", library_version="1")
_telemetry._TELEMETRY_QUEUE.join()
print(json.dumps({"watched": seen}))
"""

SILENCERS = (
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY",
    "DISABLE_TELEMETRY",
    "DO_NOT_TRACK",
    "CI",
    "HF_TOKEN",
)


def test_no_trainer_opens_a_connection_or_looks_up_a_name(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(WATCHED) + TRAIN)
    environment = {k: v for k, v in os.environ.items() if k not in SILENCERS}
    environment |= {
        "HF_HOME": str(tmp_path / "hub"),
        "PYTHONPATH": os.pathsep.join([str(TRAINING), environment.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, script, tmp_path / "out"],
        capture_output=True,
        text=True,
        timeout=280,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    trained, known = (json.loads(x) for x in done.stdout.splitlines() if x.startswith("{"))
    assert set(trained["ran"]) == {
        "sft",
        "dpo by trl",
        "grpo",
        "rloo",
        "dpo",
        "reward",
        "ppo",
        "online dpo",
    }
    assert trained["seen"] == []
    assert known["watched"], "the watch itself saw nothing of what was really sent"


def test_no_server_is_asked_to_convert_a_model(monkeypatch):
    """Transformers would send a hub model's name and the user's token; it asks this before."""
    from transformers.modeling_utils import is_env_variable_true

    from rlaif.engines.checkpoint import loading

    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
    assert not is_env_variable_true("DISABLE_SAFETENSORS_CONVERSION")
    with loading("a model"):
        assert is_env_variable_true("DISABLE_SAFETENSORS_CONVERSION")
