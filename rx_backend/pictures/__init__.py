"""
Pictures of what happened: marbles in virtual time, requests and spans on a timeline in milliseconds.

All are drawn from real runs, and a notebook shows them at the end of a cell. As text they need
nothing; drawing needs matplotlib, the extra ``plot``.

- ``MarbleRun``: runs operators on a source, and gives what went in and out as a ``MarblePicture``.
- ``Timeline``: what happened when, noted by whoever sees it.
- ``TracePicture``: OpenTelemetry's spans, as a tree and on a timeline.
"""

from rx_backend.pictures.marble_picture import MarblePicture
from rx_backend.pictures.marble_rows import MarbleRow
from rx_backend.pictures.marble_run import MarbleRun
from rx_backend.pictures.picture import Picture
from rx_backend.pictures.timeline import Timeline
from rx_backend.pictures.timeline_rows import TimelineMark, TimelineSpan
from rx_backend.pictures.trace_picture import TracePicture

__all__ = (
    "MarblePicture",
    "MarbleRow",
    "MarbleRun",
    "Picture",
    "Timeline",
    "TimelineMark",
    "TimelineSpan",
    "TracePicture",
)
