"""vLLM as an engine: offline, batched, with its prefix cache doing the sharing.

Scoring asks for one token and reads the log-probabilities of the tokens in question from the
log-softmax over the whole vocabulary, before temperature or any processor. An option of several
tokens is one more request a token: the prompt and the option so far. Requests go in the order of
their token ids, which is the order of their trie: so each finds the longest prefix in the cache,
also that of requests in the same step. `prompt_logprobs` would bypass the cache and is never used.

vLLM runs in processes of its own. Its messages go to standard error, errors only, and no usage
statistics are sent, unless `VLLM_LOGGING_LEVEL`, `VLLM_LOGGING_STREAM` or `VLLM_NO_USAGE_STATS` say
otherwise.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import math
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rlaif.engines.base import Generation, Sampling, Scores, Usage
from rlaif.engines.beginning import lacks_beginning
from rlaif.engines.checkpoint import (
    check_adapter,
    check_folder,
    check_head,
    context_length,
    end_tokens,
    loading,
    model_folder,
    own_templates,
    read_config,
    read_tokenizer,
    source_of,
)
from rlaif.engines.fingerprint import folder_fingerprint, run_fingerprint
from rlaif.engines.gguf import gguf_of
from rlaif.engines.settings import EngineSettings
from rlaif.engines.thinking import Mode
from rlaif.engines.tokens import Encoder, Ids, exclusive
from rlaif.engines.trie import common_prefix
from rlaif.errors import ConfigError, EngineError, missing_extra
from rlaif.files.templates import Rendered
from rlaif.records import content_id

T = TypeVar("T")
_Step = tuple[bytes, int]  # a path, packed, and the token looked up after it
_MAX_LOOKUPS = 128  # tokens whose log-probabilities one request of vLLM may ask for
_CPU_BLOCK = 32  # tokens; the smallest block of its CPU attention, whose default is 128
_CPU_CACHE_GIB = 4.0
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # for which vLLM reserves memory
_SHARD_BYTES = 2 << 30
_CLOSE_SECONDS = 20.0
_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True, slots=True)
class Drawn:
    """A completion in tokens. `finish_reason`: "stop" (end token or stop string) or "length"."""

    ids: Ids  # (L,), the end token included
    logprobs: NDArray[np.float64]  # (L,), nats, at the temperature of the sampling
    finish_reason: str


class VLLMEngine:
    """A causal language model in vLLM, from a folder or a hub name.

    `batch_tokens` bounds the tokens of one step. `sleep_mode` lets `sleep()` free the GPU's memory
    for training; `rollouts` makes an engine for `rollout()`.
    """

    closes_thoughts = True

    def __init__(
        self,
        model: str,
        settings: EngineSettings | None = None,
        *,
        sleep_mode: bool = False,
        rollouts: bool = False,
    ) -> None:
        settings = settings or EngineSettings()
        own = settings.vllm
        source = source_of(model, settings.adapter)
        if gguf_of(source.model) is not None:
            raise EngineError(
                f"the vllm engine does not load {model}: vLLM reads no GGUF files by itself. Use "
                "`engine: hf`, or save the model as a Hugging Face folder once, as "
                "docs/real-model.md shows"
            )
        self._vllm = _import_vllm()
        self.device = _device(settings.device, sleep_mode)
        self.name = model
        self.usage = Usage()
        path, adapter = source.model, source.adapter
        config, generation_config, tokenizer = _read(path)
        self._eos = end_tokens(generation_config, tokenizer)
        self.encoder = Encoder(tokenizer, model)
        self._last_path = np.zeros(0, ">i4")
        self._adapter = _adapter(adapter) if adapter else None
        self._sleep_mode, self._asleep, self._empty = sleep_mode, False, False
        self._rollouts = rollouts
        context = own.max_model_len or context_length(config, tokenizer)
        given = {
            "dtype": _dtype(settings.dtype, self.device, own.quantization, config),
            "max_num_batched_tokens": settings.batch_tokens,
            "tensor_parallel_size": own.tensor_parallel_size,
            "gpu_memory_utilization": own.gpu_memory_utilization,
            "max_model_len": own.max_model_len,
            "quantization": own.quantization,
            "block_size": own.block_size,
            "kv_cache_memory_bytes": int(own.cache_gib * 2**30) if own.cache_gib else None,
            "enforce_eager": own.enforce_eager,
            "enable_sleep_mode": sleep_mode or None,
            **(_lora_settings(adapter) if adapter else {}),
        }
        if self.device == "cpu":
            given = _for_cpu(given, context)
        self._llm: Any = None
        self._llm = self._start(path, {k: v for k, v in given.items() if v is not None})
        # Runs at the interpreter's end as well, before vLLM's own clean-up, which kills after 5 s.
        self._shutdown = weakref.finalize(self, _shut_down, self._llm)
        self.max_length: int = self._llm.model_config.max_model_len
        self._dtype, self._quantized = self._llm.model_config.dtype, own.quantization
        self._folder = model_folder(path)
        self._loaded_fingerprint = folder_fingerprint(*source.folders())
        self._fingerprint = self._loaded_fingerprint
        self.templates = own_templates(*source.folders())
        vocabulary = config.get_text_config(decoder=True).vocab_size
        wrong = None if rollouts else lacks_beginning(self.encoder, vocabulary, self._read)
        if wrong:
            warnings.warn(wrong, stacklevel=2)
        self.usage, self._last_path = Usage(), np.zeros(0, ">i4")  # that reading is no work of ours

    def _read(self, ids: Ids) -> list[float]:
        """Log-probability of each token of a text after its first."""
        steps = [(_packed(ids[:k]), int(ids[k])) for k in range(1, len(ids))]
        wanted = {path: {token: math.nan} for path, token in steps}
        self._look_up(wanted)
        return [wanted[path][token] for path, token in steps]

    def _start(self, path: str, settings: dict[str, Any]) -> Any:
        try:
            llm = self._vllm.LLM(
                model=path,
                # "processed": divided by the temperature, of which scoring has none
                logprobs_mode="processed_logprobs" if self._rollouts else "raw_logprobs",
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **settings,
            )
        except Exception as error:  # vLLM raises what it likes
            raise EngineError(
                f"vLLM cannot start '{self.name}' on {self.device}: {_brief(error)}. "
                "Where a process of its own failed, the cause stands above. A script that makes an "
                "engine needs `if __name__ == '__main__':` round its calls"
            ) from error
        if self._adapter is not None:
            try:
                llm.llm_engine.add_lora(self._adapter)
            except Exception as error:
                _shut_down(llm)
                raise EngineError(
                    f"vLLM cannot load the adapter {self._adapter.lora_path}: {_brief(error)}"
                ) from error
        return llm

    @property
    def fingerprint(self) -> str:
        """Hash of `weights`, the chat template as it is rendered, dtype, context, quantisation."""
        return run_fingerprint(
            self.weights, self.encoder.template_id, self._dtype, self.max_length, self._quantized
        )

    @property
    def weights(self) -> str:
        """Hash of the model alone: weights, config, tokenizer, adapter; of updates since."""
        return self._fingerprint

    def thinking_id(self, mode: Mode) -> str:
        """A hash of how the chat template is rendered in a mode; EngineError if it cannot think."""
        return self.encoder.thinking_id(mode)

    def close(self) -> None:
        """Frees the model and ends its processes. The engine cannot be used afterwards."""
        self._llm = None
        self._shutdown()
        gc.collect()

    # ---- score

    def score(self, prompts: Sequence[Rendered], options: Sequence[Sequence[str]]) -> list[Scores]:
        """Log P(option | prompt): the sum over the option's tokens, each given those before it."""
        wanted: dict[bytes, dict[int, float]] = {}
        plans: list[list[list[_Step]] | None] = []
        ids_of: list[list[Ids]] = []  # of each prompt's options
        for prompt, choices in zip(prompts, options, strict=True):
            ids = self._encode(prompt)
            encoded = self.encoder.options(choices)
            ids_of.append(encoded)
            if len(ids) + max(map(len, encoded), default=0) > self.max_length:
                plans.append(None)
                continue
            plans.append([_steps(ids, option) for option in encoded])
            for path, token in itertools.chain.from_iterable(plans[-1] or ()):
                wanted.setdefault(path, {})[token] = math.nan
        self._look_up(wanted)
        return [_scores(*row, wanted) for row in zip(plans, ids_of, strict=True)]

    def _encode(self, prompt: Rendered) -> Ids:
        ids = self.encoder.prompt(prompt)
        self.usage.requests += 1
        self.usage.submitted_tokens += len(ids)
        if not len(ids):
            raise EngineError(f"{self.name}: a prompt has no tokens")
        return ids

    def _look_up(self, wanted: dict[bytes, dict[int, float]]) -> None:
        """Fills in the log-probability of each wanted token after its path."""
        requests = [
            (path, tokens)
            for path in sorted(wanted)  # the packed ids sort as the ids do: in trie order
            for tokens in _batched(tuple(wanted[path]), _MAX_LOOKUPS)
        ]
        params: dict[tuple[int, ...], Any] = {}
        for _, tokens in requests:
            if tokens not in params:
                params[tokens] = self._vllm.SamplingParams(
                    max_tokens=1, temperature=0, logprob_token_ids=[*tokens], detokenize=False
                )
        self._count_bound([path for path, _ in requests])
        outputs = self._run([path for path, _ in requests], [params[t] for _, t in requests])
        for (path, tokens), output in zip(requests, outputs, strict=True):
            table = output.outputs[0].logprobs[0]
            wanted[path].update((token, table[token].logprob) for token in tokens)

    def _count_bound(self, paths: Sequence[bytes]) -> None:
        """Adds the distinct prefixes of sorted paths to the usage."""
        ids = [np.frombuffer(path, ">i4") for path in paths]
        shared = sum(common_prefix(a, b) for a, b in itertools.pairwise([self._last_path, *ids]))
        self.usage.bound_tokens += sum(map(len, ids)) - shared
        self._last_path = ids[-1] if ids else self._last_path

    # ---- generate

    def generate(self, prompts: Sequence[Rendered], sampling: Sampling) -> list[list[Generation]]:
        """`sampling.n` completions of each prompt, in the order of the prompts.

        Each sample has a seed of its own, made of the prompt, the seed and its number. On a GPU the
        rounding of a batch may still tip a token; vLLM's VLLM_BATCH_INVARIANT=1 forbids that.
        """
        asked = sampling.asking(prompts)
        encoded = [self._encode(prompt) for prompt in asked]
        drawn = self._draw(encoded, sampling)
        return [
            [self._generation(sample, sampling, prompt.mode) for sample in row]
            for prompt, row in zip(asked, drawn, strict=True)
        ]

    def rollout(
        self, prompts: Sequence[Ids], sampling: Sampling, first: Sequence[int] = ()
    ) -> list[list[Drawn]]:
        """`sampling.n` completions of the ids of each prompt, with what each token's chance was.

        They are those of `generate`; `first` numbers the first sample of each prompt, if not 0.
        The engine must have been loaded with `rollouts=True`. EngineError where a prompt leaves no
        room.
        """
        if not self._rollouts:
            raise EngineError(f"{self.name}: load the engine with rollouts=True for rollouts")
        longest = max(map(len, prompts), default=0)
        if longest >= self.max_length:
            raise EngineError(
                f"{self.name}: a prompt of {longest} tokens leaves no room in a context of "
                f"{self.max_length}"
            )
        self.usage.requests += len(prompts)
        self.usage.submitted_tokens += sum(map(len, prompts))
        drawn = self._draw(prompts, sampling, logprobs=True, first=first)
        return [[_drawn(s) for s in row] for row in drawn]

    def _draw(
        self,
        encoded: Sequence[Ids],
        sampling: Sampling,
        *,
        logprobs: bool = False,
        first: Sequence[int] = (),
    ) -> list[list[Any]]:
        """vLLM's completions of each prompt; None for prompts that do not fit."""
        if not (sampling.temperature == 0 or 0.01 <= sampling.temperature <= 2):
            raise ConfigError(
                "vLLM samples at temperature 0 or from 0.01 to 2, "
                f"got temperature {sampling.temperature}"
            )
        out: list[list[Any]] = [[None] * sampling.n for _ in encoded]
        # Samples without randomness are one.
        count = sampling.n if sampling.temperature > 0 else 1
        requests = sorted(
            (_packed(ids), i, j)
            for i, ids in enumerate(encoded)
            if len(ids) < self.max_length
            for j in range(count)
        )
        begin = first or [0] * len(encoded)
        params = [self._params(path, begin[i] + j, sampling, logprobs) for path, i, j in requests]
        outputs = self._run([path for path, _, _ in requests], params)
        for (_, i, j), output in zip(requests, outputs, strict=True):
            self._check(output.outputs[0])
            for k in range(j, sampling.n, count):
                out[i][k] = output.outputs[0]
        return out

    def _params(self, path: bytes, sample: int, sampling: Sampling, logprobs: bool) -> Any:
        digest = hashlib.sha256(f"{sampling.seed}:{sample}:".encode() + path).digest()
        stop = [*sampling.stop, *self.encoder.stop]
        ends = set(self._eos)
        if sampling.mode == "open":  # a thought alone: its end mark ends it
            end = self.encoder.ids_of_mark(self.encoder.marks.end)
            stop = [] if len(end) == 1 else [self.encoder.marks.end]
            ends |= set(end) if len(end) == 1 else set()
        elif sampling.mode == "on":  # vLLM would stop inside a thought: they are looked for later
            stop = []
        return self._vllm.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=int.from_bytes(digest[:8]) >> 1 if sampling.temperature > 0 else None,
            max_tokens=min(sampling.limit, self.max_length - len(path) // 4),
            stop=stop,
            stop_token_ids=sorted(ends),
            detokenize=bool(stop),  # vLLM looks for stop strings in its own text
            skip_special_tokens=sampling.mode != "open",  # which a mark may be made of
            logprobs=0 if logprobs else None,  # of the chosen token, and of no others
        )

    def _check(self, sample: Any) -> None:
        """Counts a completion; EngineError if vLLM gave it up."""
        if sample.finish_reason not in ("stop", "length"):
            raise EngineError(
                f"{self.name}: vLLM ended a completion with '{sample.finish_reason}'",
                retryable=True,
            )
        self.usage.generated_tokens += len(sample.token_ids)
        self.usage.computed_tokens += len(sample.token_ids) - 1

    def _generation(self, sample: Any, sampling: Sampling, mode: Mode | None) -> Generation:
        if sample is None:
            return Generation("", "too_long", 0)
        ids = list(sample.token_ids)
        return self.encoder.generation(ids, sample.finish_reason, sampling, mode)

    # ---- requests

    def _run(self, paths: Sequence[bytes], params: Sequence[Any]) -> list[Any]:
        """vLLM's outputs of the paths, in order. A failure or an interrupt ends the engine."""
        if not paths:
            return []
        llm = self._ready()
        prompts = [{"prompt_token_ids": np.frombuffer(p, ">i4").tolist()} for p in paths]
        outputs: list[Any] = self._guarded(
            lambda: llm.generate(prompts, params, use_tqdm=False, lora_request=self._adapter)
        )
        for output in outputs:
            cached = output.num_cached_tokens or 0
            self.usage.computed_tokens += len(output.prompt_token_ids) - cached
        return outputs

    def _guarded(self, call: Callable[[], T]) -> T:
        """Closes the engine if a call breaks: requests left in it would answer the next call."""
        try:
            return call()
        except BaseException as error:
            self.close()
            if not isinstance(error, Exception):
                raise
            raise EngineError(
                f"{self.name}: vLLM failed and was closed: {_brief(error)}"
            ) from error

    def _open(self) -> Any:
        if self._llm is None:
            raise EngineError(f"{self.name}: the engine is closed. Load it again")
        return self._llm

    def _ready(self) -> Any:
        llm = self._open()
        if self._asleep or self._empty:
            what = "is asleep. Call wake()" if self._asleep else "has no weights. Update them"
            raise EngineError(f"{self.name}: the engine {what} first")
        return llm

    # ---- sharing a GPU with training

    def sleep(self, level: int = 1) -> None:
        """Frees the GPU's memory. Level 1 keeps the weights in the host's; 2 drops them.

        After level 2, `wake()` and then `update_weights()` before the next request.
        """
        if not self._sleep_mode:
            raise EngineError(f"{self.name}: load the engine with sleep_mode=True to let it sleep")
        if level not in (1, 2):
            raise ConfigError(f"sleep level must be 1 or 2, got {level}")
        if not self._asleep:
            llm = self._open()
            self._guarded(lambda: llm.sleep(level=level))
            self._asleep, self._empty = True, self._empty or level == 2

    def wake(self) -> None:
        """Takes the GPU's memory back after `sleep()`."""
        if self._asleep:
            llm = self._open()
            self._guarded(lambda: llm.wake_up())
            self._asleep = False

    def update_weights(self, named_tensors: Iterable[tuple[str, Any]]) -> None:
        """Replaces all weights, named as in the checkpoint, for example by `state_dict().items()`.

        They pass through files, in memory where there is room, so every worker reads its own share.
        """
        llm = self._open()
        if self._asleep:
            raise EngineError(f"{self.name}: the engine is asleep. Call wake() first")
        with tempfile.TemporaryDirectory(prefix="rlaif-", dir=_scratch(self._folder)) as folder:
            digests = _save(named_tensors, Path(folder))
            missing = sorted(_weight_names(self._folder) - digests.keys())
            if missing:
                raise EngineError(
                    f"{self.name}: update_weights needs every weight of the checkpoint; missing: "
                    f"{', '.join(missing[:4])}{' and others' * (len(missing) > 4)}"
                )
            reload = {"weights_path": folder}
            self._guarded(lambda: llm.collective_rpc("reload_weights", kwargs=reload))
        if not self._guarded(lambda: llm.reset_prefix_cache()):
            self.close()
            raise EngineError(f"{self.name}: vLLM kept keys and values of the old weights")
        self._empty = False
        self._fingerprint = content_id("updated", self._loaded_fingerprint, sorted(digests.items()))


# ---- paths: the ids of a prompt and, perhaps, of the beginning of an option


def _packed(ids: Ids) -> bytes:
    """Ids as bytes that sort as the ids do."""
    return ids.astype(">i4").tobytes()


def _steps(prompt: Ids, option: Ids) -> list[_Step]:
    """What to look up for an option: each of its tokens after those before it."""
    return [(_packed(np.concatenate([prompt, option[:k]])), int(t)) for k, t in enumerate(option)]


def _drawn(sample: Any) -> Drawn:
    ids = list(sample.token_ids)
    chances = [table[token].logprob for token, table in zip(ids, sample.logprobs, strict=True)]
    return Drawn(np.array(ids, np.int32), np.array(chances, np.float64), sample.finish_reason)


def _scores(
    plan: list[list[_Step]] | None, options: list[Ids], found: dict[bytes, dict[int, float]]
) -> Scores:
    if plan is None:
        return Scores((), "too_long")
    values = [math.fsum(found[path][token] for path, token in steps) for steps in plan]
    if not all(map(math.isfinite, values)):
        return Scores((), "not_finite")
    return Scores(tuple(exclusive(values, options)))


def _batched(items: tuple[int, ...], size: int) -> Iterator[tuple[int, ...]]:
    return (items[i : i + size] for i in range(0, len(items), size))


# ---- loading


def _import_vllm() -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import vllm
            from vllm import LLM  # noqa: F401 - a folder named vllm would import as well
    except ImportError as error:
        if error.name != "vllm":
            raise EngineError(f"vLLM is installed but does not load: {error}") from error
        raise missing_extra("vllm", "vllm", "the vLLM engine") from error
    return vllm


def _device(device: str, sleep_mode: bool) -> str:
    """The device this build of vLLM runs on, if it is the one asked for."""
    from vllm.platforms import current_platform

    found: str = current_platform.device_type
    if not found:
        raise EngineError("vLLM finds no device to run on. Its GPU build needs a GPU")
    if device.partition(":")[0] not in ("auto", found):
        raise ConfigError(f"device '{device}' was asked for, but this vLLM runs on {found}")
    if ":" in device:
        raise ConfigError(
            f"vLLM picks its GPUs itself. Instead of device '{device}', set "
            f"CUDA_VISIBLE_DEVICES={device.partition(':')[2]}"
        )
    if sleep_mode and not current_platform.is_sleep_mode_available():
        raise EngineError(f"vLLM cannot sleep on {found}: sleep_mode needs a CUDA GPU")
    return found


def _read(model: str) -> tuple[Any, Any, Any]:
    """Config, generation config and tokenizer."""
    from transformers import GenerationConfig

    check_folder(model)
    with loading(model):
        config = read_config(model)
        check_head(config, model)
        tokenizer = read_tokenizer(model)
    try:
        generation_config = GenerationConfig.from_pretrained(model)
    except OSError:  # as Transformers does for a model without one
        generation_config = GenerationConfig.from_model_config(config)
    return config, generation_config, tokenizer


def _dtype(dtype: str, device: str, quantization: str | None, config: Any) -> str:
    """`auto` as in the Transformers engine; a quantised model knows its own."""
    if dtype != "auto" or quantization or getattr(config, "quantization_config", None):
        return dtype
    return "float32" if device == "cpu" else "bfloat16"


def _for_cpu(settings: dict[str, Any], context: int) -> dict[str, Any]:
    sized = settings["gpu_memory_utilization"] or os.environ.get("VLLM_CPU_KVCACHE_SPACE")
    cache = settings["kv_cache_memory_bytes"] or (None if sized else int(_CPU_CACHE_GIB * 2**30))
    eager = settings["enforce_eager"]
    return settings | {
        "block_size": settings["block_size"] or _CPU_BLOCK,
        "kv_cache_memory_bytes": cache,
        "enforce_eager": True if eager is None else eager,
        # A seeded sample whose prefill is cut in two breaks vLLM on a CPU ("CPU Generator does not
        # use offset", 0.32), so no prefill is cut: a step holds the longest prompt.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(settings["max_num_batched_tokens"] or 4_096, context),
    }


def _lora_settings(adapter: str) -> dict[str, Any]:
    config = check_adapter(adapter)
    rank = max([config.get("r", 0), *(config.get("rank_pattern") or {}).values()])
    fitting = [r for r in _LORA_RANKS if r >= rank]
    if not fitting:
        raise EngineError(f"{adapter}: vLLM takes LoRA ranks to {_LORA_RANKS[-1]}, this is {rank}")
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": fitting[0]}


def _adapter(adapter: str) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, str(Path(adapter).resolve()))


def _brief(error: BaseException) -> str:
    """The last line that says something, for messages that quote a whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def _shut_down(llm: Any) -> None:
    # vLLM kills its processes after 5 s by default, and then leaks shared memory.
    llm.llm_engine.engine_core.shutdown(timeout=_CLOSE_SECONDS)


# ---- weights


def _scratch(folder: Path) -> str | None:
    """The folder in memory if it has room for the weights, at twice their size on disk."""
    shm = Path("/dev/shm")
    size = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    return str(shm) if shm.is_dir() and shutil.disk_usage(shm).free > 2.5 * size else None


def _save(named_tensors: Iterable[tuple[str, Any]], folder: Path) -> dict[str, str]:
    """Writes safetensors files of bounded size, and returns a digest of each tensor."""
    from safetensors.torch import save_file

    digests: dict[str, str] = {}
    shard: dict[str, Any] = {}
    size = 0
    for name, value in itertools.chain(named_tensors, [("", None)]):
        if shard and (value is None or size + value.nbytes > _SHARD_BYTES):
            save_file(shard, folder / f"model-{len(digests):06}.safetensors")
            shard, size = {}, 0
        if value is not None:
            # Tied weights share memory, which safetensors refuses.
            tensor = value.detach().cpu().contiguous().clone()
            digests[name] = _digest(tensor)
            shard[name] = tensor
            size += tensor.nbytes
    return digests


def _digest(tensor: Any) -> str:
    import torch

    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _weight_names(folder: Path) -> set[str]:
    """The names of the checkpoint's weights; none where it is not in safetensors."""
    from safetensors import safe_open

    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        return set(json.loads(index.read_text("utf-8"))["weight_map"])
    if not single.is_file():
        return set()
    with safe_open(single, framework="numpy") as file:
        return set(file.keys())
