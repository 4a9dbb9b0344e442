"""Time to write a dataset, and the choice of the limit of a run: writing or the model.

A worker writes all layer files of a shard at once, over one connection each. More workers mean more
devices and more connections, so their number does not change which of the two is slower. If the
storage limits the total rate of all workers, because of a quota or a file server, then some number
of workers balances the two, and additional workers only wait.
"""

from __future__ import annotations

from dataclasses import dataclass

CONNECTION_RATE = 50_000_000
"""Bytes per second of one connection to a bucket: an assumption, at the lower end of reported
rates."""


@dataclass(frozen=True)
class StorageLimit:
    """Work of a run for the model and for the storage.

    Attributes:
        model_seconds: seconds for one worker to compute all shards alone.
        bytes: size of all files.
        files: number of layer files that a worker writes at once.
        shared_rate: bytes per second that the storage accepts from all workers together; None if
            only the connections limit the rate.
    """

    model_seconds: float
    bytes: int
    files: int
    shared_rate: int | None = None

    @property
    def worker_rate(self) -> int:
        """Bytes per second of the connections of one worker."""
        return self.files * CONNECTION_RATE

    def rate(self, workers: int) -> int:
        """Return the bytes per second that a number of workers write together."""
        own = workers * self.worker_rate
        return own if self.shared_rate is None else min(own, self.shared_rate)

    def writing_seconds(self, workers: int) -> float:
        """Return the seconds that a number of workers need to write all files."""
        return self.bytes / self.rate(workers)

    def run_seconds(self, busiest: float) -> float:
        """Return the seconds of a run whose busiest worker has this fraction of all shards."""
        own = busiest * max(self.model_seconds, self.bytes / self.worker_rate)
        return own if self.shared_rate is None else max(own, self.bytes / self.shared_rate)

    @property
    def connections_are_slower(self) -> bool:
        """True if the connections of any number of workers take longer than the model."""
        return self.bytes > self.model_seconds * self.worker_rate

    @property
    def useful_workers(self) -> int | None:
        """Number of workers, at least 1, that keep the storage busy; more workers would wait.

        With fewer, the model is the limit, or `connections_are_slower`. None without `shared_rate`.
        """
        if self.shared_rate is None or not self.bytes:
            return None
        seconds = max(self.model_seconds, self.bytes / self.worker_rate)
        return max(1, int(seconds * self.shared_rate / self.bytes))

    def describe(self, workers: int) -> str:
        """Describe the limit for a number of workers, and the number that balances the two."""
        model, writing = self.model_seconds / workers, self.writing_seconds(workers)
        rate = f"{self.rate(workers) / 1e6:,.0f} MB/s in total"
        if self.rate(workers) == workers * self.worker_rate:
            rate = f"{self.files} files of each worker at {CONNECTION_RATE / 1e6:.0f} MB/s"
        slower, faster = ("the model", "writing") if model >= writing else ("writing", "the model")
        part = min(model, writing) / max(model, writing)
        return f"{slower}; {faster} takes {part:.0%} of its time, {rate}; {self._balance()}"

    def _balance(self) -> str:
        useful = self.useful_workers
        if self.connections_are_slower:
            more = "writing is slower on any number of workers"
            return more if useful is None else f"{more}, and more than {useful:,} only wait"
        if useful is None:
            return "more workers speed up both equally"
        return f"balanced at {useful:,} workers, more only wait"
