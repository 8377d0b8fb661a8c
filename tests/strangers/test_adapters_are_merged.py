"""A policy with a LoRA adapter: every trainer starts from the two together, and so is measured."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))
from small_models import how, make_preferences, make_tokenizer, save_causal

from rlaif.engines.load import load_engine
from rlaif.errors import ConfigError, EngineError
from rlaif.evaluation.policy import kl_to_base
from rlaif.records import Demonstration, Preference, Prompt
from rlaif.training.dpo import train_dpo
from rlaif.training.models import Start, fingerprint_of, load_policy, load_reward
from rlaif.training.reward import RewardModel, train_reward
from rlaif.training.rl.group import train_group
from rlaif.training.rl.online_dpo import train_online_dpo
from rlaif.training.rl.ppo_run import train_ppo
from rlaif.training.rl.scorers import FunctionScorer, Labels
from rlaif.training.rl.settings import (
    AlarmLimits,
    GRPOSettings,
    OnlineDPOSettings,
    PPOSettings,
    RLOOSettings,
)
from rlaif.training.settings import DPOSettings, LoraSettings, RewardSettings, Runtime, SFTSettings
from rlaif.training.sft import train_sft

STILL = 1e-12  # a learning rate at which float32 weights of this size stay as they are
QUICK = {"device": "cpu", "batch_size": 8, "learning_rate": STILL}
PROMPTS = [Prompt.user(f"the {a} {b}") for a in ("cat", "dog", "red") for b in ("ran", "sat")]


def score(_, texts):
    return [len(text) / 10 for text in texts]


def label(pairs):
    return [Preference(pair, "preferred", 0.9) for pair in pairs]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(save_causal(tmp_path_factory.mktemp("base"), make_tokenizer()))


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory) -> str:
    """An adapter of all layers whose B is not 0, as training leaves it."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(3)
    made = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), made)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def merged(base, adapter) -> dict[str, torch.Tensor]:
    """The weights of base and adapter together, worked out from the adapter's own file."""
    weights = dict(load_file(Path(base, "model.safetensors")))
    low = load_file(Path(adapter, "adapter_model.safetensors"))
    for name in [n for n in low if n.endswith("lora_A.weight")]:
        layer = name.removeprefix("base_model.model.").removesuffix("lora_A.weight") + "weight"
        b = low[name.replace("lora_A", "lora_B")]
        weights[layer] = weights[layer] + 8 / 4 * b @ low[name]
    return weights


CPU = Runtime("cpu")


def group(kind):
    def train(model, out, **options):
        settings = kind(
            steps=1,
            batch_size=8,
            group=4,
            learning_rate=STILL,
            max_new_tokens=6,
            lora=options.pop("lora", None),
        )
        scorer = FunctionScorer(score)
        return train_group(PROMPTS, model, out, scorer, settings, runtime=CPU, **options)

    return train


def ppo(model, out, **options):
    quiet = AlarmLimits(kl=None, entropy=None, length=None, ended=None)
    settings = PPOSettings(
        steps=1,
        batch_size=4,
        max_new_tokens=6,
        learning_rate=STILL,
        alarms=quiet,
        lora=options.pop("lora", None),
    )
    return train_ppo(PROMPTS, model, out, FunctionScorer(score), settings, runtime=CPU, **options)


def online(model, out, **options):
    settings = OnlineDPOSettings(
        steps=1,
        batch_size=4,
        max_new_tokens=6,
        learning_rate=STILL,
        keep_cut=True,
        lora=options.pop("lora", None),
    )
    return train_online_dpo(
        PROMPTS, model, out, Labels(label, "key"), settings, runtime=CPU, **options
    )


def sft(model, out, **options):
    rows = [Demonstration(p, "the cat sat happily") for p in PROMPTS]
    return train_sft(rows, model, out, **how(SFTSettings, **QUICK, **options))


def dpo(model, out, **options):
    return train_dpo(make_preferences(8), model, out, **how(DPOSettings, **QUICK, **options))


def dpo_by_trl(model, out, **options):
    return train_dpo(
        make_preferences(8, p=1.0),
        model,
        out,
        **how(DPOSettings, loss="apo_zero", **QUICK, **options),
    )


TRAINERS = {
    "sft": sft,
    "dpo": dpo,
    "dpo by trl": dpo_by_trl,
    "grpo": group(GRPOSettings),
    "rloo": group(RLOOSettings),
    "ppo": ppo,
    "online dpo": online,
}
# what is 0 while policy and reference are one
NOTHING = {
    "dpo": ("margin", "reward_chosen"),
    "dpo by trl": ("margin", "reward_chosen"),
    "grpo": ("kl",),
    "rloo": ("kl",),
    "ppo": ("kl",),
    "online dpo": ("kl", "margin"),
}


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)], ids=["full", "lora"])
def test_every_trainer_starts_from_base_and_adapter(name, lora, base, adapter, merged, tmp_path):
    found = TRAINERS[name](Start(base, adapter), tmp_path, lora=lora).metrics
    saved = load_file(tmp_path / "model.safetensors")
    for key, weight in merged.items():
        torch.testing.assert_close(saved[key], weight, atol=1e-5, rtol=1e-5)
    for fact in NOTHING.get(name, ()):
        assert found[fact] == pytest.approx(0, abs=2e-5), f"the reference is another: {fact}"
    assert not (tmp_path / "adapter").exists(), "alone it would fit no saved model"


def test_an_adapters_folder_is_a_model(base, adapter, merged, tmp_path):
    assert dpo(adapter, tmp_path / "dpo").metrics["margin"] == pytest.approx(0, abs=2e-5)
    saved = load_file(tmp_path / "dpo" / "model.safetensors")
    for key, weight in merged.items():
        torch.testing.assert_close(saved[key], weight, atol=1e-5, rtol=1e-5)
    one, two = load_engine(adapter, device="cpu"), load_engine(base, device="cpu", adapter=adapter)
    assert one.fingerprint == two.fingerprint != load_engine(base, device="cpu").fingerprint
    assert fingerprint_of(base, adapter) == fingerprint_of(adapter) != fingerprint_of(base)
    divergence = kl_to_base(one, two, PROMPTS, ["the cat sat"] * len(PROMPTS))
    assert divergence.value == pytest.approx(0, abs=1e-6)
    with pytest.raises(ConfigError, match="is an adapter itself"):
        load_engine(adapter, device="cpu", adapter=adapter)
    with pytest.raises(ConfigError, match="merge: false cannot be"):
        dpo(adapter, tmp_path / "no", lora=LoraSettings(rank=2), merge=False)


def test_another_adapter_is_another_run(base, adapter, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(adapter, other)
    dpo(Start(base, adapter), tmp_path / "out")
    first = load_file(tmp_path / "out" / "model.safetensors")
    weights = load_file(other / "adapter_model.safetensors")
    save_file({k: 2 * v for k, v in weights.items()}, other / "adapter_model.safetensors")
    dpo(Start(base, str(other)), tmp_path / "out")
    second = load_file(tmp_path / "out" / "model.safetensors")
    assert any(not torch.equal(first[key], second[key]) for key in first)


def test_a_reward_model_takes_the_trunk_of_base_and_adapter(base, adapter, merged, tmp_path):
    train_reward(
        make_preferences(12), base, tmp_path / "rm", **how(RewardSettings, adapter=adapter, **QUICK)
    )
    saved = load_file(tmp_path / "rm" / "model.safetensors")
    for key in [k for k in merged if k.startswith("model.layers")]:
        torch.testing.assert_close(saved[key], merged[key], atol=1e-5, rtol=1e-5)


def test_a_reward_models_own_adapter_is_a_reward_model(base, tmp_path):
    rows, options = make_preferences(12), {**QUICK, "learning_rate": 1e-2, "held_out": 0.0}
    train_reward(
        rows, base, tmp_path / "rm", **how(RewardSettings, lora=LoraSettings(rank=2), **options)
    )
    texts = ["the cat sat happily", "slowly", "a dog ran under the tree", "mat", "blue", "on on"]
    whole, alone = (RewardModel(tmp_path / n, device="cpu") for n in ("rm", "rm/adapter"))
    assert whole.normalisation == alone.normalisation
    assert alone.rewards(PROMPTS, texts) == pytest.approx(whole.rewards(PROMPTS, texts), abs=1e-4)
    assert not any(
        "no reward head" in note for note in load_reward(str(tmp_path / "rm/adapter")).notes
    )
    with pytest.raises(EngineError, match="is a reward model's"):
        load_policy(str(tmp_path / "rm/adapter"))


def test_an_adapter_that_does_not_fit_is_an_error_not_the_base(base, adapter, tmp_path):
    """PEFT only warns of names that do not match, and goes on with the base."""
    bad = tmp_path / "bad"
    shutil.copytree(adapter, bad)
    weights = load_file(bad / "adapter_model.safetensors")
    first = sorted(weights)[0]
    save_file({k: v for k, v in weights.items() if k != first}, bad / "adapter_model.safetensors")
    for load in (load_policy, lambda name, adapter: load_engine(name, adapter=adapter)):
        with pytest.raises(EngineError, match="does not fit the model: it lacks"):
            load(base, adapter=str(bad))
    renamed = {k.replace("layers", "blocks"): v for k, v in weights.items()}
    save_file(renamed, bad / "adapter_model.safetensors")
    with pytest.raises(EngineError, match="does not fit the model"):
        load_policy(base, adapter=str(bad))
    file = bad / "adapter_config.json"
    made = json.loads(file.read_text())
    file.write_text(json.dumps(made | {"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(EngineError, match="nothing is there: give the base as `model`"):
        load_policy(str(bad))
    file.write_text("{")
    with pytest.raises(EngineError, match=r"adapter_config\.json cannot be read as JSON"):
        load_policy(base, adapter=str(bad))
    (bad / "model.safetensors").write_bytes(b"")
    with pytest.raises(EngineError, match="both a whole model and an adapter"):
        load_policy(str(bad))


def test_the_stages_merge_it_once(tmp_path):
    """Base and adapter together are what training starts from, and what the KL is measured to."""
    from test_ppo_command import run_stages

    from rlaif.stages import evaluate, label, sample, train_dpo, train_sft

    made = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(3)
    model = peft.get_peft_model(load_policy("tiny").model, made)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.mul_(0.1)
    model.save_pretrained(tmp_path / "adapter")
    settings = [
        f"policy.adapter={tmp_path / 'adapter'}",
        "prompts.limit=12",
        "evaluate.prompts.limit=4",
        "evaluate.winrate=false",
        "train.dpo={learning_rate: 1.0e-12}",
        "train.sft={learning_rate: 1.0e-12}",
        "train.limits=null",
    ]
    run_stages(tmp_path / "r", settings, sample, label, train_dpo, train_sft, evaluate)
    found = json.loads((tmp_path / "r/evaluation/policies.json").read_text())
    for name in ("dpo", "sft"):
        assert abs(found[name]["kl"]["value"]) < 1e-4
    shown = json.loads((tmp_path / "r/evaluation/samples.json").read_text())
    assert all(row["base"] == row["dpo"] == row["sft"] for row in shown)
    plain = load_file("rlaif/tiny/weights/model.safetensors")
    saved = load_file(tmp_path / "r/models/dpo/model.safetensors")
    layer = "model.layers.0.self_attn.q_proj.weight"
    assert (saved[layer] - plain[layer]).abs().max() > 1e-3


def test_a_classifier_of_plain_transformers_reads_the_saved_trunk(base, adapter, merged, tmp_path):
    """The saved folder needs no adapter any more."""
    sft(Start(base, adapter), tmp_path / "sft")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "sft", num_labels=1)
    for key, weight in plain.state_dict().items():
        if key in merged:
            torch.testing.assert_close(weight, merged[key], atol=1e-5, rtol=1e-5)
