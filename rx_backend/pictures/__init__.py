"""
Pictures of actual runs: marbles in virtual time, requests and spans on a timeline.

A notebook shows one at the end of a cell, ``print`` shows it as text. Drawing needs matplotlib, the
extra ``plot``.

- ``MarbleRun``: runs operators on a source, and returns input and output as a ``MarblePicture``.
- ``Timeline``: events over time, in lanes.
- ``TracePicture``: OpenTelemetry spans, as a tree and on a timeline.
"""

from rx_backend.pictures.marble_item import MarbleRow
from rx_backend.pictures.marble_picture import MarblePicture
from rx_backend.pictures.marble_run import MarbleRun
from rx_backend.pictures.picture import Picture
from rx_backend.pictures.row import Mark
from rx_backend.pictures.timeline import Timeline
from rx_backend.pictures.trace_picture import TracePicture

__all__ = (
    "MarblePicture",
    "MarbleRow",
    "MarbleRun",
    "Mark",
    "Picture",
    "Timeline",
    "TracePicture",
)
