"""What every picture can do: be shown, saved, and drawn as a figure."""

# matplotlib's own annotations leave its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from abc import ABC, abstractmethod
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ("Picture",)

# Twice as many dots as a notebook's page has, so that print and fine screens are sharp.
_DOTS_PER_INCH = 192
_PAGE_DOTS_PER_INCH = 96
_COLORS = 128


class Picture(ABC):
    """
    A picture that a notebook shows at the end of a cell; ``print`` shows it as text.

    The same content gives the same file, whatever the user's settings of matplotlib are.
    """

    @abstractmethod
    def figure(self) -> Figure:
        """
        Draw it as a new matplotlib figure, for changes of one's own.

        Raises:
            ImportError: matplotlib is not installed; names the extra.
        """

    def png(self) -> bytes:
        """
        Draw it as a PNG file's content.

        Raises:
            ImportError: matplotlib is not installed; names the extra.
        """
        figure = self.figure()
        from PIL import Image  # noqa: PLC0415  # comes with matplotlib

        drawn, file = BytesIO(), BytesIO()
        figure.savefig(drawn, format="png", dpi=_DOTS_PER_INCH)
        with Image.open(drawn) as image:
            # A few flat colours; and nothing else is said, such as the version of matplotlib.
            image.convert("RGB").quantize(_COLORS, dither=Image.Dither.NONE).save(
                file, format="png", optimize=True
            )
        return file.getvalue()

    def save(self, path: str | Path) -> None:
        """
        Write it as a PNG file.

        Raises:
            ImportError: matplotlib is not installed; names the extra.
            OSError: The file can't be written.
        """
        Path(path).write_bytes(self.png())

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """For IPython: the image, and how large to show it."""
        image = self.png()
        # A PNG has its width and height in its first chunk.
        width, height = (int.from_bytes(image[at : at + 4], "big") for at in (16, 20))
        scale = _PAGE_DOTS_PER_INCH / _DOTS_PER_INCH
        return image, {"width": round(width * scale), "height": round(height * scale)}
