"""Attention on a CPU: both ways of it against one written out in float64."""

from __future__ import annotations

import pytest
import torch

from rlaif.engines import attention
from rlaif.engines.faster import cpu_attention

WAYS = {"products": 0, "kernel": 1 << 60}  # from how many multiply-adds on products are made


def exactly(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    seen: torch.Tensor,
    scale: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One query after another, in float64."""
    out, lse = torch.zeros(*q.shape[:3], v.shape[3]), torch.zeros(q.shape[:3])
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            shared = h * k.shape[1] // q.shape[1]
            for i in range(q.shape[2]):
                keys = seen.expand(q.shape[0], 1, -1, -1)[b, 0, i].nonzero()[:, 0]
                scores = (k[b, shared, keys].double() @ q[b, h, i].double()) * scale
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                lse[b, h, i] = scores.logsumexp(0) if len(keys) else -torch.inf
                weights = scores.softmax(0)
                out[b, h, i] = (weights[:, None] * v[b, shared, keys].double()).sum(0)
    return out, lse


def inputs(size: int, heads: int, shared: int, n: int, m: int, widths: tuple[int, int]) -> list:
    torch.manual_seed(0)
    # Keys as an engine has them: a slice of rows that belong to more than one head.
    shapes = [
        (size, heads, n, widths[0]),
        (size, m, shared, widths[0]),
        (size, m, shared, widths[1]),
    ]
    q, k, v = (torch.randn(s) for s in shapes)
    return [q, k.transpose(1, 2), v.transpose(1, 2)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("kind", ["all", "causal", "window", "window, apart", "for each"])
@pytest.mark.parametrize("heads", [(4, 1), (6, 2), (3, 3)])
@pytest.mark.parametrize("widths", [(16, 16), (12, 8)])
def test_it_equals_the_sum_written_out(
    widths: tuple[int, int],
    heads: tuple[int, int],
    kind: str,
    softcap: float | None,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu_attention, "_WORTH", WAYS[way])
    monkeypatch.setattr(cpu_attention, "_ROWS", 28)  # several blocks, the last of them shorter
    size, n = (2 if kind == "for each" else 1), 33
    m = n if kind == "causal" else 41
    q, k, v = inputs(size, *heads, n, m, widths)
    rows, columns = torch.arange(n)[:, None], torch.arange(m)
    told = {
        "all": None,
        "causal": None,
        "window": (columns >= rows - 3) & (columns <= rows + 2) & (rows != 20),
        "window, apart": (columns % 16 == 0) & (rows < 14),  # whole blocks without a key
        "for each": torch.rand(size, 1, n, m) < 0.4,
    }[kind]
    seen = told if told is not None else (columns <= rows) | (kind != "causal")
    made = attention._dense(q, k, v, kind == "causal", 0.3, softcap, told)
    expected = exactly(q, k, v, seen, 0.3, softcap)
    for found, wanted in zip(made, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_no_number_stays_none(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that overflows is told by its labels: it must not look like one that works."""
    monkeypatch.setattr(cpu_attention, "_WORTH", WAYS[way])
    q, k, v = inputs(1, 2, 1, 5, 5, (8, 8))
    k[0, 0, 3, 0] = torch.nan
    seen = torch.ones(5, 5, dtype=torch.bool).tril()
    out, lse = attention._dense(q, k, v, False, 0.3, None, seen)
    assert out[0, :, 3:].isnan().all()
    assert lse[0, :, 3:].isnan().all()


def test_halves_are_left_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "_WORTH", 0)
    q, k, v = (x.bfloat16() for x in inputs(1, 4, 1, 33, 41, (16, 16)))
    assert not cpu_attention.is_worth(q, k)
    made = attention._dense(q, k, v, False, 0.3, None, None)
    expected = exactly(q, k, v, torch.ones(33, 41, dtype=torch.bool), 0.3, None)
    torch.testing.assert_close(made[0], expected[0], rtol=0.02, atol=0.02)
