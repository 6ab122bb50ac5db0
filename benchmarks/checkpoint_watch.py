"""How far a training is with writing a checkpoint, told from its files alone."""

import os
import re

_PART = re.compile(r"ckpt-(\d+)[._]")
_FINISHED = re.compile(r"ckpt-(\d+)\.json$")


class CheckpointWatch:
    """Watches the checkpoints of one start of a training.

    Args:
        directory: of the checkpoints. What lies there now, and does not change, is of a start
            before this one: a killed run leaves half a checkpoint, which nobody is writing.
    """

    def __init__(self, directory: str):
        self._directory = directory
        self._before = self._files()

    def writing(self) -> int:
        """Step of the checkpoint that has files of this start, but no manifest; else 0."""
        files = self._files()
        # An older one that lacks its manifest is being removed.
        finished = max(
            (int(match[1]) for name in files if (match := _FINISHED.match(name))), default=0
        )
        steps = {
            int(match[1])
            for name in files.items() - self._before.items()
            if (match := _PART.match(name[0]))
        }
        return max((step for step in steps if step > finished), default=0)

    def phase(self, step: int) -> str:
        """ "write": it has no manifest; "rename": it has one under the temporary name; else ""."""
        # One look-up each, in this order: the file with the temporary name becomes the other one.
        temporary = os.path.exists(self.path(step, ".json.incomplete"))
        if os.path.exists(self.path(step, ".json")):
            return ""
        return "rename" if temporary else "write"

    def path(self, step: int, end: str) -> str:
        """Of a file of the checkpoint; `end` as in ".json"."""
        return os.path.join(self._directory, f"ckpt-{step}{end}")

    def unfinished(self) -> list[str]:
        """Names of files, of any start, that belong to no finished checkpoint; sorted."""
        files = self._files()
        return sorted(
            name
            for name in files
            if name.endswith(".incomplete")
            or ((match := _PART.match(name)) and f"ckpt-{match[1]}.json" not in files)
        )

    def _files(self) -> dict[str, int]:
        """Name -> time of the last change, in nanoseconds."""
        found = {}
        try:
            with os.scandir(self._directory) as entries:
                for entry in entries:
                    try:
                        found[entry.name] = entry.stat().st_mtime_ns
                    except FileNotFoundError:  # renamed or removed since it was listed
                        continue
        except FileNotFoundError:
            pass
        return found
