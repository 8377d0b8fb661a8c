"""`rlaif label` with a judge behind a server: stopped by its budget, resumed, its key unseen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.errors import EngineError

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
        {"chosen": f"\n\nHuman: Thing {i}?\n\nAssistant: Good.",
         "rejected": f"\n\nHuman: Thing {i}?\n\nAssistant: No."}
        for i in range(6)
    ]  # fmt: skip
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
