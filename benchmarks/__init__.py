"""Measurements and fault tests of the whole program."""

from common import process

process.prepare()
