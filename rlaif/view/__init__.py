"""A local web page over a run's store: read pairs and verdicts, label by hand, compare two runs.

`serve` starts it; `rlaif view` is the command. FastAPI, Jinja2 and htmx make the page, DuckDB
searches the Parquet shards. See `docs/view.md`.
"""
