"""Makes random programs for `ziggurat.testing.programs`: the same seed makes the same program."""

from __future__ import annotations

import random
from collections.abc import Callable

from ziggurat.testing.programs import Node


class Generator:
    """Makes one program.

    Args:
        seed: decides everything.
        size: about how many operations.
    """

    def __init__(self, seed: int, size: int = 14) -> None:
        self.chance = random.Random(seed)
        self.left = size
        self._keys = 0
        #: (name, value) of the signals that the program's first run waits for, in the order in which they must be sent.
        self.signals: list[tuple[str, int]] = []
        self._leaves: list[Callable[[bool], Node]] = [self._task] * 6 + [
            *([self._sleep] * 2),
            self._doomed,
            self._stamp,
            self._tell,
            self._signal_times_out,
            self._timeout_hits,
            self._signal,
            self._signal,
            self._timeout_races,
            self._mail,
        ]
        self._trees: list[Callable[[bool, int], Node]] = [
            *(self._of("gather", 2, 4), self._of("gather_errors", 1, 2), self._of("group", 2, 4), self._of("wait_all", 2, 4)),
            *(self._of("as_completed", 2, 4), self._of("race", 2, 3), self._of("timeout_spares", 1, 1), self._of("shield", 1, 1)),
            *(self._of("event", 2, 3), self._of("queue", 2, 4), self._of("limited", 2, 4), self._of("condition", 1, 3)),
            *(self._of("finally", 2, 2), self._of("patched", 1, 1), self._of("group_fails", 1, 1), self._of("first", 1, 1)),
            *(self._of("cancels", 1, 1), self._child, self._child, self._child, self._abandons),
        ]

    def program(self) -> list[Node]:
        """Return the program's generations."""
        return [self._seq(True, 3) for _ in range(self.chance.choice((1, 1, 1, 2, 3)))]

    # -- inside ---------------------------------------------------------------------------------------------------

    def _node(self, op: str, **fields: object) -> Node:
        self._keys += 1
        return {"op": op, "key": f"k{self._keys}", **fields}

    def _seq(self, root: bool, depth: int) -> Node:
        count = self.chance.randint(2, 4) if depth == 3 else self.chance.randint(1, 2)
        return {"op": "seq", "of": [self._any(root, depth) for _ in range(count)]}

    def _any(self, root: bool, depth: int) -> Node:
        """Return any operation. Signals from the harness go to the `root` run only, whose id it knows."""
        self.left -= 1
        if depth and self.left > 0 and self.chance.random() < 0.6:
            return self.chance.choice(self._trees)(root, depth - 1)
        return self.chance.choice(self._leaves)(root)

    def _of(self, op: str, least: int, most: int) -> Callable[[bool, int], Node]:
        def make(root: bool, depth: int) -> Node:
            fields: Node = {"of": [self._part(root, depth) for _ in range(self.chance.randint(least, most))]}
            if op in ("group_fails", "first", "cancels"):
                fields["nevers"] = [self._never() for _ in range(self.chance.randint(1, 2))]
            if op == "limited":
                fields["limit"] = self.chance.randint(1, 2)
            return self._node(op, **fields, **({self.chance.choice(("wait_for", "swallow")): True} if self._coin() else {}))

        return make

    def _part(self, root: bool, depth: int) -> Node:
        return self._seq(root, depth) if self._coin() else self._any(root, depth)

    def _never(self) -> Node:
        return self._node("never", how=self.chance.choice(("signal", "timer", "task", "child", "event")), cleanup=self._coin())

    def _coin(self) -> bool:
        return self.chance.random() < 0.4

    def _task(self, root: bool) -> Node:
        return self._node("task", plain=self.chance.random() < 0.25, fail=self.chance.choice((0, 0, 0, 0, 1, 2)))

    def _sleep(self, root: bool) -> Node:
        return self._node("sleep", ms=self.chance.choice((0, 1, 2, 5)))

    def _doomed(self, root: bool) -> Node:
        return self._node("doomed", refused=self._coin())

    def _stamp(self, root: bool) -> Node:
        return self._node("stamp")

    def _tell(self, root: bool) -> Node:
        return self._node("tell")

    def _mail(self, root: bool) -> Node:
        return self._node("mail")

    def _signal_times_out(self, root: bool) -> Node:
        return self._node("signal_times_out", ms=self.chance.choice((1, 3)))

    def _timeout_hits(self, root: bool) -> Node:
        return self._node("timeout_hits", ms=self.chance.choice((1, 3)), wait_for=self._coin(), nevers=[self._never()])

    def _timeout_races(self, root: bool) -> Node:
        return self._node("timeout_races", ms=self.chance.choice((1, 2)))

    def _signal(self, root: bool) -> Node:
        if not root:
            return self._task(root)
        node = self._node("signal")
        node["name"] = node["key"]
        self.signals.append((node["name"], self.chance.randint(0, 99)))
        return node

    def _child(self, root: bool, depth: int) -> Node:
        generations = [self._seq(False, depth) for _ in range(self.chance.choice((1, 1, 1, 2)))]
        if self.chance.random() < 0.2:
            generations[-1]["of"].append(self._node("raise"))
        return self._node("child", generations=generations)

    def _abandons(self, root: bool, depth: int) -> Node:
        return self._node("abandons", generations=[self._seq(False, depth)])
