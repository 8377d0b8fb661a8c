"""Reads a run's tables: what each principle said of the responses that the labels prefer.

    python examples/read_a_store.py runs/demo

A table is a folder of Parquet files, which pandas, Polars and DuckDB read too. In DuckDB:

    select v.principle, avg(if(p.p_first > 0.5, v.p_first, 1 - v.p_first)) as for_preferred,
           count(v.p_first) as told, count(*) - count(v.p_first) as abstained
    from 'runs/demo/verdicts/*.parquet' v join 'runs/demo/preferences/*.parquet' p using (pair_id)
    where p.status = 'preferred' group by v.principle order by v.principle

Verdicts of a principle that the constitution no longer has stay in their table, and count here.
"""

import sys
from collections import defaultdict

import pyarrow.parquet as pq

run = sys.argv[1]
labels = pq.read_table(f"{run}/preferences", columns=["pair_id", "status", "p_first"]).to_pylist()
prefers_first = {x["pair_id"]: x["p_first"] > 0.5 for x in labels if x["status"] == "preferred"}

said = defaultdict(list)  # by principle: P(the preferred response is better), or an abstention
for v in pq.read_table(f"{run}/verdicts").to_pylist():
    if v["pair_id"] in prefers_first:
        p = v["p_first"]
        said[v["principle"]].append(p if p is None or prefers_first[v["pair_id"]] else 1 - p)

for principle, found in sorted(said.items()):
    told = [p for p in found if p is not None]
    mean = f"{sum(told) / len(told):.4f}" if told else "-"
    print(f"{principle} {mean} {len(told)} {len(found) - len(told)}")
