"""Puts the jobs on machines; nothing imports this package."""
