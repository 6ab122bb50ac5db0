"""A Cloud TPU without one: its compiler, its figures, and what follows from both."""
