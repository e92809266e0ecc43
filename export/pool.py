"""Samples on the accelerator: made by many processes while the network trains, drawn from the accelerator's own memory.

Which samples a step draws from depends on how quickly they were made, so a run that is fed like this is not repeated bit for
bit; each sample still follows from its number.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.context import ForkContext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.data import CARD, Source
from export.views import VOLUMES, View, cut, middle, view


class Pool:
    """Up to `capacity` samples. Make it before the accelerator is first used: its processes are forked."""

    def __init__(self, folder: Path | None, work: Path, workers: int, capacity: int, develop: int) -> None:
        self.work, self.workers, self.capacity = work, workers, capacity
        self.source = Source(folder, "train", work)
        self.filled, self.centres = 0, []
        self._volumes: list[Tensor] = []
        context = multiprocessing.get_context("fork")
        assert isinstance(context, ForkContext)
        with context.Pool(workers) as pool:  # into the cache, so that what is read one by one below is quick
            heads = {split: Source(folder, split, work).heads for split in ("train", "develop")}
            pool.starmap(_anatomy, [(folder, split, work, n) for split, count in heads.items() for n in range(count)])
            pool.starmap(_developed, [(folder, work, k) for k in range(develop)])
        _ = self.source.anatomies  # before forking: shared by all
        self._made = [
            context.Process(target=_make, args=(self.source, first, workers, capacity), daemon=True)
            for first in range(workers)
        ]
        for process in self._made:
            process.start()

    def close(self) -> None:
        """Ends the processes that make samples."""
        for process in self._made:
            process.terminate()

    def take(self, device: str, wait_for: int = 0) -> int:
        """Move what has been made to `device`, waiting until `wait_for` are there; returns how many are."""
        if not self._volumes:
            kinds = (torch.float16, torch.uint8, torch.uint8, torch.uint8, torch.uint8)
            self._volumes = [torch.empty((self.capacity, *CARD.shape), dtype=k, device=device) for k in kinds]
        while self.filled < self.capacity:
            kept = self.source.place(self.filled)
            if not kept.exists():
                if self.filled >= wait_for:
                    break
                if not any(process.is_alive() for process in self._made):
                    raise RuntimeError(f"no process makes samples any more; {self.filled} of {wait_for} are there")
                time.sleep(0.02)
                continue
            pair = self.source.pair(self.filled)
            for volume, name in zip(self._volumes, VOLUMES, strict=True):
                volume[self.filled].copy_(torch.from_numpy(getattr(pair, name)))
            self.centres.append(middle(pair))
            self.filled += 1
            kept.unlink()
        return self.filled

    def draw(
        self, rng: np.random.Generator, batch: int, window: tuple[int, int, int]
    ) -> tuple[list[list[Tensor]], list[View]]:
        """Windows of random samples (volumes as in `VOLUMES`), and what is random about them."""
        chosen = rng.integers(self.filled, size=batch)
        views = [view(rng, CARD.shape, window, self.centres[k]) for k in chosen]
        return [cut([v[k] for v in self._volumes], one, window) for k, one in zip(chosen, views, strict=True)], views


def _anatomy(folder: Path | None, split: str, work: Path, number: int) -> None:
    Source(folder, split, work).anatomy(number)


def _developed(folder: Path | None, work: Path, k: int) -> None:
    Source(folder, "develop", work).pair(k)


def _make(source: Source, first: int, step: int, end: int) -> None:
    os.nice(5)  # the process that feeds the accelerator comes first
    torch.set_num_threads(1)
    for k in range(first, end, step):
        source.pair(k)
