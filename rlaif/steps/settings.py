"""How a step over a store is done: how responses are revised, and the workers of Ray."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rlaif.engines.base import Sampling
from rlaif.files.settings import Place, Section, Seed


class ReviseSettings(Section):
    """Critique → revision: a model criticises its own responses and writes them anew."""

    rounds: int = Field(default=4, ge=1)
    """Revisions of a response, one after the other. A principle is drawn for each."""
    template: Annotated[str, Place("template")] = "revise/default"
    """A prompt template by path or shipped name; `revise/fewshot` has examples."""
    temperature: float = Field(default=1.0, ge=0)
    """Softmax temperature of critiques and revisions; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling: the smallest set of tokens with at least this probability."""
    max_new_tokens: int = Field(default=512, ge=1)
    """Longest critique or revision in tokens; one that is cut is not used."""
    stop: tuple[str, ...] = ()
    """Strings that end one; they are not part of it."""
    seed: Seed = 7
    """Of the draws and of the texts."""

    @property
    def sampling(self) -> Sampling:
        """How each text is sampled: once."""
        return Sampling(
            n=1,
            temperature=self.temperature,
            top_p=self.top_p,
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
            seed=self.seed,
        )


class RaySettings(Section):
    """With `executor: ray`: the workers. None of this can change results."""

    workers: int | None = Field(default=None, ge=1)
    """Workers, each with a model of its own; null starts one for each share of the cluster's GPUs,
    or one where there are none."""
    gpus: float | None = Field(default=None, ge=0)
    """GPUs a worker; null gives 1 where the cluster has any. A model spread over several by
    `tensor_parallel_size` needs as many."""
    cpus: float = Field(default=1.0, gt=0)
    """CPUs a worker, of those that Ray counts. Reading needs some too: leave two of a cluster's."""
    address: str | None = None
    """The cluster's address, or `auto`; null takes RAY_ADDRESS, else starts Ray on this machine.
    On a cluster, name models and adapters by paths that every machine has."""
