"""Things of different sizes in an order, asked for the first one that fits into a room.

A search tree by rank: each node knows, per resource, the least that anything below it asks for, so whole branches that
cannot fit are passed over. Owns the structure only. Must not know what is kept in it or what the room belongs to.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

Rank = tuple[int, float, int]  # smaller is earlier; no two entries share one
Size = tuple[int, int, int, int]  # cores, memory and disk in MB, gpus

#: Entries per node: a look walks over up to so many at each of the few levels.
WIDTH = 32

T = TypeVar("T")


class _Node:
    """``ranks``: of the entries of a leaf; above, a rank that none of a child's is below (nothing at the left edge).
    ``least``: one column per resource, of what an entry or child asks for at least."""

    __slots__ = ("items", "leaf", "least", "ranks")

    def __init__(self, leaf: bool) -> None:
        self.leaf = leaf
        self.ranks: list[Rank] = []
        self.items: list[object] = []
        self.least: tuple[list[int], ...] = ([], [], [], [])

    def put(self, index: int, rank: Rank, size: Size, item: object) -> None:
        self.ranks.insert(index, rank)
        self.items.insert(index, item)
        for column, amount in zip(self.least, size, strict=True):
            column.insert(index, amount)

    def cut(self, index: int) -> None:
        del self.ranks[index], self.items[index]
        for column in self.least:
            del column[index]

    def lowest(self) -> Size:
        cores, memory, disk, gpus = self.least
        return min(cores), min(memory), min(disk), min(gpus)

    def split(self) -> _Node:
        """Give the right half to a new node."""
        right, half = _Node(self.leaf), len(self.items) // 2
        right.ranks, self.ranks = self.ranks[half:], self.ranks[:half]
        right.items, self.items = self.items[half:], self.items[:half]
        right.least = tuple([column[half:] for column in self.least])
        self.least = tuple([column[:half] for column in self.least])
        return right


class SizeTree(Generic[T]):
    """Entries by rank. Every call takes time with the logarithm of their number, but for ``items`` and ``largest``;
    ``first`` may take longer when different resources rule out different entries."""

    def __init__(self) -> None:
        self._root = _Node(leaf=True)
        self.count = 0

    def insert(self, rank: Rank, size: Size, item: T) -> None:
        """Add an entry; its rank must be new."""
        self.count += 1
        right = _insert(self._root, rank, size, item)
        if right is not None:
            left, self._root = self._root, _Node(leaf=False)
            self._root.put(0, left.ranks[0], left.lowest(), left)
            self._root.put(1, right.ranks[0], right.lowest(), right)

    def remove(self, rank: Rank) -> None:
        """Take the entry of this rank out; KeyError when there is none."""
        _remove(self._root, rank)
        self.count -= 1
        while not self._root.leaf and len(self._root.items) <= 1:
            child = self._root.items[0] if self._root.items else _Node(leaf=True)
            assert isinstance(child, _Node)
            self._root = child

    def first(self, room: Size, excluded: Sequence[Size] = ()) -> T | None:
        """The first entry that asks for at most ``room`` and, in some resource, for less than each of ``excluded``."""
        return _first(self._root, room, excluded)  # type: ignore[return-value]

    def head(self) -> T | None:
        """The entry of the lowest rank."""
        node = self._root
        while not node.leaf:
            child = node.items[0]
            assert isinstance(child, _Node)
            node = child
        return node.items[0] if node.items else None  # type: ignore[return-value]

    def items(self) -> Iterator[T]:
        """All entries by rank; O(n)."""
        for leaf in _leaves(self._root):
            yield from leaf.items  # type: ignore[misc]

    def lowest(self) -> Size:
        """The least of each resource that any entry asks for; there must be one."""
        return self._root.lowest()

    def largest(self) -> Size:
        """The most of each resource that any entry asks for, 0 without entries; O(n), but quick."""
        most = [0, 0, 0, 0]
        for leaf in _leaves(self._root):
            if leaf.items:
                most = [max(known, max(column)) for known, column in zip(most, leaf.least, strict=True)]
        return most[0], most[1], most[2], most[3]


def covers(excluded: Sequence[Size], size: Size) -> bool:
    """Is ``size`` in every resource at least as large as one of ``excluded``?"""
    cores, memory, disk, gpus = size
    return any(c <= cores and m <= memory and d <= disk and g <= gpus for c, m, d, g in excluded)


def _insert(node: _Node, rank: Rank, size: Size, item: object) -> _Node | None:
    """Insert below a node; its new right neighbour when it had to be split."""
    if node.leaf:
        node.put(bisect_left(node.ranks, rank), rank, size, item)
    else:
        index = max(0, bisect_right(node.ranks, rank) - 1)
        child = node.items[index]
        assert isinstance(child, _Node)
        right = _insert(child, rank, size, item)
        if right is None:
            for column, amount in zip(node.least, size, strict=True):
                if amount < column[index]:
                    column[index] = amount
        else:
            _set(node, index, child.lowest())
            node.put(index + 1, right.ranks[0], right.lowest(), right)
    return node.split() if len(node.items) > WIDTH else None


def _remove(node: _Node, rank: Rank) -> None:
    if node.leaf:
        index = bisect_left(node.ranks, rank)
        if index == len(node.ranks) or node.ranks[index] != rank:
            raise KeyError(rank)
        node.cut(index)
        return
    index = max(0, bisect_right(node.ranks, rank) - 1)
    child = node.items[index]
    assert isinstance(child, _Node)
    _remove(child, rank)
    if not child.items:
        node.cut(index)
        return
    for column, below in zip(node.least, child.least, strict=True):
        if column[index] not in below:  # what is gone was the least of this resource
            column[index] = min(below)


def _set(node: _Node, index: int, size: Size) -> None:
    for column, amount in zip(node.least, size, strict=True):
        column[index] = amount


def _first(node: _Node, room: Size, excluded: Sequence[Size]) -> object | None:
    cores, memory, disk, gpus = room
    for index, (c, m, d, g) in enumerate(zip(*node.least, strict=True)):
        if (m <= memory and c <= cores and d <= disk and g <= gpus
                and not (excluded and covers(excluded, (c, m, d, g)))):
            item = node.items[index]
            if node.leaf:
                return item
            assert isinstance(item, _Node)
            found = _first(item, room, excluded)
            if found is not None:
                return found
    return None


def _leaves(node: _Node) -> Iterator[_Node]:
    if node.leaf:
        yield node
        return
    for child in node.items:
        assert isinstance(child, _Node)
        yield from _leaves(child)
