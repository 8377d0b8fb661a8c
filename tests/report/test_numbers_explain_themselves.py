"""No KL below 0 and no loss that starts elsewhere than at ln 2 is shown without its reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_runs import make_whole_run

from rlaif.report.build import render
from rlaif.report.data import Run
from rlaif.report.formats import fixed, percent
from rlaif.stages.record import told_kl


def test_the_kl_that_is_told() -> None:
    both = told_kl("ppo", {"kl": -0.003, "kl_k3": 0.021}, "an episode")
    assert both == "the KL to the reference is 0.02 nats an episode (k3; k1: 0.00)"
    assert "(k3; k1: -0.12)" in told_kl("ppo", {"kl": -0.12, "kl_k3": 0.02}, "an episode")
    rloo = told_kl("rloo", {"kl": -0.5}, "a completion")
    assert rloo == (
        "the KL to the reference is -0.50 nats a completion (k1: by chance it may fall below 0)"
    )
    assert told_kl("grpo", {"kl": 0.5}, "a completion").endswith("0.50 nats a completion (k3)")


@pytest.mark.parametrize("nll", [0.0, 0.2])
def test_the_loss_with_nll_says_so(tmp_path: Path, nll: float) -> None:
    path = make_whole_run(tmp_path / "run", 40)
    found = path / "models/dpo/metrics.json"
    found.write_text(json.dumps({**json.loads(found.read_text()), "settings": {"nll": nll}}))
    assert ("of the chosen response, so it does not start at ln 2" in render(Run(path))) == (
        nll > 0
    )


def test_halves_are_rounded_up_on_the_decimal_that_is_shown() -> None:
    assert [percent(x, 0) for x in (0.935, 0.945, 0.925)] == ["94\u202f%", "95\u202f%", "93\u202f%"]
    assert [fixed(x, 2) for x in (0.125, 0.135, 2.675)] == ["0.13", "0.14", "2.68"]
    assert fixed(-0.001, 2) == "0.00"
    assert percent(-0.125, 0) == "−13\u202f%"
    assert percent(0.9996, 0) == "99.96\u202f%"
