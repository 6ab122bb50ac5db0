"""The parallel map that the job consists of, and the plain loop that does it in this process.

`beam` does the same with Beam, for more workers and for other machines.
"""

import gc
import os
from collections.abc import Sequence
from typing import Any, Protocol

from common import files
from common.errors import UsageError

Work = list[tuple[Any, str]]  # items, and the files that their results go to


class Task(Protocol):
    """What `Runner.map` does for each item."""

    def setup(self) -> None:
        """Load what all items need, once a worker."""

    def run(self, item: Any) -> Any:
        """Do the work for one item and return a value that JSON can hold."""


class Runner:
    """Does the work in this process, one item after the other."""

    shares_work = False  # whether there are several workers to share the cleaning of a file

    def map(self, label: str, task: Task, items: Sequence[Any], work_dir: str) -> list[Any]:
        """Do `task` for every item.

        Each result is a file, so that it comes back from any runner, that work done twice does no
        harm, and that a job that was killed finds what it had done.

        Args:
            label: names the results; unique in the job.
            task: what to do; picklable.
            items: what to do it for; picklable.
            work_dir: where the results go.

        Returns:
            The results, in the order of the items.

        Raises:
            UsageError: the first one, in the order of the items, that a task raised; or Beam has no
                such runner.
        """
        from tensorflow.io import gfile

        results = [os.path.join(work_dir, f"{label}-{i:06d}.json") for i in range(len(items))]
        done = set(gfile.listdir(work_dir))
        missing = [
            (item, path)
            for item, path in zip(items, results, strict=True)
            if os.path.basename(path) not in done
        ]
        if missing:
            self._run(label, task, missing)
        values = [files.read_json(path) for path in results]
        for value in values:
            if "error" in value:
                raise UsageError(value["error"])
        return [value["result"] for value in values]

    def map_small(self, label: str, task: Task, items: Sequence[Any], work_dir: str) -> list[Any]:
        """As `map`, for work that is not worth starting worker processes on this machine."""
        return self.map(label, task, items, work_dir)

    def _run(self, label: str, task: Task, work: Work) -> None:
        """Do the work and write the results."""
        task.setup()
        for item, path in work:
            files.write_json(path, {"result": run_without_collector(task, item)})


def run_without_collector(task: Task, item: Any) -> Any:
    """Do the work with Python's garbage collector off.

    A chunk makes hundreds of thousands of lists, none of them in a cycle; the collector would walk
    through them again and again, for a third of the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        return task.run(item)
    finally:
        if was_on:
            gc.enable()
