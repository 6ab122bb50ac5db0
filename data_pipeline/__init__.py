"""The data job: from text to a dataset directory."""

from common import process

process.prepare()
