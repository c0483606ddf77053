"""Engines that need no model, accelerator or network."""

from rx_backend.engines.sample import SampleEngine
from rx_backend.engines.sequence import Load
from rx_backend.engines.simulated import SimulatedEngine

__all__ = ("Load", "SampleEngine", "SimulatedEngine")
