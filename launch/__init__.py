"""Start jobs on machines: this one, a cluster or Cloud TPU."""

from common import process

process.prepare()
