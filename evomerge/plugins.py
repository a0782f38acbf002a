"""`Table`: what recipes and tasks name: evomerge's own, and what other packages add by entry points.

Reading a document imports a package only if the document names one of its entry points, in a group of evomerge's: code
of a package that the user installed for evomerge, and never code of the document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from evomerge.document import suggestion
from evomerge.errors import PluginError

T = TypeVar("T")


class Table(Mapping[str, T]):
    """Merge methods, optimizers or metrics by name.

    Entry points are looked up when a name is asked for that is not built in, and when names are listed. Their packages
    are imported only when one of their names is used. A built-in name always means evomerge's own.

    Args:
        group: the group of entry points whose names are added.
        kind: what one of them is called in messages.
        own: those of evomerge.
        valid: whether what an entry point refers to is one.
    """

    def __init__(self, group: str, kind: str, own: Mapping[str, T], valid: Callable[[object], bool]) -> None:
        self.own = own
        self._group = group
        self._kind = kind
        self._valid = valid
        self._loaded: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        """Returns what `name` stands for.

        Raises:
            KeyError: nothing has the name.
            PluginError: a package has it and cannot be used, or several have it.
        """
        if name in self.own:
            return self.own[name]
        if name not in self._loaded:
            self._loaded[name] = self._load(self._entry_point(name))
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        """Yields every name, evomerge's own first."""
        return iter(dict.fromkeys([*self.own, *(point.name for point in entry_points(group=self._group))]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        """Returns whether something has the name; no package is imported."""
        return name in self.own or name in list(iter(self))

    def fault(self, name: str) -> str | None:
        """Returns why nothing can be used by that name, and what to do; None if something can."""
        try:
            self[name]
        except KeyError:
            return f'there is no {self._kind} "{name}"{suggestion(name, self)}'
        except PluginError as fault:
            return str(fault)
        return None

    def origin(self, name: str) -> str | None:
        """Returns the package and the version that `name` comes from; None for evomerge's own.

        Raises:
            KeyError: nothing has the name.
            PluginError: several packages have it.
        """
        return None if name in self.own else _package(self._entry_point(name))

    def _entry_point(self, name: str) -> EntryPoint:
        found = list(entry_points(group=self._group, name=name))
        if not found:
            raise KeyError(name)
        if len(found) > 1:
            raise PluginError(
                f'the {self._kind} "{name}" is in more than one package: {", ".join(map(_package, found))};'
                " remove all but one"
            )
        return found[0]

    def _load(self, point: EntryPoint) -> T:
        where = f'{_package(point)}: the {self._kind} "{point.name}" (entry point {point.value} of {point.group})'
        try:
            loaded = point.load()
        except Exception as fault:
            raise PluginError(
                f"{where} cannot be loaded: {type(fault).__name__}: {fault}; repair, upgrade or remove the package"
            ) from fault
        if not self._valid(loaded):
            raise PluginError(f"{where} refers to an object of type {type(loaded).__name__}, not to a {self._kind}")
        own_name = getattr(loaded, "name", point.name)
        if own_name != point.name:
            raise PluginError(f'{where} calls itself "{own_name}"; give both the same name')
        return loaded  # type: ignore[no-any-return]


def _package(point: EntryPoint) -> str:
    assert point.dist is not None  # entry_points() finds them in distributions
    return f"{point.dist.name} {point.dist.version}"
