"""A progress bar in a Jupyter notebook, by IPython's own display: no widgets have to be installed."""

import html
import time
from typing import Any

from rich.progress import TaskID

SECONDS_A_FRAME = 0.2
"""Between two redrawings: each sends a message to the browser."""


class NotebookBar:
    """The bar of one stage below a cell, used as rich's `Progress` is; it is removed when the stage ends."""

    def __init__(self) -> None:
        self._title = self._note = ""
        self._completed, self._total = 0, 0
        self._handle: Any = None
        self._begin = self._drawn = time.monotonic()

    def add_task(self, title: str, *, total: int | None, note: str) -> TaskID:
        """Name the stage; there is one task."""
        self._title, self._total, self._note = title, total or 0, note
        return TaskID(0)

    def start(self) -> None:
        """Nothing is shown before there is some progress."""

    def update(
        self,
        task: TaskID,
        *,
        total: int | None = None,
        completed: int | None = None,
        advance: int = 0,
        note: str | None = None,
    ) -> None:
        """Set what is given, and draw it if the last frame is old enough."""
        self._total = self._total if total is None else total
        self._completed = (self._completed if completed is None else completed) + advance
        self._note = self._note if note is None else note
        if self._total and time.monotonic() - self._drawn >= SECONDS_A_FRAME:
            self._draw()

    def stop(self) -> None:
        """Remove the bar."""
        if self._handle is not None:
            self._handle.update(_Markup(""))
            self._handle = None

    def _draw(self) -> None:
        from IPython.display import display

        self._drawn = time.monotonic()
        seconds = self._drawn - self._begin
        text = f"{self._completed}/{self._total} {self._note} {seconds:.0f} s"
        bar = f'<progress value="{self._completed}" max="{self._total}"></progress>'
        frame = _Markup(f"<b>{html.escape(self._title)}</b> {bar} {html.escape(text)}")
        if self._handle is None:
            self._handle = display(frame, display_id=True)
        else:
            self._handle.update(frame)


class _Markup:
    def __init__(self, text: str) -> None:
        self._text = text

    def _repr_html_(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return ""
