"""`rlaif export`: every kind of rows loads back, is taken by TRL, has a card, and is pushed."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import pytest
from trl import data_utils
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.errors import RlaifError
from rlaif.files import hub
from rlaif.files.resources import TINY_WEIGHTS
from rlaif.records import Message, Pair, Preference, Prompt
from rlaif.store import RunStore, write_json

ASKED = Prompt((Message("system", "Be kind."), Message("user", "What is a | b?\n<script>")))
OTHER = Prompt.user("Hello?", source="file:2")


def preference(prompt: Prompt, first: str, second: str, p: float | None) -> Preference:
    status = "abstained" if p is None else "tie" if p == 0.5 else "preferred"
    pair = Pair(prompt, first, second, source="here")
    names = () if p is None else ("no-harm",)
    values = () if p is None else (p,)
    reason = "low_mass" if p is None else None
    return Preference(pair, status, p, names, values, 2, 0, reason)  # type: ignore[arg-type]


LABELS = [
    preference(ASKED, "A set.", "No.", 0.9),
    preference(ASKED, "A union.", "A set.", 0.2),  # the set again: (0.9 + 0.8) / 2
    preference(ASKED, "A union.", "No.", 0.5),
    preference(OTHER, "Hi.", "Go away.", 0.75),
    preference(OTHER, "Hi.", "What?", None),
]
CONSTITUTION = {
    "name": "harmless",
    "version": 1,
    "hash": "abc123",
    "principles": [
        {"id": "no-harm", "compare": "Which is less harmful | safer?", "weight": 2.0, "tags": []}
    ],
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    root = tmp_path / "run"
    with RunStore(root) as store:
        store.table("preferences").append(LABELS)
        store.table("pairs").append([p.pair for p in LABELS])
        store.update_manifest("labelled", CONSTITUTION)
        store.update_manifest(
            "judge", {"model": "some/judge", "method": "pairwise", "fingerprint": "f00d"}
        )
        store.update_manifest("run", {"versions": {"rlaif": "0.1.0"}})
    return root


def export(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["export", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: str | Path) -> str:
    with pytest.raises(RlaifError) as caught:
        CliRunner().invoke(app, ["export", *map(str, arguments)], catch_exceptions=False)
    return str(caught.value)


def exported(run: Path, tmp_path: Path, kind: str, form: str) -> list[dict[str, Any]]:
    """A kind's rows as `datasets.load_dataset` reads them."""
    if form == "hub":
        export(run, tmp_path / "data-set", "--what", kind, "--hub")
        found = load(str(tmp_path / "data-set"), tmp_path)
    else:
        path = tmp_path / f"rows.{form}"
        export(run, path, "--what", kind)
        reader = "json" if form == "jsonl" else form
        found = load(reader, tmp_path, data_files=str(path))
    return list(found)


def load(name: str, folder: Path, **more: str) -> Any:
    """By a cache of this test's own: data sets of one name would meet in the user's."""
    return datasets.load_dataset(name, split="train", cache_dir=str(folder / "cache"), **more)


def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY_WEIGHTS)


FORMS = ("jsonl", "parquet", "hub")


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_pairs(run: Path, tmp_path: Path, form: str) -> None:
    rows = exported(run, tmp_path, "preferences", form)
    assert [row["p_chosen"] for row in rows] == [0.9, 0.8, 0.75]
    assert [row["chosen"][0]["content"] for row in rows] == ["A set.", "A set.", "Hi."]
    assert rows[0]["prompt"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "What is a | b?\n<script>"},
    ]
    assert all(map(data_utils.is_conversational, rows))


@pytest.mark.parametrize("form", FORMS)
def test_an_implicit_prompt_is_what_trl_extracts(run: Path, tmp_path: Path, form: str) -> None:
    implicit = exported(run, tmp_path, "implicit", form)
    assert all("prompt" not in row for row in implicit)
    explicit = exported(run, tmp_path / "other", "preferences", "parquet")
    for row, other in zip(implicit, explicit, strict=True):
        found = data_utils.maybe_extract_prompt(row)
        for name in ("prompt", "chosen", "rejected"):
            assert found[name] == other[name]


@pytest.mark.parametrize("form", FORMS)
def test_unpaired_rows_have_each_completion_once(run: Path, tmp_path: Path, form: str) -> None:
    rows = exported(run, tmp_path, "unpaired", form)
    said = {row["completion"][0]["content"]: (row["label"], row["p"]) for row in rows}
    assert said == {
        "A set.": (True, pytest.approx(0.85)),
        "No.": (False, pytest.approx(0.1)),
        "A union.": (False, pytest.approx(0.2)),
        "Hi.": (True, 0.75),
        "Go away.": (False, 0.25),
    }
    assert len(rows) == 5
    plain = data_utils.apply_chat_template(dict(rows[0]), tokenizer())
    assert set(plain) >= {"prompt", "completion", "label"}


def test_trl_unpairs_preferences_into_the_same_columns(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "rows.parquet")
    pairs = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "rows.parquet"), split="train"
    )
    theirs = data_utils.unpair_preference_dataset(pairs)
    ours = exported(run, tmp_path, "unpaired", "parquet")
    assert {"prompt", "completion", "label"} <= set(theirs.column_names)
    best = [r["completion"] for r in theirs if r["label"]]
    assert all(row["completion"] in best for row in ours if row["label"])


@pytest.mark.parametrize("form", FORMS)
def test_the_best_completion_of_each_prompt(run: Path, tmp_path: Path, form: str) -> None:
    rows = exported(run, tmp_path, "sft", form)
    assert [row["completion"][0]["content"] for row in rows] == ["A set.", "Hi."]
    plain = data_utils.apply_chat_template(dict(rows[1]), tokenizer())
    assert plain["completion"].startswith("Hi.")


@pytest.mark.parametrize("form", FORMS)
def test_prompts_and_rewards(run: Path, tmp_path: Path, form: str) -> None:
    prompts = exported(run, tmp_path / "p", "prompts", form)
    assert [row["source"] for row in prompts] == ["", "file:2"]
    assert "prompt" in data_utils.apply_chat_template(dict(prompts[0]), tokenizer())
    rewards = exported(run, tmp_path / "r", "rewards", form)
    said = {row["completion"][0]["content"]: row["reward"] for row in rewards}
    # with the tie: (0.9 + 0.8) / 2, (0.1 + 0.5) / 2, (0.2 + 0.5) / 2
    assert said == pytest.approx(
        {"A set.": 0.85, "No.": 0.3, "A union.": 0.35, "Hi.": 0.75, "Go away.": 0.25}
    )


def test_argilla_asks_people_about_ties_too(run: Path, tmp_path: Path) -> None:
    rows = exported(run, tmp_path, "argilla", "jsonl")
    assert len(rows) == 5
    first, tie, none = rows[0], rows[2], rows[4]
    assert set(first) == {"id", "fields", "metadata", "suggestions", "responses", "vectors"}
    assert first["fields"]["prompt"][1]["content"] == "What is a | b?\n<script>"
    assert first["suggestions"]["preference"] == {"value": "first", "agent": "rlaif", "score": 0.9}
    assert tie["suggestions"]["preference"]["value"] == "tie"
    assert not (none["suggestions"] or {}).get("preference")
    assert first["metadata"]["p_no-harm"] == 0.9


def test_ties_of_rewards_and_suggestions_need_no_number(tmp_path: Path) -> None:
    """A tie is ½ however near to it the label lies, and where no principle had anything to say."""
    root = tmp_path / "run"
    silent = Preference(Pair(OTHER, "One.", "Two."), "tie", None)
    near = Preference(Pair(OTHER, "Three.", "Four."), "tie", 0.54)
    with RunStore(root) as store:
        store.table("preferences").append([silent, near, LABELS[-1]])
    told = export(root, tmp_path / "r.jsonl", "--what", "rewards")
    assert "4 rows" in told
    assert "left out: 1 abstained" in told
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in rows] == [0.5] * 4
    export(root, tmp_path / "a.jsonl", "--what", "argilla")
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    values = [(row["suggestions"].get("preference") or {}).get("value") for row in rows]
    assert values == ["tie", "tie", None]


def test_openai_rows_have_its_fields(run: Path, tmp_path: Path) -> None:
    (row, *_) = exported(run, tmp_path, "openai", "jsonl")
    assert row["input"]["messages"][0] == {"role": "system", "content": "Be kind."}
    assert row["preferred_output"] == [{"role": "assistant", "content": "A set."}]
    assert row["non_preferred_output"] == [{"role": "assistant", "content": "No."}]
    (chat, *_) = exported(run, tmp_path, "openai-sft", "jsonl")
    assert [m["role"] for m in chat["messages"]] == ["system", "user", "assistant"]
    assert chat["messages"][-1]["content"] == "A set."


def test_what_cannot_be_exported_is_said(run: Path, tmp_path: Path) -> None:
    assert "Did you mean 'unpaired'" in refused(run, tmp_path / "x.jsonl", "--what", "unpared")
    assert "name a .jsonl file" in refused(run, tmp_path / "x.parquet", "--what", "openai")
    assert "no data set for the hub" in refused(run, run, "--hub")
    assert "no trained model 'dpo'" in refused(run, "--what", "models/dpo", "--push-to", "a/b")
    assert "expected OWNER/NAME" in refused(run, "--push-to", "just-a-name")
    assert "or --push-to NAME" in refused(run)
    with RunStore(tmp_path / "empty") as store:
        store.table("preferences").append([LABELS[4]])
    said = refused(tmp_path / "empty", tmp_path / "x.jsonl", "--what", "sft")
    assert "nothing to export" in said
    assert "1 abstained" in said
    assert not (tmp_path / "x.jsonl").exists()


# --------------------------------------------------------------------------------------- cards


def test_a_card_tells_the_principles_and_the_judge(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "rows.jsonl")
    export(run, tmp_path / "folder")
    export(run, tmp_path / "for-hub", "--hub")
    cards = [
        (tmp_path / place).read_text()
        for place in ("rows.card.md", "folder/README.md", "for-hub/README.md")
    ]
    assert cards[0] == cards[1] == cards[2]
    card = cards[0]
    assert "| no-harm | Which is less harmful \\| safer? | 2 |" in card
    assert "hash `abc123`" in card
    assert "| judge | some/judge | pairwise |" in card
    assert "3 rows" in card
    assert "None was made of these labels" in card
    assert "@misc{" in card
    from huggingface_hub import DatasetCard

    assert DatasetCard(card).data.pretty_name == "harmless: preferences"
    assert len(datasets.load_from_disk(str(tmp_path / "folder"))) == 3


def trained(run: Path) -> Path:
    """A model as a stage leaves it, by the stage's own last step."""
    from rlaif.cli.console import Silent
    from rlaif.config import load_config
    from rlaif.stages import Run
    from rlaif.stages.record import finish

    folder = run / "models" / "dpo"
    folder.mkdir(parents=True)
    for name in ("config.json", "metrics.json"):
        write_json(folder / name, {})
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "optimizer.pt").write_bytes(b"large")
    config = load_config(None, (), {"out": str(run), "constitution": "harmless"})
    with RunStore(run) as store, Run(config, store, Silent(), local_models=False) as work:
        finish(work, "dpo", 0.0, {"model": "some/base", "rows": 3, "steps": 7, "new_rows": 3})
        write_json(
            run / "evaluation" / "policies.json",
            {
                "base": {"traits": {"helpful": 0.47}},
                "dpo": {"traits": {"helpful": {"value": 0.18}}},
            },
        )
        finish(work, "evaluate", 0.0, {"rows": 1})
    return folder


def test_a_trained_model_carries_a_card_that_tells_what_fell(run: Path) -> None:
    card = (trained(run) / "README.md").read_text()
    assert "base_model: some/base" in card
    assert "| no-harm | Which is less harmful \\| safer? | 2 |" in card
    assert "steps 7" in card
    assert "| helpful | 47.0" in card
    assert "18.0" in card.split("| helpful |")[1].splitlines()[0]


# ---------------------------------------------------------------------------------- to the hub


class Hub(ThreadingHTTPServer):
    """A stand-in of the hub's HTTP API: it takes a repository's files in a commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.made: list[dict[str, Any]] = []
        self.tokens: set[str | None] = set()
        self.refuses = False


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self._answer({"id": "me/x", "sha": "0" * 40, "siblings": [], "private": True})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        sent, path, hub = self.rfile.read(length), self.path.partition("?")[0], self.server
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.refuses:
            self._answer({"error": "Invalid token"}, 401)
        elif path == "/api/repos/create":
            hub.made.append(json.loads(sent))
            self._answer({"url": f"http://127.0.0.1:{hub.server_port}/me/x", "name": "me/x"})
        elif path.endswith("/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(sent)["files"]
            ]
            self._answer({"files": files})
        elif path.endswith("/commit/main"):
            name = path.removeprefix("/api/").removesuffix("/commit/main")
            kept = hub.repositories.setdefault(name, {})
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    kept[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://127.0.0.1:{hub.server_port}/{name}/commit/{'0' * 40}"
            self._answer({"commitUrl": url, "commitOid": "0" * 40, "success": True})
        else:
            self._answer({})  # such as the check of a card's YAML

    def _answer(self, body: dict[str, Any], status: int = 200) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    hub._reached.cache_clear()
    yield server
    server.shutdown()
    server.server_close()
    hub._reached.cache_clear()


def test_a_data_set_goes_to_the_hub_and_loads_back(
    run: Path, tmp_path: Path, stand_in: Hub
) -> None:
    said = export(run, "--what", "unpaired", "--push-to", "me/labels", "--private")
    assert "5 rows" in said
    assert f"pushed to http://127.0.0.1:{stand_in.server_port}/datasets/me/labels" in said
    (made,) = stand_in.made
    assert (made["name"], made["organization"], made["type"]) == ("labels", "me", "dataset")
    assert made.get("private") is True or made.get("visibility") == "private"
    files = stand_in.repositories["datasets/me/labels"]
    assert set(files) - {".gitattributes"} == {"README.md", "data/train-00000-of-00001.parquet"}
    for name, content in files.items():
        path = tmp_path / "copy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert len(load(str(tmp_path / "copy"), tmp_path)) == 5
    assert stand_in.tokens == {"Bearer hf_of_a_test"}


def test_a_model_goes_without_what_is_the_runs_own(run: Path, stand_in: Hub) -> None:
    trained(run)
    assert "/me/policy" in export(run, "--what", "models/dpo", "--push-to", "me/policy")
    files = stand_in.repositories["models/me/policy"]
    assert {"README.md", "config.json"} <= set(files)
    assert not any("checkpoints" in name for name in files)
    assert b"less harmful" in files["README.md"]


def test_a_refusal_says_how_to_log_in(run: Path, stand_in: Hub) -> None:
    stand_in.refuses = True
    said = refused(run, "--push-to", "me/labels")
    assert "(401): set HF_TOKEN, or log in with `hf auth login`" in said


def test_a_hub_out_of_reach_is_told_before_anything_is_made(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = refused(run, tmp_path / "set", "--push-to", "me/labels")
    assert "HF_HUB_OFFLINE is set" in said
    assert not (tmp_path / "set").exists()
