"""Who runs first where the cores do not suffice: the thread that talks to clients, before those that draw.

A network keeps every core busy. Were all threads alike to the operating system, a service under more load than it can
answer would be late in refusing the rest, and then late in all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

NICE_IS_BY_THREAD = sys.platform == "linux"  # elsewhere it is the whole process that is nice, if at all
DEFAULT_NICE = 10 if NICE_IS_BY_THREAD else 0
MOST = 19

Made = TypeVar("Made")


def made_nicely(nice: int, make: Callable[[], Made]) -> Made:
    """What `make` makes, in a thread of lower priority, which all threads that it starts inherit.

    nice: 0 to 19, as the operating system counts. Raises ValueError, and what `make` raises.
    """
    if not 0 <= nice <= MOST:
        raise ValueError(f"nice: got {nice}, expected 0 to {MOST}")
    if nice and not NICE_IS_BY_THREAD:
        raise ValueError(f"nice: got {nice}, but that is the priority of a thread on Linux only; leave it at 0")
    if not nice:
        return make()
    with ThreadPoolExecutor(1, "loading", os.nice, (nice,)) as thread:
        return thread.submit(make).result()
