"""Recurrent and hybrid models: every distinct token is computed once, and equals plain passes."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import threading
import warnings
from functools import lru_cache

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.qwen3_next import modeling_qwen3_next

from rlaif.bench import random_model
from rlaif.engines import packed, recurrent
from rlaif.engines import trie as t
from rlaif.engines.base import Sampling
from rlaif.engines.decoding import choose, uniforms
from rlaif.engines.hf import HFEngine, _request
from rlaif.engines.settings import EngineSettings
from rlaif.engines.trial import TRIAL_WINDOW, trial_paths
from rlaif.errors import EngineError
from rlaif.files.templates import Rendered, RenderedMessage, Segment

SIZE = {"vocab_size": 640, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
    **SIZE,
}
ONE_OF_EACH = ["linear_attention", "full_attention"]
DELTA = {
    **SMALL,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "head_dim": 16,
    "layer_types": ONE_OF_EACH,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SHARED = {**EXPERTS, "shared_expert_intermediate_size": 16}
MAMBA2 = {
    **SMALL,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 2,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
PURE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "state_size": 8,
    **SIZE,
}
SHAPES = {
    "qwen3_next": {**DELTA, **SHARED},
    "qwen3_5_text": DELTA,
    "qwen3_5_moe_text": {**DELTA, **SHARED},
    "olmo_hybrid": {**DELTA, "linear_num_key_heads": 4},
    "kimi_linear": {
        **SMALL,
        "num_key_value_heads": 4,
        "linear_num_heads": 4,
        "linear_head_dim": 8,
        "layer_types": ONE_OF_EACH,
        **EXPERTS,
        "num_local_experts": 4,
        "n_routed_experts": 4,
        "kv_lora_rank": 16,
        "q_lora_rank": None,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
    },
    "lfm2": {**SMALL, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "lfm2_moe": {
        **SMALL,
        "layer_types": ["conv", "full_attention"],
        **EXPERTS,
        "num_dense_layers": 1,
    },
    "granitemoehybrid": {
        **MAMBA2,
        "layer_types": ONE_OF_EACH,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 32,
    },
    "bamba": {**MAMBA2, "attn_layer_indices": [1]},
    "falcon_h1": {**MAMBA2, "mamba_d_ssm": 64, "head_dim": 8},
    "nemotron_h": {
        **SMALL,
        "layers_block_type": ["mamba", "moe", "attention", "mlp"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 2,
        "chunk_size": 16,
        "head_dim": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "moe_shared_expert_intermediate_size": 16,
        "n_group": 1,
        "topk_group": 1,
    },
    "jamba": {
        **SMALL,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "zamba": {
        **SMALL,
        "num_hidden_layers": 4,
        "layers_block_type": ["hybrid", "mamba"] * 2,
        "mamba_d_state": 8,
        "n_mamba_heads": 2,
    },
    "zamba2": {
        **SMALL,
        "num_hidden_layers": 3,
        "layers_block_type": ["hybrid", "mamba", "hybrid"],
        "mamba_d_state": 8,
        "mamba_ngroups": 2,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "mamba_expand": 2,
        "chunk_size": 16,
        "num_mem_blocks": 1,
        "use_mem_rope": True,
    },
    "mamba": PURE,
    "falcon_mamba": PURE,
    "rwkv": {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2, **SIZE},
    "mamba2": {**PURE, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 16},
}
# Of the weights, where 0.2 would make a bfloat16 model's own error 0.4.
SPREAD = {"zamba2": 0.05}
DTYPES = [torch.float32, torch.bfloat16]
OPTIONS = (" A", " B", " neither of them")
PREFIX = "Which response is better? Answer with A or B. The better answer is A. "
PAIRS = [
    ("How do I bake bread?", "Mix flour, water and salt.", "No. " * 10),
    ("How do I", "The quick brown fox jumps over the lazy dog. ", "é"),
]
PRINCIPLES = ["Which is kind?", "Which is kind and short?", "B", ""]


@lru_cache
def model_of(shape: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A random model whose layers all say something: its states last, and its outputs differ."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape, **SHAPES[shape])).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "A_log" in name:
                parameter.uniform_(-3, -1)
            elif parameter.dim() > 1:
                parameter.normal_(0, SPREAD.get(shape, 0.2))
    return model.to(dtype)


def prompts(pairs=PAIRS, prefix=PREFIX) -> list[Rendered]:
    """A tree as judging makes it: prefix, conversation, both orders, principles."""
    out = []
    for (question, a, b), swap, principle in itertools.product(pairs, (False, True), PRINCIPLES):
        first, second = (b, a) if swap else (a, b)
        body = f"{question}\nA: {first}\nB: {second}\n"
        segments = (Segment(prefix, False), Segment(body, True), Segment(principle + " ", False))
        out.append(Rendered((RenderedMessage("user", segments),)))
    return out


def logprobs(engine: HFEngine, asked: list[Rendered]) -> np.ndarray:
    scores = engine.score(asked, [OPTIONS] * len(asked))
    assert {s.failure for s in scores} == {None}
    return np.array([s.logprobs for s in scores])


@torch.no_grad()
def plain(engine: HFEngine, asked: list[Rendered]) -> np.ndarray:
    """One ordinary pass for each prompt and option, with nothing of the engine but its tokens."""
    out = []
    for prompt in asked:
        ids = engine.encoder.prompt(prompt).tolist()
        row = []
        for option in OPTIONS:
            target = engine.encoder.option(option).tolist()
            logits = engine.model(torch.tensor([ids + target])).logits[0].float().log_softmax(-1)
            row.append(sum(float(logits[len(ids) - 1 + j, x]) for j, x in enumerate(target)))
        out.append(row)
    return np.array(out)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_distinct_token_is_computed_once_and_equals_plain_passes(shape, tokenizer):
    asked = prompts()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a fall-back would warn
        for budget in (10_000, 60):
            engine = HFEngine.from_loaded(
                model_of(shape), tokenizer, settings=EngineSettings(batch_tokens=budget)
            )
            found = logprobs(engine, asked)
            if budget == 10_000:
                expected = plain(engine, asked)
                assert np.ptp(expected[:, 0]) > 0.1  # the requests differ
            assert np.allclose(found, expected, rtol=2e-6, atol=3e-5)
            assert engine.usage.computed_tokens == engine.usage.bound_tokens
            assert engine.usage.bound_tokens < engine.usage.submitted_tokens / 2


@pytest.mark.parametrize("shape", ["qwen3_next", "granitemoehybrid", "lfm2", "falcon_h1", "mamba2"])
def test_in_bfloat16_it_is_as_near_to_the_truth_as_plain_passes(shape, tokenizer):
    asked = prompts()[::2]
    engine = HFEngine.from_loaded(model_of(shape, torch.bfloat16), tokenizer)
    truth = plain(HFEngine.from_loaded(model_of(shape), tokenizer), asked)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = logprobs(engine, asked) - truth
    own = plain(engine, asked) - truth
    ratio = np.sqrt((found**2).mean() / (own**2).mean())
    assert ratio <= 1.5, ratio
    assert engine.usage.computed_tokens == engine.usage.bound_tokens


@pytest.mark.parametrize(
    "shape", ["qwen3_5_text", "kimi_linear", "lfm2", "mamba2", "mamba", "rwkv"]
)
def test_in_float64_it_is_equal_to_twelve_digits(shape, monkeypatch):
    """No rounding is left that could hide anything: models that ask for float32 are not heard."""
    to, double = torch.Tensor.to, torch.float64

    def wide(self, *args, **kwargs):
        args = [double if x is torch.float32 else x for x in args]
        return to(
            self, *args, **{k: double if x is torch.float32 else x for k, x in kwargs.items()}
        )

    monkeypatch.setattr(torch.Tensor, "to", wide)
    monkeypatch.setattr(torch.Tensor, "float", lambda self: to(self, double))
    model = packed.PackedModel(copy.deepcopy(model_of(shape)).double())
    model.model.config._experts_implementation = "eager"  # the others know no float64
    paths = trial_paths(640)
    assert (model._packed(paths) - model._alone(paths)).abs().max() < 1e-10


def paths_of(engine, part):
    return [
        _request((0, j), engine.encoder.prompt(p), engine.encoder.option(o)).ids
        for p in part
        for j, o in enumerate(OPTIONS)
    ]


@pytest.mark.parametrize("shape", ["qwen3_5_text", "jamba"])
def test_states_of_the_common_prefix_are_kept_between_calls_and_nothing_else(shape, tokenizer):
    asked = prompts(prefix=PREFIX * 8)
    engine = HFEngine.from_loaded(model_of(shape), tokenizer)
    engine._in_memory = False  # as if loaded from a folder: its weights do not change
    parts = [asked[:4], asked[4:8], asked[8:]]  # the first two share their conversation too
    found = [logprobs(engine, part) for part in parts]
    whole = logprobs(HFEngine.from_loaded(model_of(shape), tokenizer), asked)
    assert np.allclose(np.concatenate(found), whole, rtol=2e-6, atol=3e-5)
    used = engine.usage
    assert used.bound_tokens <= used.computed_tokens <= used.bound_tokens + 2 * 64
    alone = sum(t.lower_bound(paths_of(engine, part)) for part in parts)
    assert used.computed_tokens <= alone - 2 * 64
    # What a call gives does not depend on the calls before it, to the last bit.
    other = prompts(PAIRS[:1], prefix="The end.")
    fresh = HFEngine.from_loaded(model_of(shape), tokenizer)
    for part, values in zip([*parts, other], [*found, logprobs(fresh, other)], strict=True):
        assert np.array_equal(logprobs(engine, part), values)


def test_states_are_kept_no_longer_than_they_are_needed():
    """A comb of 200 branches in packs of 16: some states at a time, not one for each branch."""
    spine = 300 + np.arange(200)
    trie = t.build([np.append(spine[:n], n) for n in range(1, 200)] + [spine])
    model = packed.PackedModel(model_of("lfm2"))
    most = 0
    for begin, end in t.packs(trie, 16):
        model.logits(trie, begin, end, np.array([end - 1]))
        kept = model._recurrent().kept
        most = max(most, *(len(states) for states in kept._states.values()))
    assert 0 < most < len(t.packs(trie, 16))


def test_a_mark_too_many_thins_out_the_marks():
    kept = recurrent.KeptStates()
    for depth in range(64, 64 * 40, 64):
        kept.mark(depth)
        kept.replace({("scan", 1): {depth: torch.zeros(1)}}, ())
    assert len(kept._states["scan", 1]) <= recurrent._MARKS + 1
    assert 64 * 20 <= (resumed := kept.resume(64 * 30)) <= 64 * 30
    assert kept.read(("scan", 1), resumed) is not None
    kept.resume(64 * 3)  # here the calls part; as they do the next time
    for depth in range(64, 64 * 40, 64):
        kept.mark(depth)
    assert kept.resume(64 * 3) == 64 * 3
    assert kept.resume(63) == 0


def test_out_of_memory_in_a_pass_leaves_the_states_as_they_were(tokenizer, monkeypatch):
    asked = prompts()
    expected = logprobs(HFEngine.from_loaded(model_of("qwen3_next"), tokenizer), asked)
    engine = HFEngine.from_loaded(
        model_of("qwen3_next"), tokenizer, settings=EngineSettings(batch_tokens=400)
    )
    failed, scan = [], recurrent._Pass.scan

    def scanning(self, inputs, *rest, **kwargs):
        out = scan(self, inputs, *rest, **kwargs)
        if len(inputs[0][0]) > 90:
            failed.append(len(inputs[0][0]))
            raise torch.cuda.OutOfMemoryError("no room")
        return out

    monkeypatch.setattr(recurrent._Pass, "scan", scanning)
    with pytest.warns(UserWarning, match="out of memory"):
        found = logprobs(engine, asked)
    assert len(failed) >= 2
    assert np.allclose(found, expected, rtol=2e-6, atol=3e-5)
    assert engine.usage.computed_tokens == engine.usage.bound_tokens


def test_two_threads_walk_two_models_at_once_and_leave_transformers_as_it_was(tokenizer):
    names = ("causal_conv1d_fn", "torch_chunk_gated_delta_rule")
    before = [getattr(modeling_qwen3_next, name) for name in names]
    asked, model = prompts(), model_of("qwen3_next")
    expected = logprobs(HFEngine.from_loaded(model, tokenizer), asked)
    by_plain = plain(HFEngine.from_loaded(model, tokenizer), asked[:4])
    found: list[np.ndarray] = []

    def packing() -> None:
        found.append(logprobs(HFEngine.from_loaded(copy.deepcopy(model), tokenizer), asked))

    threads = [threading.Thread(target=packing) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):  # this thread goes the plain way
        assert np.array_equal(plain(HFEngine.from_loaded(model, tokenizer), asked[:4]), by_plain)
    assert len(found) == 2
    for values in found:
        assert np.array_equal(values, expected)
    assert [getattr(modeling_qwen3_next, name) for name in names] == before


# ---- generate


@torch.no_grad()
def sampled(engine: HFEngine, prompt: Rendered, sample: int, sampling: Sampling) -> list[int]:
    """The definition: one plain pass for every token, nothing kept."""
    ids = engine.encoder.prompt(prompt)
    out: list[int] = []
    for u in uniforms(ids, sample, sampling.seed, sampling.max_new_tokens):
        logits = engine.model(torch.tensor([ids.tolist() + out])).logits[:, -1].float()
        out.append(int(choose(logits, torch.tensor([u], dtype=torch.float64), 1.0, 1.0)))
        if out[-1] in engine._eos:
            break
    return out


@pytest.mark.parametrize("shape", ["qwen3_next", "lfm2", "falcon_h1", "zamba2", "jamba", "mamba"])
def test_several_completions_that_end_at_different_times(shape, tokenizer):
    engine = HFEngine.from_loaded(model_of(shape), tokenizer)
    engine._eos = frozenset(range(0, 640, 6))
    asked = [Rendered((RenderedMessage("user", (Segment(text, False),)),)) for text in ("Hi", "A?")]
    asked += prompts()[-1:]
    sampling = Sampling(n=3, max_new_tokens=5, seed=1)
    made = engine.generate(asked, sampling)
    expected = [[sampled(engine, p, j, sampling) for j in range(3)] for p in asked]
    assert [[list(g.ids) for g in row] for row in made] == expected
    assert len({len(ids) for row in expected for ids in row}) > 2


def test_a_model_without_a_cache_is_refused_by_name(tokenizer):
    engine = HFEngine.from_loaded(model_of("rwkv"), tokenizer)
    with pytest.raises(EngineError, match="RwkvForCausalLM gives no cache"):
        engine.generate(prompts()[:1], Sampling(n=1))


# ---- the trial

SCAN, CONVOLVE = recurrent._Pass.scan, recurrent._Pass.convolve
NEIGHBOURS, READ = recurrent._Pass._neighbours, recurrent.KeptStates.read


def siblings_state(trie, begin, end):
    plan = t.walk(trie, begin, end)
    steps = tuple(dataclasses.replace(s, source=np.roll(s.source, 1)) for s in plan.steps)
    return dataclasses.replace(plan, steps=steps)


def with_states(change):
    """Scans go as they do, but for the states, from which they go on or which they leave."""

    def scan(self, inputs, blank, compute, alone=False):
        def changed(rows, initial, wanted):
            return change(compute, rows, initial, wanted)

        return SCAN(self, inputs, blank, changed, alone)

    return scan


def a_token_short(compute, rows, initial, wanted):
    made, final = compute(rows, initial, wanted)
    if wanted and rows[0].shape[1] > 1:
        final = compute([x[:, :-1] for x in rows], initial, True)[1]
    return made, final if rows[0].shape[1] > 1 else initial


def a_token_twice(compute, rows, initial, wanted):
    made, final = compute(rows, initial, wanted)
    return made, compute([x[:, -1:] for x in rows], final, True)[1] if wanted else final


def zeroed(compute, rows, initial, wanted):
    return compute(rows, torch.zeros_like(initial), wanted)


def shifted_windows(self, width):
    tokens, windows, last = NEIGHBOURS(self, width)
    before = (windows[:, :-1] - 1).clamp(min=0)
    return tokens, torch.cat([before, windows[:, -1:]], 1), last


def shifted_ends(self, width):
    tokens, windows, last = NEIGHBOURS(self, width)
    return tokens, windows, (last - 1).clamp(min=0)


def blind(self, x, width, convolution):
    CONVOLVE(self, x, width, convolution)
    return convolution(x)


PASS = recurrent._Pass
OF_SCANS = {
    "a sibling's state": (packed, "walk", siblings_state),
    "a state one token short": (PASS, "scan", with_states(a_token_short)),
    "a token twice in a state": (PASS, "scan", with_states(a_token_twice)),
    "states of zeros": (PASS, "scan", with_states(zeroed)),
}
OF_ALL = {
    "zeros between packs": (recurrent.KeptStates, "read", lambda *a: READ(*a) * 0),
    "a convolution one off": (PASS, "_neighbours", shifted_windows),
    "a kept convolution one off": (PASS, "_neighbours", shifted_ends),
    "a convolution over the row": (PASS, "convolve", blind),
}
FAULTS = {**OF_SCANS, **OF_ALL}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_trial_lets_every_model_pass_in_bfloat16_too(shape):
    model = packed.PackedModel(model_of(shape, torch.bfloat16))
    assert model._recurrent()
    assert model.check(2**30, TRIAL_WINDOW) == ""


def test_the_trial_lets_wide_layers_pass_whose_faster_kernels_round_otherwise():
    """Prepacked products alone are 1e-5 from the library's: more than other shapes of a batch."""
    torch.manual_seed(0)
    sizes = random_model.SHAPES["granite-hybrid-20m"]
    config = AutoConfig.for_model(**sizes, initializer_range=384**-0.5)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert packed.PackedModel(model).check(2**30) == ""


CASES = [*itertools.product(["qwen3_next", "qwen3_5_text", "mamba2", "mamba", "rwkv"], FAULTS)]
CASES += [("lfm2", fault) for fault in OF_ALL]  # it has no scan


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "fault"), CASES)
def test_the_trial_tells_rounding_from_faults(shape, fault, dtype, monkeypatch):
    monkeypatch.setattr(*FAULTS[fault])
    said = packed.PackedModel(model_of(shape, dtype)).check(2**30)
    assert "differ by" in said, said
