"""The policy, the fixed reference and the value function of PPO, over the states of a part.

One pass through the trunk serves policy and value where they share it. The head of the language
model, the dearest part of a small one, sees only the states of completions: no prompt, no padding.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlaif.engines.faster import apply
from rlaif.engines.head import logits_at
from rlaif.errors import TrainingError
from rlaif.files.resources import model_path
from rlaif.training.losses import token_logprobs
from rlaif.training.models import Loaded, add_lora, load_reward
from rlaif.training.reward import Normalisation, read_normalisation
from rlaif.training.rl.nlpo import restrict
from rlaif.training.rl.packing import learn_packing
from rlaif.training.rl.ppo_losses import categorical_entropy
from rlaif.training.rl.rollout import Part
from rlaif.training.rl.settings import PPOSettings
from rlaif.training.settings import LoraSettings


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the networks say of N states: log-probability of the token chosen, value, entropy.

    Where no token was chosen, in the state after the end, `logp` and `entropy` are 0. With masked
    sampling these two are of the allowed tokens only; `free` is `logp` without the mask, and has no
    gradient.
    """

    logp: Tensor
    free: Tensor
    values: Tensor
    entropy: Tensor


class SharedCritic(nn.Module):
    """V = w·h + b on the policy's own last hidden state; 0 before training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def hidden(self, part: Part, hidden: Tensor) -> Tensor:
        """The hidden states (N, d) that values are read from: the policy's."""
        del part
        return hidden

    def values(self, hidden: Tensor) -> Tensor:
        """Values (N,) of hidden states (N, d)."""
        found: Tensor = self.head(hidden)[:, 0]
        return found


class SeparateCritic(nn.Module):
    """A model of its own, its head at every state: a reward model's, or one that begins at 0.

    From a reward model, values start as its normalised rewards of what is written so far.
    """

    def __init__(
        self, name: str, lora: LoraSettings | None, seed: int, adapter: str | None = None
    ) -> None:
        super().__init__()
        loaded = load_reward(name, adapter=adapter)
        if "score" not in loaded.model._modules:
            raise TrainingError(f"{name}: a value model needs a decoder with a `score` head")
        self.scale = Normalisation()
        if any("no reward head" in note for note in loaded.notes):
            nn.init.zeros_(loaded.model.score.weight)
        else:
            self.scale = read_normalisation(Path(model_path(name)))
        inner = loaded.model
        if lora is not None:
            add_lora(loaded, lora, "reward", seed)
        self.model = loaded.model
        self._inner = [inner]  # in a list: registered once, as `model`

    @property
    def inner(self) -> Any:
        """The reward model itself, within its adapters if it has any."""
        return self._inner[0]

    def hidden(self, part: Part, hidden: Tensor) -> Tensor:
        """Hidden states (N, d) of a trunk of its own; the policy's are not looked at."""
        del hidden
        trunk = self.inner.base_model
        with apply.last_layer_at(trunk, part.where):
            own = trunk(**part.inputs, use_cache=False).last_hidden_state
        picked: Tensor = own.reshape(-1, own.shape[-1]).index_select(0, part.where)
        return picked

    def values(self, hidden: Tensor) -> Tensor:
        """Values (N,) of hidden states (N, d), normalised as the reward model's rewards are."""
        raw: Tensor = self.inner.score(hidden)[:, 0]
        return self.scale.gain * raw + self.scale.bias


class ActorCritic:
    """Policy, reference and values. Log-probabilities are those of logits over the temperature."""

    def __init__(self, loaded: Loaded, device: str, settings: PPOSettings) -> None:
        loaded.model.to(device)
        apply.train(loaded.model, device)
        self.loaded, self.temperature = loaded, settings.temperature
        self.longest_packed = self._pack(loaded.model)  # tokens of a sequence; 0: all are padded
        lora = settings.lora
        self._frozen = None if lora else copy.deepcopy(loaded.model).requires_grad_(False).eval()
        if lora is not None:
            add_lora(loaded, lora, "policy", settings.seed)
        self.policy = loaded.model
        self.critic: SharedCritic | SeparateCritic
        if settings.value == "shared":
            self.critic = SharedCritic(self.policy.get_output_embeddings().in_features)
        else:
            own = settings.value_model
            start = (own, None) if own else (loaded.source, loaded.adapter)
            self.critic = SeparateCritic(start[0], lora, settings.seed, start[1])
        self.critic.to(device)
        apply.train(self.critic, device)
        if isinstance(self.critic, SeparateCritic):
            self.longest_packed = min(self.longest_packed, self._pack(self.critic.inner))
        if settings.gradient_checkpointing:
            self.checkpoint_gradients()
        self.policy.train()  # dropout is off; gradient checkpointing asks for it
        self.autocast: Any = (
            (lambda: torch.autocast(self.policy.device.type, torch.bfloat16))
            if settings.bf16
            else nullcontext
        )

    def _pack(self, model: Any) -> int:
        longest, reason = learn_packing(model)
        if reason:
            self.loaded.notes.append(f"sequences are padded to the longest of a pass: {reason}")
        return longest

    def checkpoint_gradients(self) -> None:
        """From now on computes activations twice instead of keeping them."""
        own = [self.critic.model] if isinstance(self.critic, SeparateCritic) else []
        for model in [self.policy, *own]:
            model.gradient_checkpointing_enable({"use_reentrant": False})

    @property
    def device(self) -> Any:
        return self.policy.device

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name."""
        both = nn.ModuleDict({"policy": self.policy, "critic": self.critic})
        return {name: p for name, p in both.named_parameters() if p.requires_grad}

    def outcome(self, part: Part, *, entropy: bool, bits: Tensor | None = None) -> Outcome:
        """Policy and values of a part, differentiable; without `entropy` that is 0.

        `bits` (N, V/8) are the tokens allowed in its states; None allows all.
        """
        with self.autocast():
            logits, hidden = at_states(self.policy, part)
            own = self.critic.hidden(part, hidden)
        values = self.critic.values(own.float())  # in full precision, as small steps matter here
        free = None
        if bits is not None:
            free = self._free(logits.detach(), part)
            logits = restrict(logits, bits)
        logp = token_logprobs(logits, part.tokens, self.temperature) * part.acts
        free = logp.detach() if free is None else free
        if not entropy:
            return Outcome(logp, free, values, torch.zeros_like(logp))
        uncertain = categorical_entropy(logits.float() / self.temperature) * part.acts
        return Outcome(logp, free, values, uncertain)

    def _free(self, logits: Tensor, part: Part) -> Tensor:
        return token_logprobs(logits, part.tokens, self.temperature) * part.acts

    @torch.no_grad()
    def reference_logp(self, part: Part) -> Tensor:
        """log π_ref of the tokens chosen, (N,): the frozen copy, or the policy without adapters."""
        with self.autocast(), self.reference() as model:
            logits, _ = at_states(model, part)
        return self._free(logits, part)

    @contextlib.contextmanager
    def reference(self) -> Iterator[Any]:
        """The model as it was before training."""
        if self._frozen is not None:
            yield self._frozen
        else:
            with self.policy.disable_adapter():
                yield self.policy


def at_states(model: Any, part: Part) -> tuple[Tensor, Tensor]:
    """Logits (N, V) and last hidden states (N, d) of a part's states.

    Padding, if any, stands right of every token, so causal attention keeps it out.
    """
    with apply.last_layer_at(model, part.where):
        return logits_at(model, part.where, **part.inputs)
