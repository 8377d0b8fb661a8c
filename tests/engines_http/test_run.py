"""`rlaif label` with a judge behind a server: stopped by its budget, resumed, its key unseen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.errors import EngineError
from rlaif.store import RunStore

RUNNER = CliRunner()


def test_a_run_stops_at_its_budget_goes_on_and_keeps_the_key_out_of_every_file(
    server, wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_KEY", wire.key)
    monkeypatch.chdir(tmp_path)
    server.script = lambda path, *_: (
        wire.chat({" A": 0.6, " B": 0.3}, prompt=250) if path.endswith("completions") else None
    )
    rows = [
        {
            "chosen": f"\n\nHuman: Thing {i}?\n\nAssistant: Good.",
            "rejected": f"\n\nHuman: Thing {i}?\n\nAssistant: No.",
        }
        for i in range(6)
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def label(max_cost: float) -> str:
        http = {"base_url": server.url, "api_key_env": "PLANTED_KEY", "max_cost": max_cost}
        http |= {"price_per_million_input": 1000.0}
        settings = ["judge.engine=http", f"judge.http={json.dumps(http)}", "chunk=1"]
        options = [word for setting in settings for word in ("--set", setting)]
        command = ["label", "--pairs", "pairs.jsonl", "--judge", "judge", "--out", "run", *options]
        return RUNNER.invoke(app, command, catch_exceptions=False).output

    told = ""
    with pytest.raises(EngineError, match="cost limit") as caught:
        told += label(5.0)
    first = len(server.bodies())
    assert first > 0
    told += str(caught.value) + label(1000.0)
    manifest = json.loads(Path("run/manifest.json").read_text())
    spent = manifest["stages"]["label"]
    asked = len(server.bodies())
    assert spent["cost"] == pytest.approx(0.25 * (asked - first))
    assert len({json.dumps(body) for body in server.bodies()}) == asked  # nothing asked twice
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) > 3
    for path in files:
        assert wire.key.encode() not in path.read_bytes(), path
    assert wire.key not in told
    assert all(h["authorization"] == f"Bearer {wire.key}" for h in server.headers)


def test_a_server_at_another_port_is_another_judge(
    server, another, wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers of one machine that name their models alike, as a judge and as jurors."""
    monkeypatch.chdir(tmp_path)
    for one, top in ((server, {" A": 0.8, " B": 0.1}), (another, {" A": 0.1, " B": 0.8})):
        one.script = lambda path, *_, top=top: (
            wire.chat(top) if path.endswith("completions") else None
        )
    prompt = "\n\nHuman: Thing?\n\nAssistant:"
    Path("pairs.jsonl").write_text(
        json.dumps({"chosen": f"{prompt} Good.", "rejected": f"{prompt} No."}) + "\n"
    )

    def label(out: str, *settings: str) -> float | None:
        sets = ["judge.model=judge", "judge.engine=http", "preferences.min_margin=0", *settings]
        options = [word for setting in sets for word in ("--set", setting)]
        RUNNER.invoke(
            app,
            ["label", "--pairs", "pairs.jsonl", "--out", out, *options],
            catch_exceptions=False,
        )
        (row,) = RunStore(out, read_only=True).table("preferences").read()
        return row.p_first

    def at(one) -> str:
        return json.dumps({"base_url": one.url, "api_key_env": None})

    first = "judge.orders=first_second"
    assert label("r", first, f"judge.http={at(server)}") == pytest.approx(8 / 9)
    assert label("r", first, f"judge.http={at(another)}") == pytest.approx(1 / 9)
    jury = ", ".join(
        f"{{name: {name}, model: judge, engine: http, orders: first_second, http: {at(one)}}}"
        for name, one in (("one", server), ("two", another))
    )
    assert label("j", f"jury=[{jury}]") == pytest.approx((8 / 9 + 1 / 9) / 2)
    assert len(server.bodies()) == len(another.bodies()) == 2 * 2  # the principles
