"""Transformers as an engine: the reference for every log-probability of the project.

Scoring is one prefill: options are cut out of the log-softmax of the positions before their tokens,
and nothing is decoded. Logits are computed at those positions only.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from rlaif.engines.base import Generation, Sampling, Scores, Usage, Watched, hear, listener, tell
from rlaif.engines.beginning import lacks_beginning
from rlaif.engines.checkpoint import (
    Source,
    add_adapter,
    check_folder,
    check_head,
    check_plain,
    context_length,
    end_tokens,
    loading,
    own_templates,
    read_config,
    read_model,
    read_tokenizer,
    source_of,
)
from rlaif.engines.decoding import Ends, Row, decode_batch
from rlaif.engines.fingerprint import folder_fingerprint, module_fingerprint, run_fingerprint
from rlaif.engines.head import LOGIT_BYTES, head_at, in_parts
from rlaif.engines.packed import PackedModel, check_attention, obstacle
from rlaif.engines.settings import EngineSettings
from rlaif.engines.thinking import Mode
from rlaif.engines.tokens import Encoder, Ids, exclusive
from rlaif.engines.trial import LOOKS_AHEAD, TIMES_ITS_NOISE, TRIAL_WINDOW
from rlaif.engines.trie import Ints, Trie, build, common_prefix, next_pack
from rlaif.errors import EngineError
from rlaif.files.templates import Rendered

T = TypeVar("T")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Floats = npt.NDArray[np.float64]
_BATCH_TOKENS = {"cpu": 4_096, "cuda": 65_536}  # padded tokens a forward pass
_BLOCK = 64  # tokens: a prefix common to a call's requests is computed and kept in blocks
_PACK_TOKENS = {"cpu": 1_536, "cuda": 32_768}  # on a CPU, more is no faster


@dataclass(frozen=True, slots=True)
class _Request:
    """An option to score: token j of `targets` is looked up at position `start + j` of `ids`.

    `ids` are the prompt and all of the option but its last token; `slot` says whose score it is.
    """

    slot: tuple[int, int]  # (prompt, option)
    ids: Ids
    start: int
    targets: Ids


class HFEngine(Watched):
    """A causal language model of Transformers, from a folder, a hub name or from memory.

    `batch_tokens` bounds the padded tokens of one forward pass; it changes speed, and results
    by rounding only: in float32 on a CPU a probability by less than 1e-5.
    """

    closes_thoughts = True

    def __init__(self, model: str, settings: EngineSettings | None = None) -> None:
        settings = settings or EngineSettings()
        device = _device(settings.device)
        check_attention(settings.attention, device)
        source = source_of(model, settings.adapter)
        loaded, tokenizer = _load(source, device, _dtype(settings.dtype, device))
        self._setup(loaded, tokenizer, model, settings)
        folders = source.folders()
        self._fingerprint: str | None = folder_fingerprint(*folders)
        self._in_memory = False
        self.templates = own_templates(*folders)
        vocabulary = loaded.config.get_text_config(decoder=True).vocab_size
        wrong = lacks_beginning(self.encoder, vocabulary, partial(read_text, loaded))
        if wrong:
            warnings.warn(wrong, stacklevel=2)

    @classmethod
    def from_loaded(
        cls,
        model: Any,
        tokenizer: Any,
        name: str = "model",
        settings: EngineSettings | None = None,
    ) -> HFEngine:
        """An engine round a model in memory, such as a policy in training.

        Its weights may change between calls; `fingerprint` hashes them anew each time it is read.
        Of the settings it heeds `batch_tokens` and `attention`.
        """
        settings = settings or EngineSettings()
        engine = cls.__new__(cls)
        check_attention(settings.attention, str(model.device))
        engine._setup(model, tokenizer, name, settings)
        engine._fingerprint = None
        engine._in_memory = True
        engine.templates = {}
        return engine

    def _setup(self, model: Any, tokenizer: Any, name: str, settings: EngineSettings) -> None:
        self.name = name
        self.usage = Usage()
        self.model, self.tokenizer = model, tokenizer
        self.encoder = Encoder(tokenizer, name)
        self.device = str(model.device)
        self.max_length = context_length(model.config, tokenizer)
        self._warned = False
        self._budget = settings.batch_tokens or _BATCH_TOKENS.get(model.device.type, 8_192)
        vocabulary = model.get_input_embeddings().weight.shape[0]
        self._most_rows = max(1, LOGIT_BYTES // (vocabulary * model.dtype.itemsize))
        self._pack_budget = settings.batch_tokens or _PACK_TOKENS.get(model.device.type, 8_192)
        self._packed = PackedModel(model, settings.attention)
        self._packing: int | None = None  # longest path that may be packed; None: not tried yet
        self._window_said = False
        self._sharing: bool | None = None  # whether padded batches may share a prefix
        self._last_path: Ints = np.zeros(0, np.int32)
        self._eos = end_tokens(model.generation_config, tokenizer)

    @property
    def fingerprint(self) -> str:
        """Hash of `weights`, the chat template as it is rendered, dtype and context."""
        return run_fingerprint(
            self.weights, self.encoder.template_id, self.model.dtype, self.max_length
        )

    @property
    def weights(self) -> str:
        """Hash of the model alone: weights, config and tokenizer."""
        return self._fingerprint or module_fingerprint(self.model, self.tokenizer)

    def thinking_id(self, mode: Mode) -> str:
        """A hash of how the chat template is rendered in a mode; EngineError if it cannot think."""
        return self.encoder.thinking_id(mode)

    def close(self) -> None:
        """Frees the model. The engine cannot be used afterwards."""
        self.model = self._packed.model = None
        self._packed.forget()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # ---- score

    def score(self, prompts: Sequence[Rendered], options: Sequence[Sequence[str]]) -> list[Scores]:
        """Log P(option | prompt): the sum over the option's tokens, each given those before it."""
        logprobs: list[list[float]] = []
        too_long: set[int] = set()
        ids_of: list[list[Ids]] = []  # of each prompt's options
        requests: list[_Request] = []
        for i, (prompt, choices) in enumerate(zip(prompts, options, strict=True)):
            ids = self.encoder.prompt(prompt)
            self.usage.requests += 1
            self.usage.submitted_tokens += len(ids)
            encoded = self.encoder.options(choices)
            ids_of.append(encoded)
            logprobs.append([math.nan] * len(encoded))
            if len(ids) + max(map(len, encoded), default=0) > self.max_length:
                too_long.add(i)
            else:
                requests += [_request((i, j), ids, option) for j, option in enumerate(encoded)]
        for request, value in zip(requests, self._logprobs(requests), strict=True):
            logprobs[request.slot[0]][request.slot[1]] = value
        return [
            Scores((), "too_long")
            if i in too_long
            else Scores(tuple(exclusive(values, ids_of[i])))
            if all(map(math.isfinite, values))
            else Scores((), "not_finite")
            for i, values in enumerate(logprobs)
        ]

    def _logprobs(self, requests: Sequence[_Request]) -> list[float]:
        """Log-probability of each request, in order."""
        by_path: dict[bytes, list[int]] = {}
        for k, request in enumerate(requests):
            by_path.setdefault(request.ids.tobytes(), []).append(k)
        groups = list(by_path.values())
        trie = build([requests[group[0]].ids for group in groups])
        values = np.zeros(len(requests))
        if requests and self._can_pack(int(trie.lengths.max())):
            self._score_packed(requests, groups, trie, values)
        elif requests:
            self._score_padded(requests, groups, trie, values)
        # Counted of calls that end: one that is broken off (`pace`) is asked for again.
        self.usage.bound_tokens += len(trie) - common_prefix(trie.first_way(), self._last_path)
        if len(trie):
            self._last_path = trie.path_to(len(trie) - 1)
        return values.tolist()

    def _score_packed(
        self,
        requests: Sequence[_Request],
        groups: Sequence[list[int]],
        trie: Trie,
        values: Floats,
    ) -> None:
        """Adds each request's log-probability to `values`, by passes over packs of the trie."""
        asked = [
            (trie.node(path, requests[k].start + j), int(target), k)
            for path, group in enumerate(groups)
            for k in group
            for j, target in enumerate(requests[k].targets)
        ]
        nodes, targets, owners = np.array(sorted(asked)).T
        packed = self._packed
        # What all requests share is computed in blocks that depend on nothing but its ids, kept for
        # the next call; all else begins after it. So no bit depends on which calls came before.
        shared = min(common_prefix(trie.first_way(), trie.path_to(len(trie) - 1)), int(nodes[0]))
        shared -= shared % _BLOCK
        begin = packed.resume(trie.tokens[:shared], _BLOCK)
        while begin < len(trie):
            if begin < shared:
                end = min(begin + min(_BLOCK, self._pack_budget), shared)
            else:
                far = begin + self._pack_budget
                inside = np.unique(nodes[slice(*np.searchsorted(nodes, [begin, far]))])
                if len(inside) > self._most_rows:
                    far = int(inside[self._most_rows])
                end = next_pack(trie, begin, far - begin)
            mine = slice(*np.searchsorted(nodes, [begin, end]))
            unique, row = np.unique(nodes[mine], return_inverse=True)
            try:
                with self._inference():
                    logits = packed.logits(trie, begin, end, unique)
                found = _target_logprobs(logits, row, targets[mine])
            except torch.cuda.OutOfMemoryError as error:
                self._pack_budget = self._halved(self._pack_budget, end - begin, error)
                continue
            np.add.at(values, owners[mine], found)
            self.usage.computed_tokens += end - begin
            begin = end
            tell(begin / len(trie))
            if begin <= shared and not begin % _BLOCK:
                packed.keep(trie.tokens[:begin])
        if self._in_memory:  # its weights may change before the next call
            packed.forget()

    def _score_padded(
        self, requests: Sequence[_Request], groups: Sequence[list[int]], trie: Trie, values: Floats
    ) -> None:
        """The same by right-padded batches, one row for each distinct path.

        The prefix common to all is computed once, where the model's cache can be copied.
        """
        one_root = int(trie.stop[0]) == len(trie)
        common = min(int(trie.end[0]), *(r.start for r in requests)) if one_root else 0
        prefix = requests[0].ids[: common if common and self._can_share() else 0]
        cache = self._prefill(prefix)

        def run(batch: Sequence[list[int]]) -> None:
            for part in in_parts(batch, targets, self._most_rows):
                rows = [[requests[k] for k in group] for group in part]
                found = self._forward(rows, len(prefix), cache)
                for k, value in zip((k for g in part for k in g), found, strict=True):
                    values[k] = value

        def targets(group: list[int]) -> int:
            return sum(len(requests[k].targets) for k in group)

        def size(group: list[int]) -> int:
            return len(requests[group[0]].ids)

        self._in_batches(sorted(groups, key=size, reverse=True), size, run)

    def _prefill(self, prefix: Ints) -> Any:
        """The model's own cache after a prefix; None for an empty one."""
        if not len(prefix):
            return None
        ids = torch.from_numpy(prefix.astype(np.int64))[None].to(self.model.device)
        self.usage.computed_tokens += len(prefix)
        with self._inference():
            return self.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

    def _forward(
        self, rows: Sequence[Sequence[_Request]], prefix: int = 0, cache: Any = None
    ) -> list[float]:
        """One right-padded batch; the requests of a row share its ids, and all of them `prefix`."""
        width = max(len(row[0].ids) for row in rows) - prefix
        tokens = torch.zeros(len(rows), width, dtype=torch.long)
        where: list[int] = []  # flat positions whose logits are needed
        targets: list[int] = []
        for i, row in enumerate(rows):
            ids = row[0].ids[prefix:].astype(np.int64)
            tokens[i, : len(ids)] = torch.from_numpy(ids)
            for r in row:
                first = i * width + r.start - prefix
                where += range(first, first + len(r.targets))
                targets += r.targets.tolist()
            self.usage.computed_tokens += len(ids)
        more: dict[str, Any] = {"use_cache": False}
        if cache is not None:
            cache = copy.deepcopy(cache)
            cache.reorder_cache(torch.zeros(len(rows), dtype=torch.long, device=self.model.device))
            positions = torch.arange(prefix, prefix + width, device=self.model.device)
            positions = positions.expand(len(rows), -1)
            more = {"use_cache": True, "past_key_values": cache, "position_ids": positions}
        unique, inverse = np.unique(where, return_inverse=True)
        # Padding stands right of every real token, so the causal mask alone keeps it out.
        with self._inference(), head_at(self.model, torch.from_numpy(unique)):
            logits = self.model(input_ids=tokens.to(self.model.device), **more).logits[0]
        values = _target_logprobs(logits, inverse, np.array(targets))
        ends = np.cumsum([len(r.targets) for row in rows for r in row])[:-1]
        return [math.fsum(part.tolist()) for part in np.split(values, ends)]

    def _can_share(self) -> bool:
        """Whether a prefix may be computed once for padded batches; the first time, tries it."""
        if self._sharing is None:
            draw = np.random.default_rng(0).integers(0, 200, (3, 24)).astype(np.int32)
            draw[:, :12] = draw[0, :12]
            rows = [[_request((i, 0), ids[: 20 + i], ids[:2])] for i, ids in enumerate(draw)]
            before = self.usage.computed_tokens
            whole = np.array(self._forward(rows))
            try:
                shared = np.array(self._forward(rows, 12, self._prefill(draw[0, :12])))
            except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError):
                shared = np.full(len(rows), np.inf)  # its cache cannot be copied or goes unused
            alone = np.array([value for row in rows for value in self._forward([row])])
            noise = TIMES_ITS_NOISE * np.abs(whole - alone).max()
            least = 1e-4 if self.model.dtype == torch.float32 else 0.1
            self.usage.computed_tokens = before
            self._sharing = bool(np.abs(whole - shared).max() <= max(noise, least))
        return self._sharing

    def _can_pack(self, longest: int) -> bool:
        """Whether paths of this length may be packed; the first time, tries it out."""
        if self._packing is None:
            self._packing = self._try_packing()
        if 0 < self._packing < longest and not self._window_said:
            self._window_said = True
            self._say_unpacked(f"its attention window holds {self._packing} tokens, not {longest}")
        return longest <= self._packing

    def _try_packing(self) -> int:
        """The longest path that may be packed: 0 if packed and plain passes differ."""
        why, longest = obstacle(self.model.config, windows=True, recurrent=True)
        if not why:
            with self._inference():
                why = self._packed.check(longest, TRIAL_WINDOW)
                _, within = obstacle(self.model.config, recurrent=True)
                # Its windows may be what cannot be done.
                if why and within < longest and not self._packed.check(within):
                    longest, why = within, ""
        if LOOKS_AHEAD in why:  # at padding too
            self._budget, self._sharing = 1, False
        if why:
            self._say_unpacked(why)
        return 0 if why else longest

    def _say_unpacked(self, why: str) -> None:
        how = "request by request" if LOOKS_AHEAD in why else "in padded batches"
        warnings.warn(
            f"{self.name}: shared prefixes are not packed, because {why}; "
            f"scoring goes on {how}, which is many times slower",
            stacklevel=2,
        )

    # ---- generate

    def generate(self, prompts: Sequence[Rendered], sampling: Sampling) -> list[list[Generation]]:
        """`sampling.n` completions of each prompt, in the order of the prompts.

        Sample i of a prompt depends on the prompt, the seed and i only, unless the rounding of
        another batch tips a token: in float32 on a CPU a token's probability moves by some 1e-6.
        """
        asked = sampling.asking(prompts)
        encoded = [self.encoder.prompt(prompt) for prompt in asked]
        self.usage.requests += len(encoded)
        self.usage.submitted_tokens += sum(map(len, encoded))
        out = [[Generation("", "too_long", 0) for _ in range(sampling.n)] for _ in encoded]
        fitting = [i for i, ids in enumerate(encoded) if 0 < len(ids) < self.max_length]
        fitting.sort(key=lambda i: -len(encoded[i]))

        def run(batch: Sequence[int]) -> None:
            with self._inference(), self._packed.faster().active():
                rows = decode_batch(
                    self.model,
                    [encoded[i] for i in batch],
                    sampling.but(max_new_tokens=sampling.limit, thinking=None),
                    Ends(self.max_length, self._pad(), self._eos, self._stopper(sampling)),
                )
            for row in rows:
                mode = asked[batch[row.prompt]].mode
                out[batch[row.prompt]][row.sample] = self._finish(row, sampling, mode)
            self.usage.computed_tokens += sum(len(encoded[i]) for i in batch)

        tokens = sampling.limit
        self._in_batches(fitting, lambda i: sampling.n * (len(encoded[i]) + tokens), run)
        if self._in_memory:  # its weights may change before the next call
            self._packed.forget()
        return out

    def _stopper(self, sampling: Sampling) -> Callable[[list[int]], bool]:
        """Whether the newest tokens complete a stop string, or end a thought sampled alone.

        Stop strings are of the answer: a thought is not ended by one.
        """
        mode, stops = sampling.mode, (*sampling.stop, *self.encoder.stop)
        if mode == "open":
            return self.encoder.ends_thought
        if not stops:
            return lambda _: False
        tail = max(len(s.encode()) for s in stops) + 4  # a token is at least one byte of text

        def ends(ids: list[int]) -> bool:
            text = self.encoder.decode(ids[-tail:])
            if not any(s in text for s in stops):
                return False
            return mode != "on" or not self.encoder.said(ids, (), mode).thinking

        return ends

    def _finish(self, row: Row, sampling: Sampling, mode: Mode | None) -> Generation:
        self.usage.generated_tokens += len(row.ids)
        self.usage.computed_tokens += max(0, len(row.ids) - 1)
        if row.finish_reason == "not_finite":
            return Generation("", row.finish_reason, len(row.ids))
        return self.encoder.generation(row.ids, row.finish_reason, sampling, mode)

    def _pad(self) -> int:
        pad = self.tokenizer.pad_token_id  # masked, so any id will do
        return pad if pad is not None else next(iter(self._eos), 0)

    # ---- batches

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        """Evaluation mode while inside: a policy in training comes back as it was."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(training)

    def _in_batches(
        self, items: Sequence[T], size: Callable[[T], int], run: Callable[[Sequence[T]], None]
    ) -> None:
        """Runs items, longest first, in batches whose padded size keeps within the budget.

        Out of memory halves the budget for good and tries again.
        """
        start, outer = 0, listener()
        while start < len(items):
            count = max(1, self._budget // max(1, size(items[start])))
            batch = items[start : start + count]
            told = partial(_tell_part, outer, start, len(batch), len(items))
            try:
                with hear(told):
                    run(batch)
                told(1.0)
                start += len(batch)
            except torch.cuda.OutOfMemoryError as error:
                self._budget = self._halved(self._budget, len(batch), error)

    def _halved(self, budget: int, size: int, error: Exception) -> int:
        """Half a budget that was too much for the memory. Says so once."""
        if size == 1:
            raise EngineError(
                f"{self.name}: one sequence alone does not fit the memory of {self.device}. "
                "Use a smaller model, a narrower dtype or shorter texts"
            ) from error
        error.__traceback__ = None  # its frames hold the tensors of the pass that failed
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.name}: out of memory on {self.device}; going on with smaller batches "
                f"(batch_tokens was {budget})",
                stacklevel=2,
            )
        return max(1, budget // 2)


def _tell_part(
    outer: Callable[[float], None], start: int, count: int, every: int, share: float
) -> None:
    """Tells the share of a batch that is done as the share of all items."""
    outer((start + share * count) / every)


def _request(slot: tuple[int, int], prompt: Ids, option: Ids) -> _Request:
    ids = prompt if len(option) == 1 else np.concatenate([prompt, option[:-1]])
    return _Request(slot, ids, len(prompt) - 1, option)


def _target_logprobs(logits: torch.Tensor, row: Ints, targets: Ints) -> Floats:
    """Log-softmax in float32 of logits (U, V) at targets (N,) in rows (N,), as (N,) float64."""
    few = max(1, LOGIT_BYTES // (4 * logits.shape[-1]))
    norms = torch.cat([x.float().logsumexp(-1) for x in torch.split(logits, few)])  # (U,)
    rows = torch.from_numpy(row).to(logits.device)
    chosen = logits[rows, torch.from_numpy(targets).to(logits.device)].float()
    values: Floats = (chosen - norms[rows]).double().cpu().numpy()
    return values


def read_text(model: Any, ids: Ids) -> list[float]:
    """Log-probability of each token of a text after its first, by one plain pass."""
    row = torch.from_numpy(ids.astype(np.int64)).to(model.device)
    with torch.no_grad():
        logits = model(input_ids=row[None], use_cache=False).logits[0, :-1]  # (T - 1, V)
    values: list[float] = _target_logprobs(logits, np.arange(len(ids) - 1), ids[1:]).tolist()
    return values


# ---- loading


def _device(device: str) -> str:
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype(dtype: str, device: str) -> torch.dtype:
    if dtype == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    return _DTYPES[dtype]


def _load(source: Source, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and tokenizer."""
    from transformers import AutoModelForCausalLM

    model = source.model
    check_folder(model)
    with loading(model):
        config = read_config(model)
        check_head(config, model)
        # Transformers' default attention would leave out the soft-capping of scores.
        capped = getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None)
        loaded, missing = read_model(
            AutoModelForCausalLM,
            model,
            dtype=dtype,
            attn_implementation="eager" if capped else None,
        )
        tokenizer = read_tokenizer(model)
    check_plain(loaded, model)
    if missing:
        raise EngineError(
            f"{model}: the weights lack {', '.join(missing[:4])}"
            f"{' and others' * (len(missing) > 4)}: this is not a causal language model's folder"
        )
    if source.adapter is not None:
        loaded = add_adapter(loaded, source.adapter)
    return loaded.to(device).eval(), tokenizer
