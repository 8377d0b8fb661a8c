"""The workshop of the embedded model: its corpus, its training and what measures it.

`build.py` makes `rlaif/tiny/weights` from nothing (docs/tiny-world.md). The package ships what
runs; this is not part of it.
"""
