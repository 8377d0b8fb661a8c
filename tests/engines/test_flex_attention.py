"""FlexAttention over a pack gives what the dense pieces give, and the trial judges it as well.

All of this runs on a CPU: FlexAttention as it is written, not compiled. Of the compiled call it is
tested how often PyTorch's compiler is asked for a kernel.
"""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.engines import attention, flex_attention, packed, trial
from rlaif.engines import trie as t
from rlaif.engines.hf import HFEngine
from rlaif.engines.settings import EngineSettings, ModelSettings
from rlaif.errors import ConfigError, EngineError
from rlaif.files.templates import Rendered, RenderedMessage, Segment

REACHES = [None, ("window", 5), ("window", 150), ("chunk", 7), ("chunk", 128)]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])


def random_trie(seed: int, scale: int = 1) -> t.Trie:
    """Requests that share beginnings; ways that end inside others; roots of their own."""
    draw = np.random.default_rng(seed)
    paths = [draw.integers(0, 9, draw.integers(1, 60 * scale))]
    for _ in range(int(draw.integers(1, 14))):
        stem = paths[draw.integers(len(paths))]
        cut = stem[: draw.integers(0, len(stem) + 1)]
        paths.append(np.concatenate([cut, draw.integers(0, 9, draw.integers(0, 50 * scale))]))
    return t.build(paths)


def seen_by_rule(trie: t.Trie, begin: int, end: int, reach) -> np.ndarray:
    """(N, D + N): which keys each token of the pack sees, by its ancestors alone."""
    before = int(trie.depths[begin])
    out = np.zeros((end - begin, before + end - begin), bool)
    for i in range(begin, end):
        depth = int(trie.depths[i])
        low = 0
        if reach is not None:
            low = depth - depth % reach[1] if reach[0] == "chunk" else depth - reach[1] + 1
        for j in (*trie.ancestors(i), i):
            at = int(trie.depths[j])
            if at >= low:
                out[i - begin, before + j - begin if j >= begin else at] = True
    return out


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([23, 140, 700]), st.sampled_from(REACHES))
def test_the_mask_shows_each_token_its_way_and_nothing_else(seed, budget, reach):
    trie = random_trie(seed, scale=4)
    for begin, end in t.packs(trie, budget)[:4]:
        run = flex_attention.FlexPass(
            t.kept_plan(trie, begin, end, min(end, len(trie) - 1)),
            attention.KeptPath(),
            trie.depths[begin:end],
            torch.device("cpu"),
        )
        mask = run._mask_of(reach)
        assert run._mask_of(reach) is mask  # made once
        queries, keys = mask.seq_lengths
        i, j = torch.arange(queries)[:, None], torch.arange(keys)
        sees = mask.mask_mod(None, None, i, j)
        expected = seen_by_rule(trie, begin, end, reach)
        inside = np.zeros((queries, keys), bool)
        inside[: expected.shape[0], : expected.shape[1]] = expected
        assert np.array_equal(sees.numpy(), inside)
        # Blocks that are computed whole are seen whole, and those left out hold nothing seen.
        blocks = sees.view(queries // 128, 128, keys // 128, 128)
        some, every = blocks.any(3).any(1), blocks.all(3).all(1)
        whole = listed(mask.full_kv_num_blocks, mask.full_kv_indices)
        partly = listed(mask.kv_num_blocks, mask.kv_indices)
        assert torch.equal(whole, every)
        assert not (whole & partly).any()
        assert not (some & ~whole & ~partly).any()


def listed(counts: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(indices.shape[2:], dtype=torch.bool)
    for row, (count, order) in enumerate(zip(counts[0, 0], indices[0, 0], strict=True)):
        out[row, order[: int(count)].long()] = True
    return out


# ---- against the pieces


@DTYPES
@pytest.mark.parametrize(
    ("kv_heads", "widths", "softcap", "sinks"),
    [
        (4, (16, 16), None, False),
        (2, (16, 16), 3.0, True),
        (1, (24, 8), None, True),
        (4, (9, 20), 2.0, False),
    ],
    ids=["plain", "grouped, soft-capped, sinks", "latent, sinks", "odd widths, soft-capped"],
)
@pytest.mark.parametrize("reach", REACHES)
def test_flex_gives_what_the_pieces_give(kv_heads, widths, softcap, sinks, reach, dtype):
    torch.manual_seed(0)
    trie, (wide, narrow) = random_trie(3, scale=3), widths
    whole = [
        torch.randn(1, heads, len(trie), width, dtype=dtype)
        for heads, width in ((4, wide), (kv_heads, wide), (kv_heads, narrow))
    ]
    sink = torch.randn(4) if sinks else None
    packs = t.packs(trie, 90)
    assert any(trie.depths[begin] for begin, _ in packs)  # runs are cut, and the path is kept
    kept = attention.KeptPath(), attention.KeptPath()
    for begin, end in packs:
        target = end if end < len(trie) else len(trie) - 1
        plans = (
            t.attention_plan(trie, begin, end, target, 8),
            t.kept_plan(trie, begin, end, target),
        )
        part = [x[:, :, begin:end] for x in whole]
        found = []
        for kind, plan, path in zip(
            (attention.Pass, flex_attention.FlexPass), plans, kept, strict=True
        ):
            run = kind(plan, path, trie.depths[begin:end], torch.device("cpu"))
            found.append(run.attend(*part, 0.7, softcap, reach, sink))
            run.commit()
        assert found[0].shape == found[1].shape == (1, end - begin, 4, narrow)
        assert found[1].dtype == dtype
        near = 1e-5 if dtype == torch.float32 else 0.02  # two roundings of bfloat16, no more
        torch.testing.assert_close(found[1], found[0], rtol=near, atol=near)


PREFIX = "Which response is better? Answer with A or B. " * 4


def prompts() -> list[Rendered]:
    bodies = ["A: Mix flour.\nB: No.\n" * 3, "A: No.\nB: Mix flour.\n" * 3]
    asked = itertools.product(bodies, ("Which is kind?", "Which is kind and short?", ""))
    return [
        Rendered((RenderedMessage("user", (Segment(PREFIX + body + principle, True),)),))
        for body, principle in asked
    ]


def logprobs(model, tokenizer, how: str) -> np.ndarray:
    engine = HFEngine.from_loaded(
        model, tokenizer, settings=EngineSettings(batch_tokens=150, attention=how)
    )
    scores = engine.score(prompts(), [(" A", " neither")] * 6)
    assert engine._packing  # the trial let it pass
    assert engine.usage.computed_tokens == engine.usage.bound_tokens
    return np.array([s.logprobs for s in scores])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "shape", ["llama", "gemma2", "gemma3", "gpt_oss", "deepseek_v3", "falcon alibi", "llama4"]
)
def test_models_score_the_same_by_flex(model_of, tokenizer, shape):
    found = [logprobs(model_of(shape), tokenizer, how) for how in ("pieces", "flex")]
    assert np.abs(found[0] - found[1]).max() <= 3e-5
    assert np.ptp(found[0][:, 0]) > 1e-3


@pytest.mark.filterwarnings("error")
def test_models_in_bfloat16_score_the_same_by_flex(model_of, tokenizer):
    model = copy.deepcopy(model_of("gemma3")).bfloat16()
    found = [logprobs(model, tokenizer, how) for how in ("pieces", "flex")]
    assert np.abs(found[0] - found[1]).max() <= 0.15


# ---- the trial


STOPS, MASK = flex_attention.stops, flex_attention.block_mask
FAULTS = {
    "a path key lost": (
        "stops",
        lambda d: np.where(np.arange(len(STOPS(d))) == d[0] - 1, 0, STOPS(d)),
    ),
    "a sibling sees the run beside it": ("stops", lambda d: np.minimum(STOPS(d) + 1, len(d))),
    "the last below is blind": (
        "stops",
        lambda d: STOPS(d) - (STOPS(d) - np.arange(-d[0], len(d)) > 3),
    ),
    "a window one token off": (
        "block_mask",
        lambda d, first, *x: MASK(d, None if first is None else first + 1, *x),
    ),
}


@DTYPES
@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_the_trial_tells_faults_of_the_mask(model_of, monkeypatch, fault, dtype):
    model = copy.deepcopy(model_of("gemma3")).to(dtype)
    if fault is not None:
        monkeypatch.setattr(flex_attention, *FAULTS[fault])
    said = packed.PackedModel(model, "flex").check(2**30, trial.TRIAL_WINDOW)
    assert ("differ by" in said) == (fault is not None), said


# ---- kernels


def call(size: int, before: int, scale: float, softcap: float | None, backend) -> None:
    mask = flex_attention.block_mask(
        np.arange(before, before + size), np.arange(size), torch.device("cpu")
    )
    queries, keys = mask.seq_lengths
    flex_attention._compiled(
        torch.randn(1, 4, queries, 16),
        torch.randn(1, 2, keys, 16),
        torch.randn(1, 2, keys, 32),
        None if softcap is None else flex_attention._capped(softcap),
        mask,
        scale,
        True,
        backend=backend,
    )


def test_packs_of_other_lengths_need_no_new_kernel():
    made = []

    def counting(graph, _):
        made.append(graph)
        return graph.forward

    with torch.no_grad():
        for size, before in [(200, 0), (40, 300), (700, 0), (300, 100), (130, 1_000), (520, 513)]:
            call(size, before, 0.25, None, counting)
        assert len(made) == 1
        for size, before in [(300, 0), (130, 400)]:
            call(size, before, 0.5, 30.0, counting)
        assert len(made) == 2
        call(400, 20, 0.25, None, counting)
        assert len(made) == 2


def test_a_kernel_that_cannot_be_made_is_an_error_that_names_why():
    def failing(*_):
        raise RuntimeError("out of resource: shared memory")

    with torch.no_grad(), pytest.raises(EngineError) as caught:
        call(200, 0, 0.25, None, failing)
    said = str(caught.value)
    assert "attention: flex cannot be used for torch.float32 heads of 16 on cpu" in said
    assert "shared memory" in said
    assert "Take attention: pieces" in said


# ---- the option


def test_the_option_is_of_the_hf_engine(model_of, tokenizer):
    assert ModelSettings().options()["attention"] == "pieces"
    assert ModelSettings(attention="flex").options()["attention"] == "flex"
    assert "attention" not in ModelSettings(engine="vllm").options()
    assert "attention" not in ModelSettings(engine="http").options()
    with pytest.raises(ConfigError, match="attention: flex is for engine hf"):
        ModelSettings(engine="vllm", attention="flex")
    with pytest.raises(ConfigError, match="should be 'pieces' or 'flex', got 'rows'"):
        HFEngine.from_loaded(
            model_of("llama"), tokenizer, settings=EngineSettings(attention="rows")
        )
    with pytest.raises(ConfigError, match=r"not on mps\. Take attention: pieces"):
        flex_attention.check_usable("mps")
