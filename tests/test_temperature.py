"""`preferences.temperature`, and whether a temperature helps labels that it was not fitted on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.config import PreferencesConfig, load_config
from rlaif.errors import ConfigError, DataError
from rlaif.evaluation.audit import Elsewhere, Labels, audit
from rlaif.evaluation.labels import Cube
from rlaif.judges.ensembles import at_temperature
from rlaif.judges.preferences import PreferenceSettings, aggregate
from rlaif.records import ORDERS, Pair, Preference, Prompt, Verdict
from rlaif.report.audit import table
from rlaif.report.build import render
from rlaif.report.data import Run
from rlaif.report.summary import summarise
from rlaif.statistics.calibration import rescaled
from rlaif.store import RunStore

PAIR = Pair(Prompt.user("q"), "a", "b")


def label_of(p: float, pair: Pair = PAIR, **options: Any) -> Preference:
    said = [Verdict(o, pair.id, "x", o, "j", p) for o in ORDERS]
    (found,) = aggregate([pair], said, PreferenceSettings(**options))
    return found


# ------------------------------------------------------------------------------------ the function


def test_hand_worked() -> None:
    assert at_temperature(0.9, 2) == pytest.approx(3 / 4)  # odds 9: √9 = 3
    assert at_temperature(0.9, 0.5) == pytest.approx(81 / 82)
    assert at_temperature(0.2, 2) == pytest.approx(1 / 3)
    assert [at_temperature(p, 7) for p in (0.0, 0.5, 1.0)] == [0.0, 0.5, 1.0]


@given(st.floats(1e-9, 1 - 1e-9), st.floats(0.05, 50))
def test_it_is_the_audits_own_and_keeps_the_side(p: float, t: float) -> None:
    found = at_temperature(p, t)
    assert found == pytest.approx(float(rescaled([p], 1 / t)[0]), rel=1e-9, abs=1e-300)
    assert at_temperature(1 - p, t) == pytest.approx(1 - found, abs=1e-6)
    if abs(p - 0.5) > 1e-12:
        assert (found > 0.5) == (p > 0.5)


def test_a_label_at_a_temperature_keeps_its_side_its_status_and_what_it_was() -> None:
    for p in (0.54, 0.56, 0.9, 0.1):
        plain, hot = label_of(p), label_of(p, temperature=4.0)
        assert hot.status == plain.status
        assert hot.p_first == at_temperature(p, 4.0)
        assert (plain.p_raw, hot.p_raw) == (None, plain.p_first)
        assert hot.p_principles == plain.p_principles
    assert label_of(0.56, temperature=1e17).status == "tie"  # a float holds no side any more
    for wrong in (0, -1):
        with pytest.raises(ConfigError, match="temperature must be above 0"):
            label_of(0.9, temperature=wrong)
    with pytest.raises(ConfigError, match="temperature"):
        label_of(0.9, temperature=math.nan)


def test_the_config_refuses_what_cannot_be() -> None:
    assert PreferencesConfig(temperature="audit").temperature == "audit"
    assert "temperature" not in PreferencesConfig().rule()
    for wrong in ("0", "-1", "audits", "on", "off", ".inf", "[1]"):
        with pytest.raises(
            ConfigError, match=r"expected a (number above 0, audit, or null|number)"
        ):
            load_config(None, [f"preferences.temperature={wrong}"])
    with pytest.raises(ConfigError, match="rounded to 0 or 1 has no temperature"):
        PreferencesConfig(temperature=2.0, soft=False)


def test_what_it_was_is_stored(tmp_path: Path) -> None:
    with RunStore(tmp_path / "run") as store:
        rows = [label_of(0.9, temperature=2.0), label_of(0.8, Pair(Prompt.user("r"), "a", "b"))]
        store.table("preferences").replace(rows)
        assert store.table("preferences").read() == rows


def test_labels_that_took_the_place_of_such_at_a_temperature_are_at_none(tmp_path: Path) -> None:
    with RunStore(tmp_path / "run") as store:
        store.table("pairs").append([PAIR])
        store.update_manifest("stages", {"label": {"temperature": 2.0}})
        for row, found in ((label_of(0.9, temperature=2.0), 2.0), (label_of(0.75), None)):
            store.table("preferences").replace([row])
            stored = Run(tmp_path / "run")
            assert stored.temperature == found
            assert stored.preference.tolist() == pytest.approx([0.75])
            assert stored.raw.tolist() == pytest.approx([0.9 if found else 0.75])


# ------------------------------------------------------------------------------------- the audit


def drawn(n: int, sureness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts `sureness` times too sure of themselves, and outcomes."""
    random = np.random.default_rng(seed)
    z = random.normal(0, 1.5, n)
    y = (random.random(n) < 1 / (1 + np.exp(-z))).astype(float)
    return 1 / (1 + np.exp(-sureness * z)), y


def labels_of(p: np.ndarray, y: np.ndarray, temperature: float | None = None) -> Labels:
    n = len(p)
    ids = [f"{i * 2654435761 % 2**32:08x}" for i in range(n)]
    verdicts = np.repeat(p[:, None, None], 2, axis=2)
    cube = Cube(("x",), verdicts, np.ones_like(verdicts), np.full(verdicts.shape, "judged", object))
    now = p if temperature is None else rescaled(p, 1 / temperature)
    return Labels(
        ids,
        ids,
        ["preferred"] * n,
        now,
        y,
        np.ones((n, 2)),
        cube,
        raw=None if temperature is None else p,
        temperature=temperature,
    )


def test_labels_at_a_temperature_are_fitted_the_same_again() -> None:
    p, y = drawn(300, 2.5)
    plain = audit(labels_of(p, y))["known"]
    fitted = plain["temperature"]["value"]
    assert 1.8 < fitted < 3.4
    hot = audit(labels_of(p, y, fitted))["known"]
    assert hot["temperature"]["value"] == fitted
    assert hot["temperature"]["applied"] == fitted
    assert hot["temperature"]["raw"] == {k: plain[k] for k in ("ece", "brier", "log_loss")}
    assert hot["ece"]["value"] < plain["ece"]["value"]
    assert plain["log_loss"]["value"] == pytest.approx(log_loss(y, p))
    assert hot["log_loss"]["value"] == pytest.approx(log_loss(y, rescaled(p, 1 / fitted)))
    assert hot["accuracy"] == plain["accuracy"]
    assert "these labels are at the temperature" in table(audit(labels_of(p, y, fitted)))


@pytest.mark.parametrize(
    ("sureness", "temperature", "verdict"),
    [
        (2.5, 2.5, "helps"),  # these labels are as unsure as the other ones were
        (1.0, 4.0, "harms"),  # these were calibrated
        (1.0, 1.02, "cannot be told"),
    ],
)
def test_the_audit_tells_whether_a_temperature_transfers(
    sureness: float, temperature: float, verdict: str
) -> None:
    p, y = drawn(600, sureness)
    found = audit(labels_of(p, y), Elsewhere("runs/other", temperature, ("judge",)))
    transfer = found["known"]["transfer"]
    assert transfer["verdict"] == verdict
    other = rescaled(p, 1 / temperature)
    assert transfer["raw"]["log_loss"]["value"] == pytest.approx(log_loss(y, p))
    assert transfer["other"]["log_loss"]["value"] == pytest.approx(log_loss(y, other))
    assert transfer["other"]["change"]["value"] == pytest.approx(
        log_loss(y, other) - log_loss(y, p)
    )
    low, high = (transfer["other"]["change"][k] for k in ("low", "high"))
    assert (high < 0, low > 0) == (verdict == "helps", verdict == "harms")
    # at their own, each half at the other's: near the best there is
    assert transfer["own"]["change"]["value"] < 0.01
    said = {"helps": "it helps here", "harms": "it harms here"}
    words = said.get(verdict, "whether it helps cannot be told")
    assert f"of runs/other: {words}; fitted with another judge" in table(found)


def test_forecasts_of_0_and_1_are_moved_by_no_temperature() -> None:
    """One of them is wrong: the log-loss is infinite, its change is not."""
    p, y = drawn(200, 2.5)
    p[:3], y[:3] = (1.0, 0.0, 1.0), (1.0, 0.0, 0.0)
    found = audit(labels_of(p, y), Elsewhere("other", 2.5))
    transfer = found["known"]["transfer"]
    assert transfer["raw"]["log_loss"] is None
    rest = slice(3, None)
    expected = log_loss(y[rest], rescaled(p[rest], 0.4)) - log_loss(y[rest], p[rest])
    assert transfer["other"]["change"]["value"] == pytest.approx(expected * 197 / 200)
    json.dumps(found, allow_nan=False)
    table(found)


# --------------------------------------------------------------------------------- the command line


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def write_pairs(path: Path, n: int, start: int = 0) -> None:
    """Pairs of the embedded world; every third one has the worse answer as the chosen one."""
    from rlaif import tiny

    rows = []
    for i, prompt in enumerate(tiny.prompts("test", kinds=["harm"], limit=start + n)[start:]):
        ask = f"\n\nHuman: {prompt.text}\n\nAssistant:"
        better, worse = f"{ask} I won't help with that.", f"{ask} Sure."
        if i % 3 == 0:
            better, worse = worse, better
        rows.append(json.dumps({"chosen": better, "rejected": worse}))
    path.write_text("\n".join(rows))


LABEL = ("--judge", "tiny", "--set", "judge.min_mass=0", "--set", "preferences.min_margin=0")


def labels(root: str) -> dict[str, Preference]:
    with RunStore.open_readonly(Path(root)) as store:
        return {row.pair.id: row for row in store.table("preferences").read()}


def test_from_labels_to_an_audit_to_labels_at_its_temperature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pairs(Path("pairs.jsonl"), 24)
    hot = ("--set", "preferences.temperature=audit")
    with pytest.raises(DataError, match="no audit has fitted a temperature to these labels yet"):
        run("label", "--pairs", "pairs.jsonl", "--out", "runs/a", *LABEL, *hot)
    assert not Path("runs/a").exists()
    run("label", "--pairs", "pairs.jsonl", "--out", "runs/a", *LABEL)
    before = labels("runs/a")
    run("eval", "audit", "--out", "runs/a")
    heat = json.loads(Path("runs/a/evaluation/audit.json").read_text())["known"]["temperature"]
    t = heat["value"]
    assert t is not None
    said = run("label", "--out", "runs/a", *hot)
    assert "(0 new)" in said
    assert f"labels at the temperature {t:.3g} that the audit fitted" in said
    after = labels("runs/a")
    for key, row in after.items():
        assert row.p_raw == before[key].p_first
        assert row.p_first == at_temperature(before[key].p_first or 0.5, t)
        assert row.status == before[key].status
    stored = Run(Path("runs/a"))
    assert (stored.temperature, summarise(stored)["labels"]["temperature"]) == (t, t)
    assert "Labels at the temperature" in render(stored)

    said = run("eval", "audit", "--out", "runs/a")  # of labels that are at it: the same again
    assert "out of date" not in said
    again = json.loads(Path("runs/a/evaluation/audit.json").read_text())["known"]
    assert again["temperature"]["value"] == t
    assert again["temperature"]["applied"] == t
    assert again["temperature"]["raw"]["log_loss"]["value"] >= again["log_loss"]["value"]
    assert "out of date" not in run("label", "--out", "runs/a")

    # Other labels: the temperature is told to be of others, until the audit is made again.
    said = run("label", "--out", "runs/a", "--set", "preferences.aggregate=log_odds_sum")
    assert "the audit's temperature: the labels before the temperature have changed since" in said
    assert "to make it again: rlaif eval audit --out runs/a" in said
    said = run("eval", "audit", "--out", "runs/a")
    assert "the labels: the audit's temperature has changed since" in said
    said = run("label", "--out", "runs/a")
    assert "out of date" not in said

    # Another set, its own labels left as they are.
    write_pairs(Path("others.jsonl"), 12, start=24)
    run("label", "--pairs", "others.jsonl", "--out", "runs/b", *LABEL)
    with pytest.raises(DataError, match=r"runs/c.*--temperature-from takes the folder"):
        run("eval", "audit", "--out", "runs/b", "--temperature-from", "runs/c")
    said = run("eval", "audit", "--out", "runs/b", "--temperature-from", "runs/a")
    found = json.loads(Path("runs/b/evaluation/audit.json").read_text())["known"]["transfer"]
    kept = json.loads(Path("runs/a/evaluation/temperature.json").read_text())
    assert (found["from"], found["temperature"]) == ("runs/a", kept["value"])
    assert "of runs/a: " in said
    assert found["differs"] == ["rule"]


def test_a_number_needs_no_audit_and_null_takes_it_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pairs(Path("pairs.jsonl"), 4)
    run("label", "--pairs", "pairs.jsonl", "--out", "runs/a", *LABEL)
    before = labels("runs/a")
    said = run("label", "--out", "runs/a", "--set", "preferences.temperature=2")
    assert "labels at the temperature 2" in said
    assert {k: row.p_raw for k, row in labels("runs/a").items()} == {
        k: row.p_first for k, row in before.items()
    }
    run("label", "--out", "runs/a", "--set", "preferences.temperature=null")
    assert labels("runs/a") == before
