"""The trainer: model, compiled steps, loop, decoding."""

import os

# Before anything imports TensorFlow: its start-up notices are not about this program.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
