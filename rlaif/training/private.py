"""What TRL and Transformers do not promise, and is used all the same: all of it goes by here.

Names that begin with an underscore may change in any version. TRL is pinned to the minor versions
that were tested (`pyproject.toml`), and what is not there is said before anything is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, TypeVar

from rlaif.errors import ConfigError

TRL = ("1.16",)  # the minor versions that were tested; `pyproject.toml` allows no others
Class = TypeVar("Class", bound=type)


def on_trl(*private: str) -> Callable[[Class], Class]:
    """Marks a trainer that overrides private methods of TRL's, by their names.

    ConfigError unless TRL is of a tested version and has each of them: an override of nothing would
    never be called, and TRL would do as it likes.
    """

    def checked(trainer: Class) -> Class:
        installed = version("trl")
        if not any(f"{installed}.".startswith(f"{minor}.") for minor in TRL):
            raise ConfigError(
                f"TRL {installed} is installed, and rlaif's trainers were tested with "
                f"{' and '.join(TRL)}: pip install 'trl=={TRL[-1]}.*'"
            )
        theirs = next(c for c in trainer.__mro__ if c.__module__.startswith("trl."))
        for name in private:
            if not hasattr(theirs, name):
                raise ConfigError(
                    f"TRL {installed} has no {name}, which {trainer.__name__} overrides: "
                    f"pip install 'trl=={TRL[-1]}.*'"
                )
        return trainer

    return checked


@contextmanager
def unspread() -> Iterator[None]:
    """Loads models whole under DeepSpeed's ZeRO-3, too.

    Transformers would spread them at once, and what is spread computes nothing before training:
    no reference's log-probabilities, no trial. It keeps a weak reference to DeepSpeed's config, by
    which it knows, and which is put aside meanwhile.
    """
    from transformers.integrations import deepspeed

    name = "_hf_deepspeed_config_weak_ref"
    if not hasattr(deepspeed, name):
        if not deepspeed.is_deepspeed_zero3_enabled():
            yield
            return
        raise ConfigError(
            f"Transformers {version('transformers')} has no {name}, without which models cannot be "
            "loaded under ZeRO-3: take FSDP2, or the version of Transformers in constraints.txt"
        )
    known = getattr(deepspeed, name)
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        setattr(deepspeed, name, known)


def one_gpu(arguments: Any) -> Any:
    """Transformers' arguments, kept from DataParallel: several GPUs are `accelerate launch`'s."""
    if arguments.world_size == 1 and arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments
