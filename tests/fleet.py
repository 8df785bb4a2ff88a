"""Several services on one database and one cluster, each of which dies by itself: what a `Storm` is to one.

A service that dies is started again under another name, so that its lease has to run out for the others.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from storm import Fate, KilledError, Storm


class Fleet:
    """Storms that share clock and cluster; who asks, asks any of them.

    Args:
        root: Folder of their homes.
        url: Their database, on PostgreSQL.
        servers: How many.
        dice: Draws who is asked, and who is suspended for a while.
        cpus: Of the cluster.
        settings: Of each service.
    """

    def __init__(
        self, root: Path, url: str, *, servers: int, dice: random.Random, cpus: int = 2, **settings: Any
    ) -> None:
        self._dice = dice
        self._members = [Storm(root, url, cpus=cpus, **settings) for _ in range(servers)]
        self.clock, self.ray = self._members[0].clock, self._members[0].ray
        for member in self._members:
            member.clock, member.ray = self.clock, self.ray
        self._suspended: dict[int, int] = {}
        self._lives = 0

    @property
    def deaths(self) -> list[str]:
        return [death for member in self._members for death in member.deaths]

    @property
    def is_alive(self) -> bool:
        return any(member.is_alive for member in self._members)

    def start(self, fate: Fate | None = None) -> None:
        """Begin a new life of those who are dead; all of them get the fate."""
        for member in self._members:
            if not member.is_alive:
                self._lives += 1
                member.name = f"server-{self._lives}"
                member.start(fate)

    def call(self, verb: str, *args: Any, **named: Any) -> Any:
        """As `Storm.call`, of any member; each takes its turn of the dispatcher, unless it is suspended.

        Raises:
            KilledError: a member died.
            Exception: what the verb raises.
        """
        if verb != "step":
            return self._dice.choice([member for member in self._members if member.is_alive]).call(verb, *args, **named)
        for place, member in enumerate(self._members):
            left = self._suspended.pop(place, 0)
            if left or self._dice.random() < 0.02:
                # Longer than a lease, at times, or only long enough to be in doubt.
                self._suspended[place] = left - 1 if left else self._dice.randrange(2, 14)
            elif member.is_alive:
                member.call(verb)
        return None

    def insist(self, verb: str, *args: Any, **named: Any) -> Any:
        """As `Storm.insist`."""
        while True:
            try:
                return self.call(verb, *args, **named)
            except KilledError:
                self.start()

    def kill(self) -> None:
        """End all lives."""
        for member in self._members:
            member.kill()
