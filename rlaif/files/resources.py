"""Find what ships with the package: constitutions, prompts, configs and the tiny model's weights.

In a wheel these folders lie inside the package; in a checkout they lie beside it, where people edit
them. A path always wins over a shipped name.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from rlaif.errors import ConfigError, nearest
from rlaif.files.small import is_file

PACKAGE = Path(__file__).resolve().parent.parent
TINY_WEIGHTS = PACKAGE / "tiny" / "weights"


def folder(kind: str) -> Path:
    """The shipped folder `constitutions`, `prompts` or `configs`."""
    inside = PACKAGE / kind
    return inside if inside.is_dir() else PACKAGE.parent / kind


def find(kind: str, name: str, suffix: str) -> Path:
    """A path if it exists, else the shipped file `name` + `suffix`; the error names what exists."""
    path = Path(name)
    if is_file(path):
        return path
    looks_like_path = path.suffix == suffix or name.startswith((".", "/"))
    shipped = folder(kind) / (name if path.suffix == suffix else name + suffix)
    if not path.is_absolute() and is_file(shipped):
        return shipped
    beside = {other.stem: str(other) for other in path.parent.glob(f"*{suffix}")}
    close = get_close_matches(path.stem, beside, n=1, cutoff=0.6)
    meant = f" Did you mean '{beside[close[0]]}'?" if close else ""
    if looks_like_path:
        raise ConfigError(
            f"no such file: {name} (looked in {Path.cwd()} and in the shipped {kind}).{meant}"
        )
    raise ConfigError(
        f"'{name}' is no such file (looked in {Path.cwd()}) and none of the shipped {kind}."
        f"{meant or nearest(name, names(kind, suffix))}"
    )


def names(kind: str, suffix: str) -> list[str]:
    """The shipped names of a kind, e.g. `pairwise/default` for prompts."""
    root = folder(kind)
    # what lies below `configs` is Accelerate's, not ours
    found = root.glob(f"*{suffix}") if kind == "configs" else root.rglob(f"*{suffix}")
    return sorted(str(p.relative_to(root).with_suffix("")) for p in found)


def model_path(name: str) -> str:
    """`tiny` is the embedded model unless a model folder of that name lies here."""
    here = is_file(Path(name, "config.json"))
    return str(TINY_WEIGHTS) if name == "tiny" and not here else name
