"""Who takes part in the next call of the network: earliest virtual deadline first.

A sample is allowed to take STRETCH times as long as it would take alone in an idle engine. Its virtual deadline, on a
clock that counts calls of the network, is

    due = clock at arrival + STRETCH * calls alone * 2^-priority

and the samples that are due first make up each batch (Bender, Chakrabarti and Muthukrishnan 1998, for the stretch of
continuous job streams). From this follows what a service wants:

- no blocking at the head of the line: 4 steps that arrive behind 1000 are due long before these, and take part in the
  very next call; nothing is lost by the break, as a sample's state waits between two rows;
- no starvation: what waits keeps its deadline, those of newcomers move on with the clock, so that it is passed by those
  only which arrive within its own allowance;
- equal burdens: under load all requests are slowed by about the same factor, not by the same time;
- no gain by size: of a request for more samples than a batch holds, the later ones are due later.
"""

from __future__ import annotations

from collections.abc import Iterable

from ddpm_deploy.serve.buckets import Buckets
from ddpm_deploy.serve.sample import Sample

STRETCH = 8
MAX_PRIORITY = 8


def calls_alone(steps: int, lanes: int, widest: int) -> int:
    """How many calls until the last of so many lanes is drawn, if nothing else is. widest: the largest batch."""
    return steps * -(-lanes // widest)


def due(clock: float, calls: int, priority: int) -> float:
    """The virtual deadline; one step of priority halves the allowance."""
    return clock + STRETCH * calls * 2.0**-priority


def chosen(candidates: Iterable[Sample], buckets: Buckets) -> list[Sample]:
    """The samples of the next call, of one shape; fewer where they are larger than the model was trained for.

    candidates: in the order in which they are due.
    """
    batch: list[Sample] = []
    lanes, limit = 0, buckets.limit
    for sample in candidates:
        if batch:
            if sample.shape != batch[0].shape:
                continue
            if lanes + sample.lanes > limit // sample.weight_in_memory:
                break
        batch.append(sample)
        lanes += sample.lanes
    room = buckets.room(lanes)
    while len(batch) > 1 and lanes > room:
        lanes -= batch.pop().lanes
    return batch
