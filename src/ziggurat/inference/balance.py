"""Which replica of an endpoint serves a call: pure choices over their names and loads.

A call that belongs to a session goes where the session's last call was, so that the replica's prefix cache (its KV cache) still holds the
conversation. Rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998) finds that place without
anybody remembering it: each process, and each process after a restart, orders the replicas of a session alike, and a replica that is lost
moves its own sessions and no others. A busy session may not bury its replica: none takes more than 1.25 times the mean load, and what is
over goes to the next in the session's order (Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads", 2018).

A call without a session takes the less busy of two that are drawn (Mitzenmacher, "The power of two choices in randomized load balancing",
2001): nearly as good as the least busy of all, and it does not send all processes to the same one when loads are known late.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from hashlib import blake2b

#: How far over the mean load a replica may go for the sake of a session.
BOUND = 1.25
#: Calls that a replica takes whatever the mean is: a server batches them, and an idle pool should not scatter one conversation.
FEW = 4


def order(session: str, replicas: Sequence[str]) -> list[str]:
    """Return replicas in the order in which a session prefers them."""
    key = blake2b(session.encode("utf-8", "surrogatepass"), digest_size=32).digest()
    return sorted(replicas, key=lambda name: blake2b(name.encode(), digest_size=16, key=key).digest())


def bound(loads: Sequence[float]) -> int:
    """Return how many calls a replica may have, one more that is to be placed included."""
    return max(FEW, math.ceil(BOUND * (sum(loads) + 1) / len(loads)))


def by_session(session: str, loads: Mapping[str, float]) -> str:
    """Return the first replica in a session's order that has room. `loads` are calls under way, by replica; at least one."""
    most = bound(list(loads.values()))
    preferred = order(session, list(loads))
    # One of them is at or under the mean, so there is always room.
    return next((name for name in preferred if loads[name] + 1 <= most), preferred[0])


def by_load(loads: Mapping[str, float], rng: random.Random) -> str:
    """Return the less busy of two replicas that are drawn. `loads` are calls under way, by replica; at least one."""
    names = list(loads)
    if len(names) == 1:
        return names[0]
    first, second = rng.sample(names, 2)
    return first if loads[first] <= loads[second] else second
