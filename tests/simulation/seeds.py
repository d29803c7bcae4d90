"""Many seeds, one after another or on several cores; what a worker process runs."""

import gc
import multiprocessing
from collections.abc import Iterator
from functools import cache
from typing import Final

from tests.simulation.world import Result, run_seed

CHUNK: Final = 10
"""Seeds that a worker takes at once."""
CHUNKS_MAX: Final = 50
"""Chunks that a worker process takes before another one stands in: what outlives seeds stays little."""


def results_of(seeds: range, workers: int) -> Iterator[Result]:
    """What each seed came to, in no particular order when there are several workers."""
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    if workers == 1:
        for chunk in chunks:
            yield from run_seeds(chunk)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with context.Pool(workers, maxtasksperchild=CHUNKS_MAX) as pool:
        for results in pool.imap_unordered(run_seeds, chunks):
            yield from results


def run_seeds(seeds: range) -> list[Result]:
    """Some seeds, one after another, in this process."""
    warm_up()
    results = []
    for seed in seeds:
        results.append(run_seed(seed))
        gc.collect()
    return results


@cache
def warm_up() -> None:
    """Run one, and take what is there then for permanent: the garbage of a seed is found in a tenth of the time."""
    run_seed(0)
    gc.collect()
    gc.freeze()
