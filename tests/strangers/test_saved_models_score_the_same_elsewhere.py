"""What is saved computes the same in plain Transformers, in padded batches too."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))
from small_models import how, make_preferences, make_tokenizer, save_causal
from test_adapters_are_merged import PROMPTS, TRAINERS

from rlaif.engines.hf import HFEngine
from rlaif.engines.settings import EngineSettings
from rlaif.training.forward import sequence_logprobs
from rlaif.training.models import load_policy, load_reward, save_model
from rlaif.training.reward import RewardModel, train_reward
from rlaif.training.settings import LoraSettings, RewardSettings

TEXTS = ["the cat sat happily", "slowly", "a dog ran under the tree", "mat", "blue", "on on"]
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
FAMILIES = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma": LLAMA,
    "gemma2": {**LLAMA, "query_pre_attn_scalar": 16},
    "gemma3_text": LLAMA,
    "gpt2": GPT,
    "phi3": LLAMA,
    "gpt_neox": {**LLAMA, "rotary_pct": 1.0},
    "opt": {**LLAMA, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
}
COUNTED_FROM_THE_LEFT = ("gpt2",)  # plain Transformers moves positions when padding stands left


def save_family(folder: Path, kind: str, pad: str | None, config_pad: str) -> str:
    """A random classifier's base whose tokenizer and config say what is padding."""
    tokenizer = make_tokenizer(pad=pad)
    torch.manual_seed(1)
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(kind, **{"vocab_size": len(tokenizer)} | FAMILIES[kind] | ends)
    same = {"own": tokenizer.pad_token_id, "end": tokenizer.eos_token_id, "none": None}
    config.pad_token_id = same[config_pad]
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def elsewhere(folder: Path, sequences: list[np.ndarray], side: str) -> list[float]:
    """Rewards as anybody would have Transformers tell them, of all sequences in one batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = {"input_ids": [ids.tolist() for ids in sequences]}
    batch = tokenizer.pad(rows, padding_side=side, return_tensors="pt")
    with torch.no_grad():
        return model(**batch).logits[:, 0].tolist()


def alone(folder: Path, sequences: list[np.ndarray]) -> list[float]:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor(ids[None])).logits.item() for ids in sequences]


def check(folder: Path, kind: str = "llama") -> None:
    ours = RewardModel(folder, device="cpu")
    sequences = [
        np.concatenate(ours._loaded.encoder.sequence(p, text, ended))
        for p, text, ended in zip(
            PROMPTS, TEXTS, [True, True, False, True, False, True], strict=True
        )
    ]
    scores = ours.rewards(PROMPTS, TEXTS, [True, True, False, True, False, True])
    raw = [(x - ours.normalisation.bias) / ours.normalisation.gain for x in scores]
    assert np.std(raw) > 1e-3
    assert alone(folder, sequences) == pytest.approx(raw, abs=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.padding_side == "right"
    for side in ("right",) if kind in COUNTED_FROM_THE_LEFT else ("right", "left"):
        assert elsewhere(folder, sequences, side) == pytest.approx(raw, abs=1e-4), side


@pytest.mark.parametrize(
    "pads",
    [(None, "none"), ("<|end|>", "end"), ("<|pad|>", "end"), ("<|pad|>", "own"), (None, "end")],
    ids=str,
)
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_saved_reward_model_scores_the_same(kind, pads, tmp_path):
    loaded = load_reward(save_family(tmp_path / "base", kind, *pads))
    save_model(loaded, tmp_path / "rm", lora=False, merge=True)
    (tmp_path / "rm" / "reward.json").write_text(json.dumps({"gain": 1.0, "bias": 0.0}))
    check(tmp_path / "rm", kind)


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)], ids=["full", "lora"])
def test_a_trained_one_does(lora, tmp_path):
    """No token of this vocabulary is free: the embeddings get a row more."""
    tokenizer = make_tokenizer(pad="<|end|>")
    base = save_causal(tmp_path / "base", tokenizer)
    options = {"device": "cpu", "learning_rate": 1e-3, "lora": lora}
    train_reward(make_preferences(24), str(base), tmp_path / "rm", **how(RewardSettings, **options))
    check(tmp_path / "rm")
    again = train_reward(
        make_preferences(8),
        str(tmp_path / "rm"),
        tmp_path / "more",
        **how(RewardSettings, **options),
    )
    assert again.metrics["notes"] == []
    check(tmp_path / "more")


def test_a_new_padding_token_is_a_row_of_zeros(tmp_path):
    from transformers import PreTrainedTokenizerFast

    tokenizer = make_tokenizer(pad=None)
    text = tokenizer.backend_tokenizer.to_str().replace("<|pad|>", "<|x|>")
    (tmp_path / "t.json").write_text(text)
    bare = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "t.json"), eos_token="<|end|>")
    bare.chat_template = tokenizer.chat_template
    loaded = load_reward(str(save_causal(tmp_path / "base", bare)))
    save_model(loaded, tmp_path / "rm", lora=False, merge=True)
    (tmp_path / "rm" / "reward.json").write_text(json.dumps({"gain": 1.0, "bias": 0.0}))
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    assert saved.config.vocab_size == len(bare) + 1
    assert saved.config.pad_token_id == len(bare)
    assert not saved.get_input_embeddings().weight[-1].any()
    check(tmp_path / "rm")


def test_a_reward_model_from_elsewhere_is_scored_as_it_is_there(tmp_path):
    """Its head was trained at the place that Transformers reads, whatever that is."""
    tokenizer = make_tokenizer(pad="<|end|>")
    base = save_causal(tmp_path / "base", tokenizer)
    torch.manual_seed(2)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    ours = RewardModel(tmp_path / "rm", device="cpu")
    pairs = zip(PROMPTS, TEXTS, strict=True)
    sequences = [np.concatenate(ours._loaded.encoder.sequence(*pair)) for pair in pairs]
    scores = ours.rewards(PROMPTS, TEXTS)
    assert elsewhere(tmp_path / "rm", sequences, "right") == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("pad", ["<|end|>", None])
def test_a_saved_policy_computes_the_same(name, pad, tmp_path):
    base = save_causal(tmp_path / "base", make_tokenizer(pad=pad))
    before = json.loads((base / "config.json").read_text())
    TRAINERS[name](str(base), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert config.get(token) == before.get(token), token
    ours = load_policy(str(tmp_path / "out"))
    rows = [ours.encoder.sequence(p, text) for p, text in zip(PROMPTS, TEXTS, strict=True)]
    befores, afters = [a for a, _ in rows], [b for _, b in rows]
    found = sequence_logprobs(ours.model, befores, afters, ours.filler)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    for side in ("left", "right"):
        ids = [np.concatenate(row) for row in rows]
        batch = tokenizer.pad(
            {"input_ids": [x.tolist() for x in ids]}, padding_side=side, return_tensors="pt"
        )
        with torch.no_grad():
            logp = plain(**batch).logits.log_softmax(-1)
        for i, (a, b) in enumerate(rows):
            start = logp.shape[1] - len(ids[i]) if side == "left" else 0
            at = torch.arange(start + len(a) - 1, start + len(ids[i]) - 1)
            wanted = logp[i, at, torch.tensor(b.astype(np.int64))]
            assert wanted.numpy() == pytest.approx(found[i], abs=1e-4)
    engine = HFEngine(str(tmp_path / "out"), EngineSettings(device="cpu"))
    assert tokenizer.eos_token_id in engine._eos
