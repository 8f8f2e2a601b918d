"""Other projects' checkpoint files, read without running any code that they bring.

A pickle may name any function of any module and have it called. So a file is read by torch's reader of tensors and
plain values (`weights_only=True`). One that needs more (an argparse.Namespace of settings, a whole nn.Module, EDM's
classes that carry their own source) is refused, with the first name that it asks for, unless it is trusted. Even then
none of its code runs: tensors, dicts, lists and numbers are rebuilt, and a `StandIn` that only notes its arguments
replaces every other class or function. Trust means that a hostile file may still fill the memory. TorchScript archives,
which are programs, are refused, trusted or not.
"""

import io
import pickle
import re
import struct
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facm.runtime.files import load_tensors, refuse_no_file

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # with which torch.save began a file before it wrote zips
PICKLE = b"\x80"  # with which pickles begin since protocol 2
SCRIPT = "constants.pkl"  # by this record torch.load tells a TorchScript archive, and runs its code
DAMAGED = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, LookupError, ValueError, TypeError),
    *(ArithmeticError, AssertionError, AttributeError, ImportError, MemoryError, RuntimeError),
)
"""What torch and pickle raise over bytes that are not what was written."""


class ForeignError(ValueError):
    """A foreign file that cannot be read, or is not what it was said to be; the message names the file and the cure."""


class StandIn(dict[Any, Any]):
    """Replaces an object of an unknown class, of the full name `name`."""

    name = ""
    arguments: tuple[Any, ...]  # with which it was to be made
    state: Any  # which it was to take on, or None

    def __new__(cls, *arguments: Any, **named: Any) -> "StandIn":
        made = super().__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def append(self, value: Any) -> None:
        """Take an entry of what was a list, and forget it."""

    def extend(self, values: Any) -> None:
        """Take entries of what was a list, and forget them."""


class Unpickler(pickle.Unpickler):
    """Rebuilds tensors and plain containers; everything else becomes a StandIn. torch.load uses it, too."""

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the file stands for."""
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        known = KNOWN.get(f"{module}.{name}")
        return known if known is not None else type(name, (StandIn,), {"name": f"{module}.{name}"})


def load(file: Any, **options: Any) -> Any:
    return Unpickler(file, **options).load()


def read(path: Path, *, trust: bool = False, trusting: str | None = None) -> Any:
    """The content of a `.safetensors`, `.pt` or `.pkl` file, on the CPU; tensors of a zipped one are mapped.

    Args:
        trust: also read one that asks for more than tensors and plain values, with stand-ins for what it asks for.
        trusting: ends the message about such a file, what to do if it is trusted; None: a command that takes its
            tensors out.

    Raises:
        FileNotFoundError: there is no such file.
        ForeignError: it asks for more, or is damaged.
    """
    refuse_no_file(path)
    if path.suffix == ".safetensors":
        return load_tensors(path, "fetch it again")
    try:
        zipped = zipfile.is_zipfile(path)
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
        plain = not zipped and start != MAGIC
        if plain and not start.startswith(PICKLE):
            raise ForeignError(f"{path} is damaged, or no checkpoint (it begins with {start!r}): fetch it again")
        if zipped and SCRIPT in torch._C.PyTorchFileReader(str(path)).get_all_records():
            raise ForeignError(f"{path} is a TorchScript archive, whose code torch would run: save its state dict")
        if plain and not trust:
            raise ForeignError(_untrusted(path, "it is a pickle of Python objects", trusting))
        if plain:
            with path.open("rb") as file:
                return load(file)
        options: dict[str, Any] = {"pickle_module": sys.modules[__name__]} if trust else {}
        return torch.load(path, map_location="cpu", weights_only=not trust, mmap=zipped, **options)
    except ForeignError:
        raise
    except DAMAGED as error:
        unsafe = re.search(r"unsupported (?:global|class).*?(?=\. |\.?$)", str(error), re.IGNORECASE | re.MULTILINE)
        if unsafe is None or trust:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ForeignError(f"{path} is damaged, or no checkpoint ({first}): fetch it again") from None
        raise ForeignError(_untrusted(path, unsafe[0], trusting)) from None


def _untrusted(path: Path, why: str, trusting: str | None) -> str:
    if trusting is None:
        trusting = (
            "take its tensors out, which runs none of its code, and use the new file: "
            'python -c "import pathlib, safetensors.torch as s; from facm.runtime import foreign; '
            f"s.save_file(foreign.read(pathlib.Path('{path}'), trust=True), '{path.with_suffix('.safetensors')}')\"; "
            "where the weights lie deeper, add their key: ['state_dict']"
        )
    return (
        f"{path} holds more than tensors and plain values ({why}), and reading that may run code hidden in it. If you "
        f"trust its source, {trusting}"
    )


def _storage(content: bytes) -> Any:
    """The storage in a tensor's pickle outside of torch.save, which torch itself would read with code and all."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _parameter(data: Tensor, *rest: Any) -> Tensor:
    return data


KNOWN: dict[str, Any] = {
    "builtins.set": set,
    "__builtin__.set": set,
    "collections.OrderedDict": OrderedDict,
    "torch.Size": torch.Size,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_tensor": torch._utils._rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch.storage._load_from_bytes": _storage,
}
