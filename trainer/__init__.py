"""The trainer: model, compiled steps, loop, decoding."""

import os
import time

from trainer.runtime import google_cloud, xla_cache

# Nearly the start of the process: what follows, TensorFlow's import above all, takes seconds.
STARTED = time.monotonic()

# Before anything imports TensorFlow: its start-up notices are not about this program.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
xla_cache.enable()
google_cloud.spare_questions()
