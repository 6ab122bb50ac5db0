"""The trainer: model, compiled steps, loop, decoding."""

import time

from common import process
from trainer.runtime import google_cloud, memory, xla_cache

# Nearly the start of the process; the imports that follow, TensorFlow's above all, take seconds.
STARTED = time.monotonic()

# All of this works only before TensorFlow is imported.
process.prepare()
ALLOCATOR = memory.keep_freed_memory()
xla_cache.enable()
google_cloud.skip_metadata_queries()
