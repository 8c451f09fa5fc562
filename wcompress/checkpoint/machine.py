"""A pickle machine that runs nothing.

It follows every instruction of pickle protocols 0 to 5, but a function or class that the pickle names is only ever
looked up in a fixed list of our own (`Makers`); no module is imported and no attribute of an object is used.
"""

from __future__ import annotations

import codecs
import pickle
import struct
from collections.abc import Callable
from typing import Protocol

import torch

from wcompress.checkpoint.cursor import Cursor, PickleDamage
from wcompress.checkpoint.inert import Array, Global, Inert, Known
from wcompress.errors import WCompressError

_KEY_LIMIT = 1 << 60
_OP_COST_BYTES = 64  # of a small object and the pointers to it
_SET_COST_BYTES = 216
_MAX_PROTOCOL = pickle.HIGHEST_PROTOCOL


class Makers(Protocol):
    """What the machine asks for everything beyond plain values."""

    def find(self, module: str, name: str) -> object:
        """What a global name stands for."""

    def call(self, function: object, args: object) -> object:
        """What a call stands for."""

    def build(self, target: object, state: object) -> None:
        """Give an object its state."""

    def persistent(self, identifier: object) -> object:
        """What lies outside the pickle."""


class _Mark:
    __slots__ = ()


class _UnusualKey:
    """Stands for a key that is not hashed, since hashing it could take forever."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __str__(self) -> str:
        return f"(a {self.kind})"


def safe_key(value: object) -> object:
    """Returns `value` if it can be a key at a cost that is known, else something unique in its place."""
    if isinstance(value, (str, bytes, float, bool)) or value is None:
        return value
    if isinstance(value, int) and -_KEY_LIMIT < value < _KEY_LIMIT:
        return value
    if isinstance(value, tuple) and all(isinstance(part, (str, int)) for part in value) and len(value) < 8:
        return value if all(isinstance(part, str) or abs(part) < _KEY_LIMIT for part in value) else _UnusualKey("tuple")
    return _UnusualKey("number" if isinstance(value, int) else type(value).__name__)


class Machine:
    """Follows one pickle.

    Args:
        cursor: At the pickle's first instruction; afterwards behind its last.
        makers: Decides what names and calls stand for.
        limit_bytes: The most memory that the pickle's objects may take, as estimated from its instructions.
    """

    def __init__(self, cursor: Cursor, makers: Makers, limit_bytes: int) -> None:
        self._cursor = cursor
        self._makers = makers
        self._left_bytes = limit_bytes
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}

    def run(self) -> object:
        """Returns what the pickle holds.

        Raises:
            PickleDamage: It is malformed or claims too much memory.
        """
        cursor, steps = self._cursor, _STEPS
        try:
            while True:
                code = cursor.take(1)
                if code == pickle.STOP:
                    return self._pop()
                self._charge(_OP_COST_BYTES)
                step = steps.get(code)
                if step is None:
                    raise PickleDamage(f"unknown pickle instruction {code!r} at byte {cursor.position - 1}")
                step(self)
        except (PickleDamage, WCompressError):
            raise
        except Exception as error:  # a malformed argument makes Python, NumPy and torch raise nearly anything
            raise PickleDamage(f"{type(error).__name__} at byte {cursor.position}: {error}") from error

    def _charge(self, n_bytes: int) -> None:
        self._left_bytes -= n_bytes
        if self._left_bytes < 0:
            raise PickleDamage("its pickle asks for more memory than a file of its size can need")

    # --- the stack ---------------------------------------------------------------------------------------------

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop(self) -> object:
        value = self._stack.pop()
        if isinstance(value, _Mark):
            raise PickleDamage("a mark where a value should be")
        return value

    def _top(self) -> object:
        value = self._stack[-1]
        if isinstance(value, _Mark):
            raise PickleDamage("a mark where a value should be")
        return value

    def _pop_mark(self) -> list[object]:
        stack = self._stack
        for index in range(len(stack) - 1, -1, -1):
            if isinstance(stack[index], _Mark):
                items = stack[index + 1 :]
                del stack[index:]
                return items
        raise PickleDamage("a mark is missing")

    def _discard(self) -> None:
        self._stack.pop()

    def _discard_mark(self) -> None:
        self._pop_mark()

    def _frame(self) -> None:
        self._cursor.take(8)

    def _push_mark(self) -> None:
        self._push(_Mark())

    def _duplicate(self) -> None:
        self._push(self._top())

    # --- plain values ------------------------------------------------------------------------------------------

    def _int_line(self) -> None:
        line = self._cursor.line()
        self._push(line == b"01" if line in (b"00", b"01") else int(line, 0))

    def _long_line(self) -> None:
        line = self._cursor.line()
        self._push(int(line[:-1] if line.endswith(b"L") else line, 0))

    def _signed(self, n: int) -> None:
        self._push(int.from_bytes(self._cursor.take(n), "little", signed=True))

    def _double(self) -> None:
        self._push(struct.unpack(">d", self._cursor.take(8))[0])

    def _string_line(self) -> None:
        line = self._cursor.line().strip()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b'"', b"'"):
            raise PickleDamage("a string without quotes")
        self._push(codecs.escape_decode(line[1:-1])[0].decode("latin-1"))

    def _latin(self, n: int) -> None:
        self._push(self._cursor.take(n).decode("latin-1"))

    def _text(self, n: int) -> None:
        self._push(self._cursor.take(n).decode("utf-8", "surrogatepass"))

    def _protocol(self) -> None:
        protocol = self._cursor.unsigned(1)
        if protocol > _MAX_PROTOCOL:
            raise PickleDamage(f"pickle protocol {protocol} is not known")

    # --- collections -------------------------------------------------------------------------------------------

    def _tuple_of(self, n: int) -> None:
        items = [self._pop() for _ in range(n)]
        self._push(tuple(reversed(items)))

    def _extend(self, items: list[object]) -> None:
        target = self._top()
        if isinstance(target, Inert):
            target = target.items
        if not isinstance(target, list):
            raise PickleDamage(f"a {type(target).__name__} is extended like a list")
        target.extend(items)

    def _append(self) -> None:
        self._extend([self._pop()])

    def _update(self, items: list[object]) -> None:
        target = self._top()
        if isinstance(target, Inert):
            target = target.entries
        if not isinstance(target, dict):
            raise PickleDamage(f"a {type(target).__name__} is filled like a dictionary")
        if len(items) % 2:
            raise PickleDamage("a key without a value")
        for index in range(0, len(items), 2):
            target[safe_key(items[index])] = items[index + 1]

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._update([key, value])

    def _new_set(self) -> None:
        self._charge(_SET_COST_BYTES)
        self._push([])

    def _dict_of_mark(self) -> None:
        items = self._pop_mark()
        self._push({})
        self._update(items)

    # --- the memo ----------------------------------------------------------------------------------------------

    def _put(self, index: int) -> None:
        self._charge(_OP_COST_BYTES)
        if index < 0:
            raise PickleDamage("a negative place in the memo")
        self._memo[index] = self._top()

    def _get(self, index: int) -> None:
        self._push(self._memo[index])

    # --- names, calls, state -----------------------------------------------------------------------------------

    def _find(self, module: object, name: object) -> object:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleDamage("the name of a class is not a text")
        return self._makers.find(module, name)

    def _global(self) -> None:
        module, name = self._cursor.line(), self._cursor.line()
        self._push(self._find(module.decode("utf-8"), name.decode("utf-8")))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._push(self._find(module, name))

    def _extension(self, n: int) -> None:
        self._push(Global(f"copyreg extension {self._cursor.unsigned(n)}"))

    def _call(self, function: object, args: object) -> None:
        # What is made may be a copy of an argument, and one argument may be named many times over.
        self._charge(_weight(args))
        self._push(self._makers.call(function, args))

    def _reduce(self) -> None:
        args, function = self._pop(), self._pop()
        self._call(function, args)

    def _new_with_keywords(self) -> None:
        keywords, args, kind = self._pop(), self._pop(), self._pop()
        self._push(Inert(called_name(kind), (args, keywords)))

    def _instance(self) -> None:
        module, name = self._cursor.line(), self._cursor.line()
        args = tuple(self._pop_mark())
        self._call(self._find(module.decode("utf-8"), name.decode("utf-8")), args)

    def _object(self) -> None:
        kind, *args = self._pop_mark()
        self._call(kind, tuple(args))

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Inert):
            target.state = state
        else:
            self._charge(_weight(state))
            self._makers.build(target, state)

    def _persistent_line(self) -> None:
        self._push(self._makers.persistent(self._cursor.line().decode("utf-8")))

    def _persistent(self) -> None:
        self._push(self._makers.persistent(self._pop()))

    def _no_buffers(self) -> None:
        raise PickleDamage("it needs buffers that were stored elsewhere")


def _weight(args: object) -> int:
    """Returns about how many bytes copies of all arguments would take."""
    if not isinstance(args, tuple):
        return 0
    weight = 0
    for value in args:
        if isinstance(value, (str, bytes, bytearray)):
            weight += len(value)
        elif isinstance(value, (list, tuple, dict)):
            weight += _OP_COST_BYTES * len(value)
        elif isinstance(value, torch.Tensor):
            weight += value.numel() * value.element_size()
        elif isinstance(value, Array) and value.values is not None:
            weight += value.values.nbytes
    return weight


def called_name(function: object) -> str:
    """Returns the name of what is called; raises `PickleDamage` for what cannot be called."""
    if isinstance(function, (Global, Inert, Known)):
        return function.name
    raise PickleDamage(f"a value of type {type(function).__name__} is called")


_Step = Callable[[Machine], None]
_STEPS: dict[bytes, _Step] = {
    pickle.PROTO: Machine._protocol,
    pickle.FRAME: Machine._frame,
    pickle.MARK: Machine._push_mark,
    pickle.POP: Machine._discard,
    pickle.POP_MARK: Machine._discard_mark,
    pickle.DUP: Machine._duplicate,
    # plain values
    pickle.NONE: lambda m: m._push(None),
    pickle.NEWTRUE: lambda m: m._push(True),
    pickle.NEWFALSE: lambda m: m._push(False),
    pickle.INT: Machine._int_line,
    pickle.LONG: Machine._long_line,
    pickle.BININT: lambda m: m._signed(4),
    pickle.BININT1: lambda m: m._push(m._cursor.unsigned(1)),
    pickle.BININT2: lambda m: m._push(m._cursor.unsigned(2)),
    pickle.LONG1: lambda m: m._signed(m._cursor.unsigned(1)),
    pickle.LONG4: lambda m: m._signed(m._cursor.unsigned(4)),
    pickle.FLOAT: lambda m: m._push(float(m._cursor.line())),
    pickle.BINFLOAT: Machine._double,
    pickle.STRING: Machine._string_line,
    pickle.BINSTRING: lambda m: m._latin(m._cursor.unsigned(4)),
    pickle.SHORT_BINSTRING: lambda m: m._latin(m._cursor.unsigned(1)),
    pickle.BINBYTES: lambda m: m._push(m._cursor.take(m._cursor.unsigned(4))),
    pickle.SHORT_BINBYTES: lambda m: m._push(m._cursor.take(m._cursor.unsigned(1))),
    pickle.BINBYTES8: lambda m: m._push(m._cursor.take(m._cursor.unsigned(8))),
    pickle.BYTEARRAY8: lambda m: m._push(m._cursor.take(m._cursor.unsigned(8))),
    pickle.UNICODE: lambda m: m._push(m._cursor.line().decode("raw-unicode-escape")),
    pickle.SHORT_BINUNICODE: lambda m: m._text(m._cursor.unsigned(1)),
    pickle.BINUNICODE: lambda m: m._text(m._cursor.unsigned(4)),
    pickle.BINUNICODE8: lambda m: m._text(m._cursor.unsigned(8)),
    # collections; a set is a list here, for its members need not be hashed
    pickle.EMPTY_TUPLE: lambda m: m._push(()),
    pickle.TUPLE1: lambda m: m._tuple_of(1),
    pickle.TUPLE2: lambda m: m._tuple_of(2),
    pickle.TUPLE3: lambda m: m._tuple_of(3),
    pickle.TUPLE: lambda m: m._push(tuple(m._pop_mark())),
    pickle.EMPTY_LIST: lambda m: m._push([]),
    pickle.LIST: lambda m: m._push(m._pop_mark()),
    pickle.APPEND: Machine._append,
    pickle.APPENDS: lambda m: m._extend(m._pop_mark()),
    pickle.EMPTY_DICT: lambda m: m._push({}),
    pickle.DICT: Machine._dict_of_mark,
    pickle.SETITEM: Machine._set_item,
    pickle.SETITEMS: lambda m: m._update(m._pop_mark()),
    pickle.EMPTY_SET: Machine._new_set,
    pickle.ADDITEMS: lambda m: m._extend(m._pop_mark()),
    pickle.FROZENSET: lambda m: m._push(m._pop_mark()),
    # the memo
    pickle.PUT: lambda m: m._put(int(m._cursor.line())),
    pickle.BINPUT: lambda m: m._put(m._cursor.unsigned(1)),
    pickle.LONG_BINPUT: lambda m: m._put(m._cursor.unsigned(4)),
    pickle.MEMOIZE: lambda m: m._put(len(m._memo)),
    pickle.GET: lambda m: m._get(int(m._cursor.line())),
    pickle.BINGET: lambda m: m._get(m._cursor.unsigned(1)),
    pickle.LONG_BINGET: lambda m: m._get(m._cursor.unsigned(4)),
    # names, calls, state
    pickle.GLOBAL: Machine._global,
    pickle.STACK_GLOBAL: Machine._stack_global,
    pickle.EXT1: lambda m: m._extension(1),
    pickle.EXT2: lambda m: m._extension(2),
    pickle.EXT4: lambda m: m._extension(4),
    pickle.REDUCE: Machine._reduce,
    pickle.NEWOBJ: Machine._reduce,
    pickle.NEWOBJ_EX: Machine._new_with_keywords,
    pickle.INST: Machine._instance,
    pickle.OBJ: Machine._object,
    pickle.BUILD: Machine._build,
    pickle.PERSID: Machine._persistent_line,
    pickle.BINPERSID: Machine._persistent,
    pickle.NEXT_BUFFER: Machine._no_buffers,
    pickle.READONLY_BUFFER: Machine._no_buffers,
}
