"""A run's pairs, searched: numbers by pair in DuckDB's memory, texts where they lie in the shards.

When a run is opened, and again when its shards have changed, the verdicts that count are found by
their keys (those of a former wording or judge stay in the store and are not read) and summed up
into one row a pair: about 40 bytes a verdict. A filter is then a query over those rows; only a
search for words reads the texts, and only those of the pairs on a page become Python objects.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif.errors import DataError, missing_extra
from rlaif.judges.base import verdict_key
from rlaif.judges.ensembles import SURE_OF_AN_ORDER, OrderRule
from rlaif.records import Message, Pair, Prompt, Verdict
from rlaif.store import RunStore, lineage
from rlaif.store.schemas import SCHEMAS

if TYPE_CHECKING:
    import duckdb

Json = dict[str, Any]
MEMORY = "192MB"  # that DuckDB may take; what is larger goes to a temporary folder
TABLES = ("pairs", "verdicts", "preferences")
REWARDS = ("models", "reward", "scores.parquet")  # what the run's reward model gives its pairs
AGAIN = 5  # times that rows are read again when a writer replaces them
REST = 5.0  # a run that is being written is summed up again after so many times what that took


def connect() -> duckdb.DuckDBPyConnection:
    """A database in memory that reads no file but those it is told, and loads no extension."""
    try:
        import duckdb
    except ImportError as error:
        raise missing_extra("DuckDB", "view", "`rlaif view`") from error
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": MEMORY,
        "threads": 2,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "python_enable_replacements": False,
    }
    return duckdb.connect(":memory:", config=settings)


@dataclass(frozen=True, slots=True)
class Asked:
    """What made the labels, by the manifest: principles in their order, and the judges."""

    principles: tuple[Json, ...]
    judges: tuple[tuple[str, Json], ...]  # name ("" for one judge) and what is told of it
    constitution: str = ""
    orders: OrderRule = "mean"  # how the two orders of a question are made one
    agreeing: bool = False  # and whether they say ½ where they lean to different sides

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Asked:
        made = manifest.get("labelled") or manifest.get("constitution") or {}
        judge = manifest.get("judge") or {}
        jury = judge.get("jury") or ({"": judge} if judge else {})
        rule = ((manifest.get("made") or {}).get(lineage.LABELS) or {}).get("rule") or {}
        return cls(
            tuple(made.get("principles") or ()),
            tuple(jury.items()),
            str(made.get("name") or ""),
            rule.get("orders", "mean"),
            rule.get("aggregate") == "sign_agreement",
        )

    @property
    def by_key(self) -> bool:
        """Whether a verdict's key can be told from its row: that of a list depends on the others'
        texts, and that of a judge that reads thoughts on those."""
        told = [judge for _, judge in self.judges]
        return bool(told) and all(
            judge.get("fingerprint") and judge.get("method") != "listwise" for judge in told
        )


def key_sql(fingerprint: str) -> str:
    """SQL for the key that this judge's verdict has, as `judges.base.verdict_key` makes it, of
    columns `pair_id`, `order` and `wording`, which is JSON of the principle's id and text."""
    head = "'" + f'["{fingerprint}","'.replace("'", "''") + "'"
    text = f"""{head} || pair_id || '","' || "order" || '",' || wording || ']'"""
    return f"left(sha256({text}), 20)"


def wording(principle: Mapping[str, Any]) -> str:
    """A principle as a key holds it."""
    told = [principle["id"], str(principle.get("compare"))]
    return json.dumps(told, ensure_ascii=False, separators=(",", ":"))


class Index:
    """A run to look at. Its methods may be called by several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = RunStore.open_readonly(root)
        self._lock = threading.Lock()
        self._made: Made | None = None
        self._checked = 0.0  # when the files were last looked at

    @property
    def made(self) -> Made:
        """What is known now; made anew when the run's files have changed, but not all the time."""
        with self._lock:
            now = time.monotonic()
            if self._made is not None and now < self._checked + REST * self._made.seconds:
                return self._made
            self._checked = now
            for left in range(AGAIN, -1, -1):
                files = _files(self.store)
                if self._made is not None and self._made.files == files:
                    return self._made
                try:
                    self._made = Made(self.root, files)
                    self._checked = time.monotonic()
                    return self._made
                except OSError:  # replaced by a writer while it was read
                    if not left:
                        raise
            raise AssertionError("unreachable")

    def manifest(self) -> Json:
        """What the stages said about themselves."""
        return self.store.read_manifest()

    def pairs(self, ids: Sequence[str]) -> dict[str, Pair]:
        """Pairs with their texts, by id; one that is not there is left out."""
        rows = self.made.rows("pairs", "id", ids)
        return {row["id"]: _pair(row) for row in rows}

    def verdicts(self, pair_id: str) -> list[tuple[Verdict, str | None]]:
        """All verdicts on a pair, each with its juror's name; None where it does not count."""
        made = self.made
        found = []
        for row in made.rows("verdicts", "pair_id", [pair_id]):
            row["rationales"] = tuple(row["rationales"] or ())
            row["thoughts"] = tuple(row["thoughts"] or ())
            row["thoughts_cut"] = row["thoughts_cut"] or 0
            found.append(Verdict(**row))
        counting = made.counting(found)
        return [(verdict, counting.get(verdict.key)) for verdict in found]


def _files(store: RunStore) -> dict[str, tuple[str, ...]]:
    """The shards of each table, and the manifest's state: what the sums depend on."""
    found = {
        name: tuple(map(str, store.table(name).files()))  # type: ignore[call-overload]
        for name in TABLES
    }
    manifest = store.path("manifest.json")
    return {**found, "": (_state(manifest), _state(store.path(*REWARDS)))}


def _state(path: Path) -> str:
    told = path.stat() if path.is_file() else None
    return str(told and (told.st_mtime_ns, told.st_size, told.st_ino))


class Made:
    """The sums over a run, as its files were: what `Index.made` gives.

    Tables: `facts`, one row a pair (n counts them in the order of the run), and `opinion`, one a
    question (a pair, a principle, a juror). There p1 and p2 are P(first is better) with the first
    shown first and second, p their mean, null where one of them is an abstention. In `facts`,
    `orders`, `principles` and `jurors` say how far the two orders of one question, two principles,
    or two jurors on one principle lean to different sides; 0 where they do not. `place` counts the
    pairs from 0 by the margin of the judge's own label, which `judged` and `p_judged` are also
    where people had a word in it; `people` is that word (`preferences.people`), else null.
    `reward_first` and `reward_second` are by the run's reward model, `heads` the spread of P(first
    is better) over the heads of its ensemble, 0 without one. `prompt` is the same for pairs of one
    prompt.
    """

    def __init__(self, root: Path, files: dict[str, tuple[str, ...]]) -> None:
        started = time.monotonic()
        self.files = files
        store = RunStore.open_readonly(root)
        for name in TABLES:
            store.table(name)  # type: ignore[call-overload]  # looks for damage
        self.asked = Asked.of(store.read_manifest())
        self._db = connect()
        for name in TABLES:
            self._db.register("nothing", SCHEMAS[name].empty_table())
            self.run(f"CREATE TABLE no_{name} AS SELECT * FROM nothing", own=True)
            self._db.unregister("nothing")
        self._pairs()
        self._rewards(store.path(*REWARDS))
        self._opinions()
        self._facts()
        [found] = self.run("SELECT count(*) AS pairs, sum(verdicts)::BIGINT AS verdicts FROM facts")
        self.pairs, self.verdicts = int(found["pairs"]), int(found["verdicts"] or 0)
        told = self.run("SELECT principle FROM asked ORDER BY c")
        self.principles = tuple(str(row["principle"]) for row in told)
        self.seconds = time.monotonic() - started

    def run(self, sql: str, values: Sequence[Any] = (), *, own: bool = False) -> list[Json]:
        """The rows of a query, by column. FileNotFoundError where a shard is gone."""
        import duckdb

        try:
            with nullcontext(self._db) if own else self._db.cursor() as cursor:
                done = cursor.execute(sql, values or None)
                names = [column[0] for column in done.description or ()]
                return [dict(zip(names, row, strict=True)) for row in done.fetchall()]
        except duckdb.IOException as error:
            raise FileNotFoundError(str(error)) from error

    def shards(self, name: str) -> str:
        """SQL that reads a table's shards; the younger columns are null in older shards."""
        paths = ", ".join("'" + path.replace("'", "''") + "'" for path in self.files[name])
        read = f"SELECT * FROM read_parquet([{paths}], union_by_name=true) UNION ALL BY NAME "
        return f"({read if paths else ''}SELECT * FROM no_{name})"

    def rows(self, name: str, key: str, values: Sequence[str]) -> list[Json]:
        """The rows of a table with one of these values in a column, as they were written."""
        if not values:
            return []
        marks = ", ".join("?" for _ in values)
        return self.run(f'SELECT * FROM {self.shards(name)} WHERE "{key}" IN ({marks})', values)

    def _pairs(self) -> None:
        # Of rows with one id the first wins, as the store reads.
        self.run(
            f"""CREATE TABLE pair AS SELECT (row_number() OVER (ORDER BY place))::INTEGER AS n,
            * EXCLUDE (place) FROM (SELECT id, min(place) AS place,
            arg_min(label, place)::FLOAT AS known, arg_min(prompt_source, place) AS source,
            arg_min(len_first, place) AS len_first, arg_min(len_second, place) AS len_second,
            arg_min(prompt, place) AS prompt FROM (SELECT id, label, prompt_source,
            hash(prompt) AS prompt, length(first)::INTEGER AS len_first,
            length(second)::INTEGER AS len_second, row_number() OVER () AS place
            FROM {self.shards("pairs")}) GROUP BY id)"""
        )
        self.run(
            f"""CREATE TABLE preference AS SELECT n, any_value(status) AS status,
            any_value(p_first)::FLOAT AS p, any_value(reason) AS reason,
            any_value(people)::FLOAT AS people,
            any_value(coalesce(status_judged, status)) AS judged, any_value(CASE WHEN
            status_judged IS NULL THEN p_first ELSE p_judged END)::FLOAT AS p_judged
            FROM {self.shards("preferences")} JOIN pair ON id = pair_id GROUP BY n"""
        )

    def _rewards(self, path: Path) -> None:
        told = "NULL AS reward_first, NULL AS reward_second, NULL AS spread, NULL AS pair_id"
        source = f"(SELECT {told} WHERE false)"
        if path.is_file():
            source = "read_parquet('" + str(path).replace("'", "''") + "')"
        import duckdb

        try:
            self.run(
                f"""CREATE TABLE reward AS SELECT n, any_value(reward_first)::FLOAT AS reward_first,
                any_value(reward_second)::FLOAT AS reward_second, any_value(spread)::FLOAT AS spread
                FROM {source} JOIN pair ON id = pair_id GROUP BY n"""
            )
        except duckdb.Error as error:
            [why, *_] = str(error).splitlines()
            raise DataError(f"{path}: {why}. Remove it, or train the reward model again") from error

    def _opinions(self) -> None:
        """Keys are costly to compute, so they are looked at only where several rows answer a
        question, or several jurors may have."""
        self.run("CREATE TABLE asked (c INTEGER, principle VARCHAR, wording VARCHAR)")
        for c, principle in enumerate(self.asked.principles):
            self.run("INSERT INTO asked VALUES (?, ?, ?)", [c, principle["id"], wording(principle)])
        if not self.asked.principles:  # while labels are first made nobody has said what is asked
            self.run(
                "INSERT INTO asked SELECT (row_number() OVER (ORDER BY principle) - 1)::INTEGER, "
                f"principle, '' FROM (SELECT DISTINCT principle FROM {self.shards('verdicts')})"
            )
        alone = len(self.asked.judges) < 2
        said, mean = self._over_orders()
        ways = [self._all()] * alone + [self._by_key()] * self.asked.by_key + [self._last()]
        for way in ways:
            self.run(
                f"""CREATE OR REPLACE TABLE verdict AS SELECT n, c::UTINYINT AS c,
                juror::UTINYINT AS juror, "order" = 'first_second' AS straight, p_first::FLOAT AS p,
                {said} AS said, reason IS NOT NULL AS abstained
                FROM ({way}) JOIN pair ON id = pair_id"""
            )
            [found] = self.run(
                "SELECT max(rows) AS most FROM (SELECT count(*) AS rows FROM verdict "
                "GROUP BY n, c, juror, straight)"
            )
            if found["most"] == 1:
                break
        self.run(
            f"""CREATE TABLE opinion AS SELECT n, c, juror,
            max(CASE WHEN straight THEN p END) AS p1,
            max(CASE WHEN NOT straight THEN p END) AS p2,
            (count(*) FILTER (abstained))::UTINYINT AS abstained, count(*)::UTINYINT AS verdicts,
            CASE WHEN bool_or(abstained) THEN NULL ELSE {mean} END AS p
            FROM verdict GROUP BY n, c, juror ORDER BY n, c, juror"""
        )
        self.run("DROP TABLE verdict")

    def _over_orders(self) -> tuple[str, str]:
        """SQL for what is averaged of a verdict, and for the opinion that the orders of a question
        are made: `judges.ensembles.over_orders`."""
        said, mean = "NULL", "avg(p)"
        if self.asked.orders == "mean_logits":
            sure = f"greatest({SURE_OF_AN_ORDER}, least(1 - {SURE_OF_AN_ORDER}, p_first))"
            said, mean = f"ln({sure}) - ln(1 - {sure})", "1 / (1 + exp(-avg(said)))"
        if self.asked.agreeing:
            mean = f"CASE WHEN min(p) < 0.5 AND max(p) > 0.5 THEN 0.5 ELSE {mean} END"
        return said, f"({mean})::FLOAT"

    def _all(self) -> str:
        """SQL for all verdicts, as they are where each question was asked once."""
        return f"SELECT *, 0 AS juror FROM {self.shards('verdicts')} JOIN asked USING (principle)"

    def _by_key(self) -> str:
        """SQL for those whose key says that the judge of now would give them again."""
        juror = " ".join(
            f"WHEN key = {key_sql(str(judge.get('fingerprint')))} THEN {j}"
            for j, (_, judge) in enumerate(self.asked.judges)
        )
        return (
            f"SELECT * FROM (SELECT *, CASE {juror or 'WHEN true THEN NULL'} END AS juror "
            f"FROM {self.shards('verdicts')} JOIN asked USING (principle)) WHERE juror IS NOT NULL"
        )

    def _last(self) -> str:
        """SQL for the last that each judge said of a question."""
        return (
            "SELECT *, dense_rank() OVER (ORDER BY judge) - 1 AS juror FROM (SELECT *, "
            f"row_number() OVER () AS place FROM {self.shards('verdicts')}) "
            "JOIN asked USING (principle) QUALIFY row_number() OVER "
            '(PARTITION BY pair_id, principle, "order", judge ORDER BY place DESC) = 1'
        )

    def _facts(self) -> None:
        between = "greatest(0, least(max(p) - 0.5, 0.5 - min(p)))::FLOAT"
        self.run(
            f"""CREATE TABLE fact AS SELECT n, {between} AS principles,
            coalesce(max(abs(p1 - p2)) FILTER ((p1 - 0.5) * (p2 - 0.5) < 0), 0)::FLOAT AS orders,
            sum(abstained)::INTEGER AS abstained, sum(verdicts)::INTEGER AS verdicts
            FROM opinion GROUP BY n"""
        )
        self.run("CREATE TABLE juror (n INTEGER, jurors FLOAT)")
        if self.run("SELECT 1 FROM opinion WHERE juror > 0 LIMIT 1"):
            self.run(
                f"INSERT INTO juror SELECT n, max(split) FROM (SELECT n, c, {between} AS split "
                "FROM opinion GROUP BY n, c) GROUP BY n"
            )
        self.run(
            """CREATE TABLE facts AS SELECT pair.*, coalesce(status, 'unlabelled') AS status, p,
            reason, people, judged, p_judged, reward_first, reward_second,
            coalesce(spread, 0)::FLOAT AS heads, abs(p - 0.5)::FLOAT AS margin,
            coalesce(orders, 0)::FLOAT AS orders,
            coalesce(principles, 0)::FLOAT AS principles, coalesce(jurors, 0)::FLOAT AS jurors,
            coalesce(abstained, 0)::INTEGER AS abstained,
            coalesce(verdicts, 0)::INTEGER AS verdicts,
            (row_number() OVER (ORDER BY abs(p_judged - 0.5) NULLS FIRST, n)
            - 1)::INTEGER AS place
            FROM pair LEFT JOIN preference USING (n) LEFT JOIN fact USING (n)
            LEFT JOIN juror USING (n) LEFT JOIN reward USING (n) ORDER BY n"""
        )
        for name in ("pair", "preference", "fact", "juror", "reward"):
            self.run(f"DROP TABLE {name}")

    def counting(self, verdicts: Sequence[Verdict]) -> dict[str, str]:
        """Of a pair's verdicts, those that count: the juror's name by the verdict's key."""
        if self.asked.by_key:
            words = {p["id"]: str(p.get("compare")) for p in self.asked.principles}
            found = {
                v.key: name
                for v in verdicts
                for name, judge in self.asked.judges
                if v.key == _key(str(judge["fingerprint"]), v, words.get(v.principle, ""))
            }
            if found:
                return found
        known = [v for v in verdicts if v.principle in self.principles]
        last = {(v.principle, v.order, v.judge): v for v in known}
        several = len({v.judge for v in last.values()}) > 1
        return {v.key: v.judge if several else "" for v in last.values()}


def _key(fingerprint: str, verdict: Verdict, compare: str) -> str:
    return verdict_key(fingerprint, verdict.pair_id, verdict.order, verdict.principle, compare)


def _pair(row: Json) -> Pair:
    messages = tuple(Message(m["role"], m["content"]) for m in row["prompt"])
    told = row["thoughts"]
    return Pair(
        Prompt(messages, row["prompt_source"]),
        row["first"],
        row["second"],
        row["label"],
        row["source"],
        None if told is None else (told[0], told[1]),
    )


def require_pairs(index: Index) -> None:
    """DataError for a run that holds nothing to look at."""
    if not index.made.pairs:
        raise DataError(
            f"{index.root}: no pairs to look at: run `rlaif sample`, or `rlaif label --pairs FILE`"
        )
