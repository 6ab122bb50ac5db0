"""Figures drawn with Matplotlib, which takes half a second to import."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 130


@contextlib.contextmanager
def new_figure(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> Iterator["Figure"]:
    """Yield a figure of some inches, in the same style whatever the user's own settings are."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # What is drawn is text of the user: a dollar in it begins no formula.
    style = {**matplotlib.rcParamsDefault, "text.parse_math": False}
    with matplotlib.rc_context(dict[str, Any](style)):
        figure = Figure(figsize=(width, height), layout=layout)
        FigureCanvasAgg(figure)
        yield figure


def png(figure: "Figure") -> bytes:
    """Return a figure as a PNG image; the same figure gives the same bytes."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        # Matplotlib's own font lacks some scripts, and draws boxes instead.
        warnings.filterwarnings("ignore", message="Glyph")
        # Without the version of Matplotlib.
        figure.savefig(content, format="png", dpi=_DPI, metadata={"Software": None})
    return content.getvalue()
