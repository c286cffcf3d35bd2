"""A disk that says what a crash may leave on it: the model beneath the tests of durability.

Data is certain once its file was fsynced, a name once its folder was; nothing else is. A failed
fsync has lost its data for good, whatever a later one says (Linux marks the pages clean).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = 0
_MAX_FREE_NAMES = 6

Tree = Mapping[str, bytes | None]
"""Contents by relative path; None is a folder."""


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes written to a file."""

    node: int
    at: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    """A file cut to a size."""

    node: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Sync:
    """An fsync of a file or a folder, through the `opened`-th descriptor."""

    node: int
    opened: int
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """A new name: of a new file, a new folder, or of one that was renamed from `old` beside it."""

    folder: int
    name: str
    node: int
    is_folder: bool = False
    old: str = ""


@dataclass(frozen=True, slots=True)
class Unlink:
    """A name taken away."""

    folder: int
    name: str


Operation = Write | Truncate | Sync | Link | Unlink


class Disk:
    """Folders and files as they are for certain, and what is still on its way to them."""

    def __init__(self) -> None:
        self.folders: dict[int, dict[str, int]] = {ROOT: {}}
        self.files: dict[int, bytes] = {}
        self._data: dict[int, list[tuple[Write | Truncate, bool]]] = {}
        self._names: list[Link | Unlink] = []

    def apply(self, operation: Operation) -> None:
        """Take in what a process did."""
        match operation:
            case Write() | Truncate():
                self._data.setdefault(operation.node, []).append((operation, True))
            case Link() | Unlink():
                if isinstance(operation, Link) and not operation.old:
                    if operation.is_folder:
                        self.folders[operation.node] = {}
                    else:
                        self.files[operation.node] = b""
                self._names.append(operation)
            case Sync(node=node) if node in self.folders:
                if not operation.failed:
                    _rename(self.folders, [op for op in self._names if op.folder == node])
                    self._names = [op for op in self._names if op.folder != node]
            case Sync(node=node, failed=True):
                self._data[node] = [(op, False) for op, _ in self._data.get(node, ())]
            case Sync(node=node):
                for change, can_arrive in self._data.pop(node, ()):
                    if can_arrive:
                        self.files[node] = _changed(self.files[node], change)

    def seen(self) -> Tree:
        """What a running process sees, and what the death of processes alone leaves."""
        files = dict(self.files)
        for node, changes in self._data.items():
            for change, _ in changes:
                files[node] = _changed(files[node], change)
        return self._tree(self._names, files)

    def lost(self) -> Tree:
        """What is there for certain."""
        return self._tree((), self.files)

    def crash_states(self) -> Iterator[Tree]:
        """Everything that a loss of power may leave.

        Of each file the changes up to any place, the next one torn (0, 1, half, all but 1 byte, or
        space without data); of the names any subset, or, if there are very many, any first ones
        and all but any one. Each with each.
        """
        nodes = list(self._data)
        for names in self._subsets_of_names():
            for contents in itertools.product(*(self._contents(node) for node in nodes)):
                yield self._tree(names, {**self.files, **dict(zip(nodes, contents, strict=True))})

    def _contents(self, node: int) -> list[bytes]:
        before = self.files[node]
        contents = [before]
        for change, _ in self._data[node]:
            if isinstance(change, Write):
                size = len(change.data)
                for kept in (1, size // 2, size - 1):
                    contents.append(_written(before, change.at, change.data[:kept]))
                for kept in (0, size // 2):
                    hole = change.data[:kept] + bytes(size - kept)
                    contents.append(_written(before, change.at, hole))
            before = _changed(before, change)
            contents.append(before)
        return list(dict.fromkeys(contents))

    def _subsets_of_names(self) -> Iterator[list[Link | Unlink]]:
        names = self._names
        if len(names) <= _MAX_FREE_NAMES:
            for kept in itertools.product((False, True), repeat=len(names)):
                yield list(itertools.compress(names, kept))
        else:
            for place in range(len(names)):
                yield names[:place]
                yield names[:place] + names[place + 1 :]
            yield names

    def _tree(self, names: list[Link | Unlink] | tuple[()], files: Mapping[int, bytes]) -> Tree:
        folders = {node: dict(entries) for node, entries in self.folders.items()}
        _rename(folders, names)
        tree: dict[str, bytes | None] = {}

        def walk(folder: int, prefix: str) -> None:
            for name, node in sorted(folders[folder].items()):
                if node in folders:
                    tree[prefix + name] = None
                    walk(node, f"{prefix}{name}/")
                else:
                    tree[prefix + name] = files[node]

        walk(ROOT, "")
        return tree


def put_down(tree: Tree, folder: Path) -> None:
    """Make a folder that holds a tree."""
    folder.mkdir()
    for name, data in tree.items():
        path = folder / name
        if data is None:
            path.mkdir()
        else:
            path.write_bytes(data)


def picked_up(folder: Path) -> Tree:
    """The tree that a folder holds."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def _rename(folders: dict[int, dict[str, int]], names: list[Link | Unlink] | tuple[()]) -> None:
    for change in names:
        entries = folders[change.folder]
        if isinstance(change, Unlink):
            entries.pop(change.name, None)
        else:
            entries.pop(change.old, None)
            entries[change.name] = change.node


def _changed(data: bytes, change: Write | Truncate) -> bytes:
    if isinstance(change, Truncate):
        return data[: change.size_bytes].ljust(change.size_bytes, b"\0")
    return _written(data, change.at, change.data)


def _written(data: bytes, at: int, piece: bytes) -> bytes:
    if not piece:
        return data
    return data[:at].ljust(at, b"\0") + piece + data[at + len(piece) :]
