"""People's decisions: kept whatever happens, shown blind, queued by worth, told as agreement."""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rlaif.cli.app import app
from rlaif.errors import ConfigError, DataError
from rlaif.files.readers import read_pairs
from rlaif.records import ORDERS, mirrored
from rlaif.statistics.agreement import cohen_kappa
from rlaif.store import RunStore
from rlaif.store.people import FILE, Decision, People
from rlaif.view.index import Index
from rlaif.view.labelling import Rated, next_pair, require_name, shown_order, spread

Made = Callable[..., Path]


def decision(who: str, pair: str, choice: Any, **more: Any) -> Decision:
    return Decision(who, pair, "first_second", choice, **more)


def test_decisions_stand_until_they_are_taken_back(tmp_path: Path) -> None:
    people = People(tmp_path)
    rows = [decision("a", "1", "first"), decision("b", "1", "second"), decision("a", "2", "tie")]
    rows += [decision("a", "3", "skip"), decision("a", "1", "second", note="é\n“so”")]
    for row in rows:
        people.add(row)
    assert People(tmp_path).read() == people.read() == rows
    assert people.labels() == {"1": 0.0, "2": 0.5}
    people.add(decision("a", "1", "undo", undoes=rows[4].id))
    assert people.labels() == {"1": 0.5, "2": 0.5}  # what was said before stands again
    assert people.last("a") == rows[3]
    assert people.last("nobody") is None
    assert len(People(tmp_path).read()) == 6


def test_a_decision_that_is_sent_twice_is_one(tmp_path: Path) -> None:
    row = decision("a", "1", "first")
    People(tmp_path).add(row)
    People(tmp_path).add(row)
    assert People(tmp_path).read() == [row]


@pytest.mark.parametrize("left", [b'{"who": "a", "pai', b'{"who": "\xc3', b"\x00\x00", b"{}"[:1]])
def test_a_line_that_a_kill_cut_costs_itself_alone(tmp_path: Path, left: bytes) -> None:
    people = People(tmp_path)
    first, second = decision("a", "1", "first"), decision("a", "2", "tie")
    people.add(first)
    with (tmp_path / FILE).open("ab") as file:
        file.write(left)
    assert People(tmp_path).read() == [first]
    people.add(second)
    assert people.read() == People(tmp_path).read() == [first, second]


def test_a_line_of_another_kind_is_told(tmp_path: Path) -> None:
    People(tmp_path).add(decision("a", "1", "first"))
    with (tmp_path / FILE).open("a") as file:
        file.write(json.dumps({"who": "a", "pair_id": "1", "order": "x", "choice": "first"}) + "\n")
    with pytest.raises(DataError, match=r"decisions.jsonl:2: no decision: expected who, pair_id"):
        People(tmp_path).read()


@pytest.mark.parametrize("lacks", ["who", "pair_id", "order", "choice"])
def test_a_line_that_lacks_a_field_is_told(tmp_path: Path, lacks: str) -> None:
    row = {"who": "a", "pair_id": "1", "order": "first_second", "choice": "first"}
    (tmp_path / FILE).parent.mkdir()
    (tmp_path / FILE).write_text(json.dumps({k: v for k, v in row.items() if k != lacks}) + "\n")
    with pytest.raises(DataError, match=r"decisions.jsonl:1: no decision: expected who, pair_id"):
        People(tmp_path).read()


def test_another_journal_in_the_place_of_the_one_that_was_read_is_read(tmp_path: Path) -> None:
    people = People(tmp_path)
    people.add(decision("a", "1", "first"))
    people.add(decision("a", "2", "first"))
    (tmp_path / FILE).rename(tmp_path / "was")
    assert people.labels() == {}
    other = decision("b", "3", "second")
    People(tmp_path).add(other)
    assert people.read() == [other]
    people.add(last := decision("b", "4", "tie"))
    assert people.read() == People(tmp_path).read() == [other, last]


def _decide(root: Path, who: str) -> None:
    people = People(root)
    for i in range(50):
        people.add(decision(who, str(i), "first", note="x" * 5_000))


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    writers = [
        multiprocessing.get_context("spawn").Process(target=_decide, args=(tmp_path, who))
        for who in ("a", "b", "c")
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    rows = People(tmp_path).read()
    assert Counter(row.who for row in rows) == {"a": 50, "b": 50, "c": 50}


def test_which_side_is_shown_first_is_a_coin() -> None:
    ids = [f"{i:020x}" for i in range(400)]
    orders = [shown_order("Ann", i) for i in ids]
    assert orders == [shown_order("Ann", i) for i in ids]
    assert 160 < orders.count("first_second") < 240
    assert 120 < sum(shown_order("Bob", i) == o for i, o in zip(ids, orders, strict=True)) < 280
    mirrored = [shown_order("Ann", "~" + i) for i in ids]
    assert all(a != b for a, b in zip(orders, mirrored, strict=True))  # the same text is A


def test_any_beginning_of_the_random_queue_is_spread_evenly() -> None:
    size = 1000
    for n in (10, 50, 100):
        places = [spread(i, 0.37, size) for i in range(n)]
        counts = np.histogram(places, bins=5, range=(0, size))[0]
        assert counts.min() >= n // 5 - 2
        assert counts.max() <= n // 5 + 2
    # each place is as likely as another over the starts
    first = [spread(3, start, 10) for start in np.arange(0, 1, 0.001)]
    assert set(Counter(first).values()) <= {99, 100, 101}


def told(n: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"kind": tuple(rng.uniform(0.01, 0.99, 2))} for _ in range(n)]


def test_the_queues(made: Made) -> None:
    rows = told(20)
    rows[7] = {"kind": (0.99, 0.01)}
    index = Index(made(rows)).made
    ids = [r["id"] for r in index.run("SELECT id FROM facts ORDER BY n")]
    first = next_pair(index, [], "doubt")
    assert first is not None
    assert (first.pair_id, first.queue) == (ids[7], "orders")
    for queue in ("mixed", "random", "doubt"):
        done: list[str] = []
        why = []
        while (found := next_pair(index, done, queue)) is not None:
            assert found.pair_id not in done
            done.append(found.pair_id)
            why.append(found.queue)
        assert sorted(done) == sorted(ids)
        if queue == "mixed":
            assert why[:4] == ["random", "orders", "random", "orders"]
            assert done[1] == ids[7]
    with pytest.raises(ConfigError, match="queue must be one of mixed, random, doubt, got 'x'"):
        next_pair(index, [], "x")


def test_agreement_is_cohens_of_the_sides_shown(made: Made) -> None:
    root = made(told(40), min_margin=0.0)
    index, people = Index(root), People(root)
    facts = index.made.run("SELECT id, p FROM facts ORDER BY n")
    first: list[str] = []
    while len(first) < 10 and (found := next_pair(index.made, first, "random")) is not None:
        first.append(found.pair_id)
    facts.sort(key=lambda row: first.index(row["id"]) if row["id"] in first else 10)
    rng = np.random.default_rng(1)
    judge, person = [], []
    for i, row in enumerate(facts[:30]):
        order = shown_order("Ann", row["id"])
        choice = "first" if (row["p"] > 0.5) ^ (rng.random() < 0.3) else "second"
        if i >= 28:
            choice = "tie" if i == 28 else "skip"
        else:
            turned = order == ORDERS[1]
            judge.append((row["p"] > 0.5) ^ turned)
            person.append((choice == "first") ^ turned)
        queue = "random" if i < 10 else "orders"
        people.add(Decision("Ann", row["id"], order, choice, queue=queue))  # type: ignore[arg-type]
        people.add(Decision("Bob", row["id"], order, "first", queue=queue))
    [ann, bob] = Rated()(index.made, people.read()).raters
    assert (ann.who, ann.decided, ann.ties, ann.skipped) == ("Ann", 29, 1, 1)
    assert ann.judge is not None
    assert ann.judge.same_side.n == 28
    assert ann.judge.same_side.value == pytest.approx(np.mean(np.equal(judge, person)))
    assert ann.judge.kappa.value == pytest.approx(cohen_kappa(judge, person))
    assert ann.random is not None
    assert ann.random.value == pytest.approx(np.mean(np.equal(judge[:10], person[:10])))
    assert bob.skipped == 0
    [(a, b, between)] = Rated()(index.made, people.read()).between
    assert (a, b, between.same_side.n) == ("Ann", "Bob", 28)


def test_the_random_sample_keeps_the_doubtful_pairs_that_were_decided_before(made: Made) -> None:
    """A judge that is wrong on just those pairs on which its orders disagree, one in four: whoever
    is shown these first finds out in the end that it agrees on three in four, and so does the
    random sample at any time, as near as its size lets it."""
    rows = [{"kind": (0.95, 0.2) if i % 4 == 0 else (0.9, 0.7)} for i in range(200)]
    root = made(rows, min_margin=0.0)
    index, done = Index(root).made, dict[str, Decision]()
    facts = {row["id"]: row for row in index.run("SELECT * FROM facts")}
    shares, naive = [], []
    while (found := next_pair(index, done, "mixed")) is not None and len(done) < 160:
        row = facts[found.pair_id]
        right = ("first", "second") if row["p"] > 0.5 else ("second", "first")
        choice: Any = right[row["orders"] > 0]
        done[found.pair_id] = decision("Ann", found.pair_id, choice, queue=found.queue)
        if len(done) >= 100:
            [ann] = Rated()(index, list(done.values())).raters
            shares.append(ann.random.value)
            random = [d for d in done.values() if d.queue == "random"]
            naive.append(np.mean([facts[d.pair_id]["orders"] == 0 for d in random]))
    assert len(shares) == 61
    assert np.mean(naive) > 0.9  # what was shown as random alone: the doubtful are gone
    np.testing.assert_allclose(shares, 0.75, atol=0.05)


@pytest.mark.parametrize("name", ["", "  ", "a" * 41, "a\x00b", "a\u202eb"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="a name has 1 to 40 letters"):
        require_name(name)


# ------------------------------------------------------------------------------------ on the page


def fields(body: str) -> dict[str, str]:
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', body))


def test_labelling_survives_a_kill(made: Made, served: Callable[..., Any]) -> None:
    root = made(told(12))
    page = served(root)
    _, _, body = page.get("/label?who=Ann+Lee")
    for i in range(5):
        assert "Which response is better?" in body
        given = fields(body)
        assert given["who"] == "Ann Lee"
        status, headers, _ = page.post("/label", **given, choice="ab"[i % 2], note=f"note {i}")
        assert status == 303
        assert headers["location"] == "/label?who=Ann+Lee&queue=mixed"
        # another page's verdict is not in sight
        assert not re.search(r'class="lean"|prefers|probability', body)
        _, _, body = page.get(headers["location"])
        if i == 2:
            page.process.send_signal(signal.SIGKILL)
            page.process.wait()
            page = served(root)
    rows = People(root).read()
    assert [row.note for row in rows] == [f"note {i}" for i in range(5)]
    assert len({row.pair_id for row in rows}) == 5
    for i, row in enumerate(rows):
        shown_as_a = "first" if row.order == ORDERS[0] else "second"
        assert (row.choice == shown_as_a) == (i % 2 == 0)
        assert row.order == shown_order("Ann Lee", row.pair_id)
    status, headers, _ = page.post("/label", who="Ann Lee", queue="mixed", choice="undo")
    assert rows[-1].pair_id.replace("~", "%7E") in headers["location"].replace("~", "%7E")
    assert len(People(root).labels()) == 4
    _, _, body = page.get("/label?who=Bob")
    assert fields(body)["pair"] == rows[0].pair_id  # the same queue for everybody
    again = fields(body)
    for _ in range(2):  # an answer was lost, and the browser sends it again
        assert page.post("/label", **again, choice="tie")[0] == 303
    assert sum(row.who == "Bob" for row in People(root).read()) == 1


def test_a_stage_may_write_meanwhile(made: Made, served: Callable[..., Any]) -> None:
    root = made(told(3))
    page = served(root)
    with RunStore(root):
        _, _, body = page.get("/label?who=Ann")
        assert page.post("/label", **fields(body), choice="tie")[0] == 303
    assert len(People(root).read()) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"choice": "c"},
        {"choice": "a", "id": "x"},
        {"choice": "a", "who": ""},
        {"choice": "a", "note": "x" * 2_001},
        {"choice": "a", "note": "x" * 70_000},
    ],
    ids=["choice", "id", "who", "note", "size"],
)
def test_what_cannot_be_decided_changes_nothing(
    page: Any, labelled: Path, wrong: dict[str, str]
) -> None:
    _, _, body = page.get("/label?who=Ann")
    assert page.post("/label", **{**fields(body), **wrong})[0] == 400
    assert page.post("/label", **{**fields(body), "pair": "~" + "0" * 20, "choice": "a"})[0] == 404
    assert not (labelled / FILE).exists()


def test_a_pair_of_anothers_sample_that_a_person_chose_is_none_of_his(
    made: Made, served: Callable[..., Any]
) -> None:
    root = made(told(3))
    page = served(root)
    _, _, body = page.get("/label?who=Ann&queue=random")
    page.post("/label", **fields(body), choice="a")
    _, _, chosen = page.get(f"/label?who=Bob&pair={fields(body)['pair']}")
    page.post("/label", **fields(chosen), choice="a")
    assert [(row.who, row.queue) for row in People(root).read()] == [
        ("Ann", "random"),
        ("Bob", "chosen"),
    ]


def test_what_a_form_says_of_the_queue_is_checked(made: Made, served: Callable[..., Any]) -> None:
    root = made(told(3))
    page = served(root)
    _, _, body = page.get("/label?who=Ann")
    page.post("/label", **{**fields(body), "why": "<script>random"}, choice="a")
    [row] = People(root).read()
    assert row.queue == ""


def test_a_run_that_is_gone_is_told_and_not_begun_anew(
    made: Made, served: Callable[..., Any]
) -> None:
    root = made(told(3))
    page = served(root)
    _, _, body = page.get("/label?who=Ann")
    assert page.post("/label", **fields(body), choice="a")[0] == 303
    _, _, body = page.get("/label?who=Ann")
    root.rename(root.parent / "elsewhere")
    asked = ("/", "/label?who=Ann", "/?text=number", f"/pair/{fields(body)['pair']}")
    for path in asked:
        status, _, shown = page.get(path)
        assert status in (400, 503), path
        assert "Traceback" not in shown
    assert page.post("/label", **fields(body), choice="a")[0] in (400, 503)
    assert page.post("/label", who="Ann", choice="undo")[0] in (303, 400, 503)
    assert not root.exists()
    (root.parent / "elsewhere").rename(root)
    assert [page.get(path)[0] for path in asked] == [200] * 4
    assert page.post("/label", **fields(body), choice="a")[0] == 303


# ------------------------------------------------------------------------------------ their labels


def run(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_peoples_labels_are_audited_and_exported(labelled: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(labelled, root)
    with pytest.raises(DataError, match="nobody has decided a pair yet: `rlaif view`"):
        run("eval", "audit", str(root), "--people", "all")
    people = People(root)
    preferences = RunStore.open_readonly(root).table("preferences").read()
    preferred = [p for p in preferences if p.status == "preferred"]
    assert len(preferred) >= 4
    for i, p in enumerate(preferred[:4]):
        agrees = "first" if p.first_is_chosen else "second"
        other = "second" if p.first_is_chosen else "first"
        people.add(decision("Ann", p.pair.id, other if i == 3 else agrees))
    with pytest.raises(DataError, match="nobody has decided a pair drawn at random yet"):
        run("eval", "audit", str(root), "--people", "random")
    with pytest.raises(ConfigError, match="of all or random pairs, got 'some'"):
        run("eval", "audit", str(root), "--people", "some")
    assert "what people decided" in run("eval", "audit", str(root), "--people", "all")
    audit = json.loads((root / "evaluation" / "audit.json").read_text())
    assert audit["known_from"] == "people"
    assert audit["known"]["pairs"] == 4
    assert audit["known"]["accuracy"]["value"] == 0.75
    people.add(decision("Bob", preferred[0].pair.id, "tie"))
    people.add(decision("Bob", preferred[1].pair.id, "skip"))
    told = run("export", str(root), str(tmp_path / "people.jsonl"), "--what", "people")
    assert "4 preferences written" in told
    back = {p.id: p for p in read_pairs(str(tmp_path / "people.jsonl"))}
    labels = {
        (p.id if p.id in back else mirrored(p.id)): p for p in (q.pair for q in preferred[:4])
    }
    assert back.keys() == labels.keys()
    said = people.labels()
    for name, pair in labels.items():
        label = back[name].label
        assert label is not None
        assert (label if name == pair.id else 1 - label) == said[pair.id]
    assert sorted(said.values(), key=lambda p: abs(p - 0.5))[0] in (0.25, 0.75)


def decide(root: Path, i: int, agrees: bool, who: str = "Ann", mirror: bool = False) -> str:
    """Has somebody decide the i-th preferred pair of a run; returns its id."""
    rows = RunStore.open_readonly(root).table("preferences").read()
    p = [row for row in rows if row.by_verdicts[0] == "preferred"][i]
    first = ((p.by_verdicts[1] or 0) > 0.5) == agrees
    if mirror:
        choice = "second" if first else "first"
        People(root).add(decision(who, mirrored(p.pair.id), choice))
    else:
        People(root).add(decision(who, p.pair.id, "first" if first else "second"))
    return p.pair.id


def kept(root: Path) -> dict[str, Any]:
    return {row.pair.id: row for row in RunStore.open_readonly(root).table("preferences").read()}


def test_peoples_decisions_stand_in_labels_and_labels_know_when_there_are_more(
    labelled: Path, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    shutil.copytree(labelled, root)
    before = kept(root)
    override = ("label", str(root), "--set", "preferences.people=override")
    told = " ".join(run(*override).split())
    assert "nobody has decided a pair of this run yet" in told
    assert kept(root) == before
    assert "out of date" not in run("status", str(root))
    turned = decide(root, 0, agrees=False)
    assert "the labels: what people decided has changed since" in " ".join(
        run("status", str(root)).split()
    )
    agreed = decide(root, 1, agrees=True, mirror=True)
    split = decide(root, 2, agrees=False)
    decide(root, 2, agrees=True, who="Bob")
    told = " ".join(run(*override).split())
    assert "(0 new)" in told
    assert "3 labels are people's; 2 of them say something else than the judge's alone" in told
    after = kept(root)
    assert after[turned].p_first == float(not before[turned].first_is_chosen)
    assert after[turned].by_verdicts == ("preferred", before[turned].p_first)
    assert after[agreed].p_first == float(before[agreed].first_is_chosen)
    assert (after[split].status, after[split].p_first) == ("tie", 0.5)
    others = before.keys() - {turned, agreed, split}
    assert {k: after[k] for k in others} == {k: before[k] for k in others}
    manifest = json.loads((root / "manifest.json").read_text())
    about = manifest["stages"]["label"]["people"]
    assert about == {"how": "override", "pairs": 3, "changed": 2}
    assert "out of date" not in run("status", str(root))
    decide(root, 3, agrees=False)
    assert "the labels: what people decided has changed since" in " ".join(
        run("status", str(root)).split()
    )
    run("label", str(root))
    assert "out of date" not in run("status", str(root))
    joined = run("label", str(root), "--set", "preferences.people=join")
    assert "4 labels have people's word in them" in " ".join(joined.split())
    after = kept(root)
    assert after[turned].p_first == pytest.approx(
        (before[turned].p_first + float(not before[turned].first_is_chosen)) / 2
    )
    run("label", str(root), "--set", "preferences.people=null")
    assert kept(root) == before


def test_the_audit_and_its_temperature_are_of_the_judge_whatever_people_do_to_labels(
    labelled: Path, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    shutil.copytree(labelled, root)
    for i, agrees in enumerate([True, True, True, False]):
        decide(root, i, agrees)

    def audited() -> Any:
        run("eval", "audit", str(root), "--people", "all")
        return json.loads((root / "evaluation" / "audit.json").read_text())["known"]

    alone = audited()
    assert alone["accuracy"]["value"] == 0.75
    t = alone["temperature"]["value"]
    assert t is not None
    options = ("--set", "preferences.people=override", "--set", "preferences.temperature=audit")
    told = run("label", str(root), *options)
    assert f"labels at the temperature {t:.3g}" in told
    assert "out of date" not in run("status", str(root))
    again = audited()  # people are not measured against themselves
    assert again["accuracy"] == alone["accuracy"]
    assert again["temperature"]["value"] == t
    assert "out of date" not in run("status", str(root))
    decide(root, 3, agrees=True)
    told = " ".join(run("status", str(root)).split())
    assert "the audit's temperature: what people decided has changed since" in told
    assert "the audit: what people decided has changed since" in told


def test_what_people_decided_is_learnt(labelled: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(labelled, root)
    small = ("--set", "train.judge.epochs=1", "--set", "train.judge.held_out=0")
    with pytest.raises(DataError, match="nobody has decided a pair yet"):
        run("train", "judge", str(root), "--labels", "people", *small)
    for i, agrees in enumerate([False, False, True]):
        decide(root, i, agrees, mirror=i == 1)
    told = run("train", "judge", str(root), "--labels", "people", *small)
    assert "judge: 3 pairs" in told
    small = ("--set", "train.reward.epochs=1", "--set", "train.reward.held_out=0")
    told = run("train", "reward", str(root), "--labels", "people", "--model", "tiny", *small)
    assert "reward: 3 pairs" in told
    made = json.loads((root / "manifest.json").read_text())["made"]
    assert {"pairs", "decisions"} < made["models/judge"].keys()
    assert {"pairs", "decisions"} < made["models/reward"].keys()
    decide(root, 3, agrees=True)
    told = " ".join(run("status", str(root)).split())
    assert "models/judge: what people decided has changed since" in told
    assert "models/reward: what people decided has changed since" in told


def test_agreement_is_with_the_judge_alone_where_people_override(
    labelled: Path, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    shutil.copytree(labelled, root)
    for i in range(4):
        decide(root, i, agrees=i == 0)

    def rater() -> Any:
        made = Index(root).made
        places = made.run("SELECT id, place FROM facts ORDER BY n")
        [ann] = Rated()(made, People(root).read()).raters
        return ann.judge.same_side.value, places

    before = rater()
    assert before[0] == 0.25
    run("label", str(root), "--set", "preferences.people=override")
    assert rater() == before
