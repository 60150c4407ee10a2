"""Sweeps: one base config, a grid of what differs, and a run for every point of it."""

from fedgram.sweep.plan import Point, Sweep, read_sweep

__all__ = ["Point", "Sweep", "read_sweep"]
