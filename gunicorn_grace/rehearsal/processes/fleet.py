"""Several gunicorn instances that start together and end together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from types import TracebackType

from .instance import Instance
from .process import stop_all


class Fleet:
    """Several instances that start together and end together.

    A ``with`` statement starts them. An instance needs a core while it loads, so at most as many
    load at the same time as there are cores.
    """

    def __init__(self, instances: Sequence[Instance]) -> None:
        self.instances: list[Instance] = list(instances)

    def start(self, timeout: float = 20.0, ready: float | None = None) -> Fleet:
        """Start all instances.

        :param timeout: seconds within which each must listen.
        :param ready: seconds within which each must then answer; None not to wait for an answer.
        :raises InstanceFailed: one of them failed. All are then stopped.
        """

        def start(instance: Instance) -> None:
            instance.start(timeout)
            if ready is not None:
                instance.wait_ready(ready)

        with ThreadPoolExecutor(
            max_workers=os.cpu_count() or 1, thread_name_prefix="fleet"
        ) as pool:
            try:
                for future in as_completed(
                    [pool.submit(start, instance) for instance in self.instances]
                ):
                    future.result()
            except BaseException:
                # This also runs after Ctrl-C. The pool waits for its threads, and they end when the
                # instances end.
                pool.shutdown(wait=False, cancel_futures=True)
                self.stop()
                raise
        return self

    def stop(self) -> None:
        """Stop every instance, even if stopping one of them fails."""
        stop_all(self.instances)

    def __enter__(self) -> Fleet:
        return self if any(instance.addresses for instance in self.instances) else self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __iter__(self) -> Iterator[Instance]:
        return iter(self.instances)

    def __len__(self) -> int:
        return len(self.instances)

    def __getitem__(self, index: int) -> Instance:
        return self.instances[index]
