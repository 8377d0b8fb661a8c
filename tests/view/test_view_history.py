"""Where responses come from: samples, revisions and rewards, as a real run leaves them."""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.errors import DataError
from rlaif.store import RunStore
from rlaif.training.reward import RewardModel
from rlaif.view import filters
from rlaif.view.filters import Filter
from rlaif.view.history import histories
from rlaif.view.index import Index
from rlaif.view.labelling import next_pair

HEADS = 5


def run(*words: str) -> None:
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was sampled, revised, labelled, and has a reward model with an ensemble."""
    root = tmp_path_factory.mktemp("history") / "run"
    run("sample", "--prompts", "tiny", "--policy", "tiny", "--limit", "24", "--out", str(root))
    run("revise", "--out", str(root), "--limit", "24", "--set", "revise.rounds=2")
    run("label", "--constitution", "hhh", "--judge", "tiny", "--out", str(root))
    frozen = ["train.reward.trunk=frozen", f"train.reward.heads={HEADS}", "train.reward.lora=null"]
    run("train", "reward", "--out", str(root), *(w for s in frozen for w in ("--set", s)))
    return root


def test_rewards_and_their_spread_are_the_models(trained: Path) -> None:
    index = Index(trained).made
    facts = {row["id"]: row for row in index.run("SELECT * FROM facts")}
    model = RewardModel(trained / "models" / "reward", device="cpu")
    rows = RunStore.open_readonly(trained).table("preferences").read()
    scored = [p.pair for p in rows if p.status == "preferred"]
    assert len(scored) >= 5
    assert {i for i, row in facts.items() if row["reward_first"] is not None} == {
        pair.id for pair in scored
    }
    prompts = [pair.prompt for pair in scored]
    first = model.ensemble(prompts, [pair.first for pair in scored])
    second = model.ensemble(prompts, [pair.second for pair in scored])
    shown = np.array([[facts[p.id][f"reward_{s}"] for s in ("first", "second")] for p in scored])
    np.testing.assert_allclose(shown, np.stack([first[:, 0], second[:, 0]], 1), atol=1e-3)
    gaps = (first - second)[:, 1:] / model.normalisation.gain  # Bradley–Terry's own logits
    spread = np.std(1 / (1 + np.exp(-gaps)), axis=1, ddof=1)
    np.testing.assert_allclose([facts[p.id]["heads"] for p in scored], spread, atol=1e-3)

    _, found = filters.page(index, Filter.of({"sort": "heads"}), 1)
    assert found[0]["heads"] == max(row["heads"] for row in facts.values()) > 0


def test_the_queue_knows_the_ensemble(trained: Path, tmp_path: Path) -> None:
    """Where neither orders nor principles disagree, the reward heads tell what is worth a look."""
    shutil.copytree(trained, tmp_path / "run")
    with RunStore(tmp_path / "run") as store:
        store.table("verdicts").replace([])
    index = Index(tmp_path / "run").made
    [most] = index.run("SELECT id FROM facts ORDER BY heads DESC LIMIT 1")
    found = next_pair(index, [], "doubt")
    assert found is not None
    assert (found.pair_id, found.queue) == (most["id"], "heads")


def test_a_response_has_its_samples_and_revisions(
    trained: Path, served: Callable[..., Any]
) -> None:
    index = Index(trained)
    store = RunStore.open_readonly(trained)
    chains = {(r.prompt.id, r.response) for r in store.table("revisions").read() if r.round == 1}
    pairs = store.table("pairs").read()
    pair = next(p for p in pairs if (p.prompt.id, p.first) in chains)
    history, _ = histories(index, pair)
    assert [c["text"] for c in history.sampled] == [pair.first]
    assert [r["round"] for r in history.rounds] == [1, 2]
    assert history.rounds[0]["response"] == pair.first
    for one in pairs:  # its own chain, though another's revision may say the same
        for side, told in zip((one.first, one.second), histories(index, one), strict=True):
            if (one.prompt.id, side) in chains:
                assert told.rounds[0]["response"] == side
            elif told.rounds:
                assert side in [row["revision"] for row in told.rounds]
    _, _, body = served(trained).get(f"/pair/{pair.id}")
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())
    assert f"Sampled by tiny, number {history.sampled[0]['index'] + 1}: " in text
    assert "in round 2, under" in text
    assert " ".join(history.rounds[1]["critique"].split()) in text


def test_nothing_is_said_where_nothing_is(page: Any, labelled: Path) -> None:
    pair = RunStore.open_readonly(labelled).table("pairs").read()[0]
    _, _, body = page.get(f"/pair/{pair.id}")
    assert "Where it comes from" not in body
    assert "Reward" not in body


def test_damaged_rewards_are_told(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "models" / "reward" / "scores.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"scores.parquet: .*train the reward model again"):
        _ = Index(tmp_path / "run").made
