"""Puts the jobs on machines; nothing imports this package."""

from common import process

process.prepare()
