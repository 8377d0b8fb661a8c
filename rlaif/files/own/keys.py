"""A hash of what a Python function does: its code and all that it reads, by content.

Two functions that may give different values have different keys, whatever they are called and
wherever they were written: lambdas of one line, closures over other values, methods of instances,
a function defined anew in a notebook. A process that reads the same file makes the same key: no
memory address, no order of a set and no line number is in it.

Followed are functions, methods and classes of people's own, what they hold (defaults, closures,
`self`, the arguments of a partial) and the globals that they read; a module of people's own counts
with its whole source and with those that it imports. Of Python itself, of what is installed and of
rlaif the names count. Other objects count with what pickle would write of them.
"""

from __future__ import annotations

import copyreg
import dis
import functools
import hashlib
import inspect
import site
import struct
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MethodType,
    ModuleType,
)
from typing import Any

_LOCKS = (type(threading.Lock()), type(threading.RLock()))  # they hold nothing
_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_HASHES = ("_original_object_hash",)  # attributes that Transformers gives a `hash()` of its process
# What a class has beside what was written into it.
_OF_EVERY_CLASS = {
    "__dict__",
    "__weakref__",
    "__doc__",
    "__module__",
    "__qualname__",
    "__firstlineno__",
    "__static_attributes__",
    "__annotations__",
    "__annotate__",
    "__annotate_func__",
    "__annotations_cache__",
    "__abstractmethods__",
    "_abc_impl",
    "__orig_bases__",
    "__parameters__",
    "__match_args__",
}


def function_key(function: Callable[..., Any]) -> tuple[str, list[str]]:
    """A hash of what the function does, and what of it could not be read.

    What cannot be read (a connection, an open file, a generator) is told as `client (of type
    OpenAI)`, and stands in the hash with its type alone.
    """
    reader = _Reader()
    return reader.digest(function, []), reader.unread


class _Reader:
    """One walk over a function and what it holds."""

    def __init__(self) -> None:
        self.unread: list[str] = []
        self._done: dict[int, tuple[Any, str]] = {}  # the object is kept, so that its id stays its
        self._open: dict[int, int] = {}  # what is being read, by its place on the way here

    def digest(self, value: Any, way: list[str]) -> str:
        """A hash of a value. `way`: the names by which it was reached."""
        plain = _plain(value)
        if plain is not None:
            return _hash([plain])
        if id(value) in self._done:
            return self._done[id(value)][1]
        if id(value) in self._open:  # it holds itself
            return _hash([f"back {len(self._open) - self._open[id(value)]}"])
        self._open[id(value)] = len(self._open)
        try:
            found = _hash(self._parts(value, way))
        except Exception:  # people's classes raise what they like, RecursionError too
            kind = type(value).__qualname__
            self.unread.append(f"{'.'.join(way) or 'itself'} (of type {kind})")
            found = _hash(["unread", kind])
        finally:
            del self._open[id(value)]
        self._done[id(value)] = value, found
        return found

    def _each(self, values: Iterable[Any], way: list[str]) -> list[str]:
        return [self.digest(value, way) for value in values]

    def _items(self, values: Mapping[Any, Any], way: list[str]) -> list[str]:
        """Of a mapping, whatever order it was filled in."""
        rows = []
        for name, value in values.items():
            further = [*way, name] if isinstance(name, str) else way
            rows.append(self.digest(name, way) + self.digest(value, further))
        return sorted(rows)

    def _parts(self, value: Any, way: list[str]) -> list[str]:
        """What a value consists of, the kind first."""
        kind = type(value)
        if kind in (tuple, list):
            return [kind.__name__, *self._each(value, way)]
        if kind in (set, frozenset):
            return ["set", *sorted(self._each(value, way))]
        if kind in (dict, MappingProxyType):
            return ["dict", *self._items(value, way)]
        if kind is CodeType:
            return self._code(value)
        if kind is FunctionType:
            return self._function(value, way)
        if kind is MethodType:
            return ["method", *self._each((value.__func__, value.__self__), way)]
        if kind is functools.partial:
            held = self._items(value.keywords, way)
            return ["partial", *self._each((value.func, value.args), way), *held]
        if kind in (staticmethod, classmethod):
            return [kind.__name__, self.digest(value.__func__, way)]
        if kind is property:
            return ["property", *self._each((value.fget, value.fset, value.fdel), way)]
        if kind is BuiltinFunctionType:
            return self._builtin(value, way)
        if isinstance(value, ModuleType):
            return ["module", *_sources(value)]
        if isinstance(value, type):
            return self._class(value, way)
        if kind in _LOCKS:
            return ["lock"]
        return self._object(value, way)

    def _code(self, code: CodeType) -> list[str]:
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        handled = getattr(code, "co_exceptiontable", b"")
        parts = (code.co_name, code.co_code, handled, counts, names, code.co_consts)
        return ["code", *self._each(parts, [])]

    def _function(self, function: FunctionType, way: list[str]) -> list[str]:
        if not _is_own(function.__module__, function.__code__.co_filename):
            named = ["installed", str(function.__module__), function.__qualname__]
            return named + self._held(function, way)
        read = {
            name: function.__globals__[name]
            for name in sorted(_globals_of(function.__code__))
            if name in function.__globals__
        }
        more = {k: v for k, v in vars(function).items() if k != "__wrapped__"}
        wrapped = getattr(function, "__wrapped__", None)
        return [
            "function",
            self.digest(function.__code__, way),
            *self._held(function, way),
            *self._items(read, way),
            "",
            *self._items(more, way),
            self.digest(wrapped, way),
        ]

    def _held(self, function: FunctionType, way: list[str]) -> list[str]:
        """Defaults, and what a closure closes over."""
        cells = {}
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            try:
                cells[name] = cell.cell_contents
            except ValueError:  # not yet given a value
                continue
        defaults = (function.__defaults__, function.__kwdefaults__)
        return [*self._each(defaults, way), *self._items(cells, way), ""]

    def _builtin(self, function: BuiltinFunctionType, way: list[str]) -> list[str]:
        owner = function.__self__
        named = ["builtin", str(function.__module__), function.__qualname__]
        return named + ([] if isinstance(owner, ModuleType) else [self.digest(owner, way)])

    def _class(self, found: type, way: list[str]) -> list[str]:
        named = ["class", found.__module__, found.__qualname__]
        if not _is_own(found.__module__):
            return named
        written = {k: v for k, v in vars(found).items() if k not in _OF_EVERY_CLASS}
        slots = written.get("__slots__", ())
        names = {slots} if isinstance(slots, str) else set(slots)
        written = {k: v for k, v in written.items() if k not in names}  # what reads a slot
        return [*named, *self._each(found.__bases__, way), *self._items(written, way)]

    def _object(self, value: Any, way: list[str]) -> list[str]:
        """Any other: by its own hash, by its bytes, by what it wraps, or as pickle has it."""
        kind = type(value)
        if kind.__module__.split(".")[0] == "rlaif":
            for name in ("key", "fingerprint"):
                if isinstance(said := getattr(value, name, None), str):
                    return [name, kind.__qualname__, said]
        if (torch := sys.modules.get("torch")) is not None and isinstance(value, torch.Tensor):
            # A tensor pickles with its storage, of which it may show a part.
            data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            facts = (str(value.dtype), tuple(value.shape), value.requires_grad)
            return ["tensor", *map(str, facts), hashlib.sha256(data.numpy()).hexdigest()]
        if hasattr(value, "__wrapped__") and callable(value):  # functools.cache and its like
            return ["wrapper", kind.__qualname__, self.digest(value.__wrapped__, way)]
        registered = copyreg.dispatch_table.get(kind)
        made = value.__reduce_ex__(4) if registered is None else registered(value)
        if isinstance(made, str):
            return ["global", str(getattr(value, "__module__", "")), made]
        function, given, *rest = made
        state, items, pairs = [*rest, None, None, None][:3]
        before = len(self.unread)
        parts = [
            "object",
            *self._each((function, given), way),
            self._state(state, way),
            *self._each(items or (), way),
            "",
            *self._items(dict(pairs or ()), way),
        ]
        if len(self.unread) > before + 1:  # one word for all that it hides
            del self.unread[before:]
            self.unread.append(f"{'.'.join(way) or 'itself'} (of type {kind.__qualname__})")
        return parts

    def _state(self, state: Any, way: list[str]) -> str:
        if type(state) is dict:  # with the attribute's name on the way
            state = {k: v for k, v in state.items() if k not in _HASHES}
            return _hash(["state", *self._items(state, way)])
        if type(state) is tuple and len(state) == 2 and type(state[1]) is dict:  # with slots
            return _hash(["slots", self._state(state[0], way), self._state(state[1], way)])
        return self.digest(state, way)


def _hash(parts: Iterable[str]) -> str:
    """Of texts, each with its length, so that no two lists run together alike."""
    found = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        found.update(struct.pack("<Q", len(data)) + data)
    return found.hexdigest()[:32]


def _plain(value: Any) -> str | None:
    """A plain value with its type as text; None for what is not plain."""
    kind = type(value)
    if value is None or value is Ellipsis or value is NotImplemented or kind is bool:
        return str(value)
    if kind is int:
        return f"int {value:x}"  # a decimal one may be too long for Python
    if kind is float:
        return f"float {value.hex()}"
    if kind is complex:
        return f"complex {value.real.hex()} {value.imag.hex()}"
    if kind is str:
        return f"str {value}"
    if kind in (bytes, bytearray):
        return f"{kind.__name__} {hashlib.sha256(value).hexdigest()}"
    return None


def _globals_of(code: CodeType) -> set[str]:
    """The names that code reads of its module, those of functions inside it too."""
    found = {i.argval for i in dis.get_instructions(code) if i.opname in _GLOBAL}
    for const in code.co_consts:
        if isinstance(const, CodeType):
            found |= _globals_of(const)
    return found


@functools.cache
def _installed() -> tuple[Path, ...]:
    paths = [sysconfig.get_path(k) for k in ("stdlib", "platstdlib", "purelib", "platlib")]
    paths += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple({Path(p).resolve() for p in paths if p})


def _is_own(module: str | None, file: str | None = None) -> bool:
    """Whether a module is people's own: not Python's, not installed, not rlaif's."""
    name = module or ""
    if name == "__main__":
        return True
    if name.split(".")[0] in sys.stdlib_module_names | {"rlaif"}:
        return False
    file = getattr(sys.modules.get(name), "__file__", None) or file
    if file is None or file.startswith("<"):
        return name not in sys.builtin_module_names
    path = Path(file).resolve()
    return not any(path.is_relative_to(folder) for folder in _installed())


def _sources(module: ModuleType) -> Iterator[str]:
    """The names of a module and of those that it imports, and the sources of people's own."""
    todo, seen = [module], set[str]()
    while todo:
        one = todo.pop()
        if one.__name__ in seen:
            continue
        seen.add(one.__name__)
        yield one.__name__
        if not _is_own(one.__name__, getattr(one, "__file__", None)):
            continue
        yield source_of(one)
        for _, value in sorted(vars(one).items()):
            name = value.__name__ if isinstance(value, ModuleType) else _home(value)
            other = sys.modules.get(name)
            if other is not None and _is_own(name, getattr(other, "__file__", None)):
                todo.append(other)


def _home(value: Any) -> str:
    """The module that a function or class was written in."""
    if isinstance(value, type | FunctionType) and isinstance(value.__module__, str):
        return value.__module__
    return ""


def source_of(module: Any) -> str:
    """The text of a module, or of a class; empty where none is kept, as in a notebook."""
    try:
        return inspect.getsource(module)
    except (OSError, TypeError):
        return ""
