"""Registries: what params.yaml may name, one file each, imported only when it is asked for."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from facm.runtime.names import refuse_unknown


class Registry(Mapping[str, str]):
    """File name -> name of the class (or function) in it.

    A new plug-in is a file in the registry's package and a line here; nothing else knows it.

    Args:
        package: the package that holds the files.
        place: where a name is chosen, such as "params.yaml, backbone.name".
        classes: class by file name.
    """

    def __init__(self, package: str, place: str, /, **classes: str) -> None:
        self.package, self.place, self._classes = package, place, classes

    def __getitem__(self, name: str) -> str:
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def load(self, name: str) -> Any:
        """The class called `name`; raises ValueError, with the place and the nearest name, for an unknown one."""
        return getattr(self.module(name), self[name])

    def module(self, name: str) -> Any:
        """The module of `name`, imported only now; raises as `load` does."""
        refuse_unknown([name], self, self.place)
        return import_module(f"{self.package}.{name}")
