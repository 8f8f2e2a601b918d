"""Damage: of bytes, of JSON values and of tensors; drawn by hypothesis, applied by pure functions."""

import copy
import json
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

INTERESTING = [
    *(b"\x00", b"\xff", b"\x7f", b"\x80", b"\x00\x00", b"\xff\xff", b"\x7f\xff", b"\xff\x7f", b"\x00\x80"),
    *(b"\x00" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x80", b"\x80\x00\x00\x00"),
    *(b"\x00" * 8, b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\x00\x00\x00\x00\x01\x00\x00\x00", b"\x00\x00\xff\x00"),
]
"""Ends of the ranges of integers, both byte orders: what lengths, counts and offsets become when they are damaged."""

NUMBERS = [0, -1, 1, 2, 2**31, 2**63, 10**30, 0.5, -0.0, 1e-310, 1e308, float("nan"), float("inf"), float("-inf")]
TEXTS = ["", " ", "../../x", "/", "nan", "1", "é", "e\u0301", "\ud800", "\0", "x" * 300, "none", "lightningdit"]

Edit = tuple[str, int, int, Any]


def edits(size: int, most: int = 4) -> st.SearchStrategy[list[Edit]]:
    """Damage to a file of so many bytes; a fifth of it is at the head, where formats keep their lengths."""
    anywhere = st.integers(0, max(0, size - 1))
    head, tail = st.integers(0, min(size, 96)), st.integers(max(0, size - 256), size)
    at = st.one_of(anywhere, head, anywhere, tail, anywhere)
    length = st.one_of(st.integers(1, 16), st.integers(1, max(1, size)))
    one = st.one_of(
        st.tuples(st.just("flip"), at, st.just(0), st.integers(1, 255)),
        st.tuples(st.just("put"), at, st.just(0), st.sampled_from(INTERESTING)),
        st.tuples(st.just("cut"), at, st.just(0), st.none()),
        st.tuples(st.just("drop"), at, length, st.none()),
        st.tuples(st.just("repeat"), at, length, st.integers(2, 5)),
        st.tuples(st.just("splice"), at, length, anywhere),
        st.tuples(st.just("append"), at, st.just(0), st.binary(min_size=1, max_size=20)),
    )
    return st.lists(one, min_size=1, max_size=most)


def edited(content: bytes, changes: list[Edit]) -> bytes:
    """Bytes after the damage."""
    return reduce(_edit, changes, content)


def _edit(content: bytes, change: Edit) -> bytes:
    kind, at, length, value = change
    before, after = content[:at], content[at:]
    if kind == "flip":
        return before + bytes(byte ^ value for byte in after[:1]) + after[1:]
    if kind == "put":
        return before + value + after[len(value) :]
    if kind == "cut":
        return before
    if kind == "drop":
        return before + after[length:]
    if kind == "repeat":
        return before + after[:length] * value + after[length:]
    if kind == "splice":
        return before + content[value : value + length] + after[length:]
    return content + value


def plain() -> st.SearchStrategy[Any]:
    """Any value that JSON and YAML have."""
    scalar = st.one_of(
        *(st.none(), st.booleans(), st.sampled_from(NUMBERS), st.integers(-5, 300)),
        *(st.floats(), st.sampled_from(TEXTS), st.text(max_size=6)),
    )
    return st.recursive(
        scalar,
        lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=4), one, max_size=3),
        max_leaves=5,
    )


Step = tuple[str, int, Any]


def rewritings(most: int = 3) -> st.SearchStrategy[list[Step]]:
    """Changes of a nested value: of the place with a number, counted through, what becomes of it."""
    place = st.integers(0, 10**6)
    one = st.one_of(
        st.tuples(st.just("replace"), place, plain()),
        st.tuples(st.just("replace"), place, plain()),
        st.tuples(st.just("swap"), place, place),
        st.tuples(st.just("remove"), place, st.none()),
        st.tuples(st.just("rename"), place, st.sampled_from(TEXTS)),
        st.tuples(st.just("wrap"), place, st.sampled_from(["list", "dict", "text"])),
        st.tuples(st.just("add"), place, plain()),
    )
    return st.lists(one, min_size=1, max_size=most)


def rewritten(value: Any, changes: list[Step]) -> Any:
    """A copy of a nested value after the changes; the root itself may become another one."""
    root = [copy.deepcopy(value)]
    for kind, number, new in changes:
        places = _places(root)
        holder, key = places[number % len(places)]
        if kind == "replace":
            holder[key] = copy.deepcopy(new)
        elif kind == "swap":
            other, its = places[new % len(places)]
            holder[key], other[its] = copy.deepcopy(other[its]), copy.deepcopy(holder[key])
        elif kind == "wrap":
            holder[key] = {"list": [holder[key]], "dict": {"value": holder[key]}, "text": str(holder[key])}[new]
        elif kind == "add" and isinstance(holder, dict):
            holder["added"] = copy.deepcopy(new)
        elif kind == "remove" and holder is not root:
            del holder[key]
        elif kind == "rename" and isinstance(holder, dict):
            holder[new] = holder.pop(key)
    return root[0]


def _places(holder: Any) -> list[tuple[Any, Any]]:
    """Container and key of every value in a container, at any depth."""
    found: list[tuple[Any, Any]] = []
    for key, inner in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
        found.append((holder, key))
        if isinstance(inner, dict | list):
            found += _places(inner)
    return found


def as_json(value: Any) -> bytes:
    """JSON as Python writes it, NaN and lone surrogates included."""
    return json.dumps(value).encode()


DEEP = [
    b"[" * 200_000,
    b'{"a":' * 100_000,
    b"1" * 5000,
    b"",
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    b"null",
    b"[]",
    b"{}",
]
"""JSON texts that parsers stumble over: nested too deep, a number of too many digits, other encodings."""

TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda t: torch.full_like(t, float("nan")) if t.is_floating_point() else t[:0],
    "one nan": lambda t: _with(t, float("nan")),
    "inf": lambda t: _with(t, float("inf")),
    "huge": lambda t: _with(t, 1e30),
    "negative": lambda t: -t if t.dtype != torch.bool else t,
    "zero": torch.zeros_like,
    "half": lambda t: t.half(),
    "double": lambda t: t.double(),
    "int": lambda t: t.nan_to_num().long(),
    "bool": lambda t: t.bool(),
    "complex": lambda t: t.to(torch.complex64),
    "flat": lambda t: t.flatten(),
    "scalar": lambda t: t.sum(),
    "empty": lambda t: t[:0] if t.ndim else t.new_empty(0),
    "shorter": lambda t: t[1:] if t.ndim else t,
    "longer": lambda t: torch.cat([t, t]) if t.ndim else t,
    "another axis": lambda t: t[None],
    "an axis more": lambda t: t[..., None],
    "transposed": lambda t: t.transpose(0, -1).contiguous() if t.ndim > 1 else t[None],
}
UNSAFE = {"complex"}  # what safetensors files hold only in newer versions


def _with(tensor: Tensor, value: float) -> Tensor:
    if not tensor.is_floating_point() or not tensor.numel():
        return tensor
    changed = tensor.clone()
    changed.view(-1)[tensor.numel() // 2] = value
    return changed


Change = tuple[str, int, Any]


def retensorings(most: int = 3) -> st.SearchStrategy[list[Change]]:
    """Changes of a mapping of tensors."""
    number = st.integers(0, 10**6)
    one = st.one_of(
        st.tuples(st.sampled_from(sorted(TENSORS)), number, st.none()),
        st.tuples(st.sampled_from(sorted(TENSORS)), number, st.none()),
        st.tuples(st.just("remove"), number, st.none()),
        st.tuples(st.just("add"), number, st.sampled_from([name for name in TEXTS if name != "\ud800"])),
        st.tuples(st.just("rename"), number, st.sampled_from([name for name in TEXTS if name != "\ud800"])),
        st.tuples(st.just("exchange"), number, number),
    )
    return st.lists(one, min_size=1, max_size=most)


def retensored(tensors: Mapping[str, Tensor], changes: list[Change], *, safe: bool = True) -> dict[str, Tensor]:
    """Another mapping of tensors; `safe`: such as a safetensors file can hold."""
    found = dict(tensors)
    for kind, number, value in changes:
        names = list(found)
        if not names:
            break
        name = names[number % len(names)]
        if kind == "remove":
            del found[name]
        elif kind == "add":
            found[value] = found[name].clone()
        elif kind == "rename":
            found[value] = found.pop(name)
        elif kind == "exchange":
            other = names[value % len(names)]
            found[name], found[other] = found[other], found[name]
        elif not (safe and kind in UNSAFE):
            found[name] = TENSORS[kind](found[name])
    return {name: tensor.clone().contiguous() for name, tensor in found.items()}
