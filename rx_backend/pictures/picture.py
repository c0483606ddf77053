"""The base of every picture and chart: showing, saving, and drawing it as a figure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from rx_backend.checks import file_path
from rx_backend.extras import import_extra
from rx_backend.pictures import style
from rx_backend.pictures._matplotlib import Figure as AnyFigure
from rx_backend.whole_file import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ("Picture",)

# A notebook shows 96 dots per inch; 1.5 times that is sharp on high-resolution screens.
_PAGE_DPI, _DPI, _MOST_PIXELS, _COLORS = 96, 144, 60_000, 128


class Picture(ABC):
    """
    A picture that a notebook shows at the end of a cell; ``print`` shows it as text.

    The same content makes the same file, whatever the user's matplotlib settings. Text that does
    not fit is truncated with "…".
    """

    @abstractmethod
    def _draw(self, figure: AnyFigure) -> None:
        """Draw into *figure*, which is empty, and set its size."""

    def figure(self) -> Figure:
        """
        Draw it as a new matplotlib figure, which you can modify.

        A notebook shows a figure only with ``%matplotlib inline``; a picture always.

        Artists have a ``gid`` that names the row, the time, and what they show.

        Raises:
            ImportError: matplotlib is not installed; names the extra.
        """
        import_extra("matplotlib", "plot", package="matplotlib", needed_by="a picture")
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  # an extra
        from matplotlib.figure import Figure  # noqa: PLC0415  # an extra

        with style.applied():
            figure = Figure()
            FigureCanvasAgg(figure)
            self._draw(figure)
            figure.draw_without_rendering()  # ticks and labels are made in this style
        return figure

    def png(self) -> bytes:
        """
        Return it as the content of a PNG file.

        Raises:
            ImportError: matplotlib is not installed; names the extra.
        """
        figure: AnyFigure = self.figure()
        from PIL import Image  # noqa: PLC0415  # comes with matplotlib

        drawn, file = BytesIO(), BytesIO()
        dpi = min(_DPI, _MOST_PIXELS / max(figure.get_size_inches()))
        with style.applied():
            figure.savefig(drawn, format="png", dpi=dpi)
        with Image.open(drawn) as image:
            # Few flat colours, and no metadata such as the version of matplotlib. Other methods
            # merge colours that only small dots have.
            kept = Image.Quantize.MAXCOVERAGE
            flat = image.convert("RGB").quantize(_COLORS, kept, dither=Image.Dither.NONE)
            flat.save(file, format="png", optimize=True)
        return file.getvalue()

    def save(self, path: str | Path) -> None:
        """
        Write it as a PNG file.

        Raises:
            InvalidArgument: *path* is not a path.
            ValueError: *path* does not end in ``.png``.
            ImportError: matplotlib is not installed; names the extra.
            OSError: The file can't be written.
        """
        ending = file_path("path", path).suffix
        if ending.lower() not in {"", ".png"}:
            raise ValueError(f"path: expected a name that ends in .png, got {str(path)!r}")
        write_whole(path, self.png())

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """Return the image and its size on the page, for IPython."""
        image = self.png()
        # A PNG has its width and height in its first chunk.
        width, height = (int.from_bytes(image[at : at + 4], "big") for at in (16, 20))
        scale = _PAGE_DPI / _DPI
        return image, {"width": round(width * scale), "height": round(height * scale)}
