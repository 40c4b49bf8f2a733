"""Where a live video can be seen: a window before | after, a virtual camera."""

import os
import sys
from collections.abc import Callable

import cv2
import numpy as np

from . import pixels
from .errors import DeviceError
from .frame import Frame, Plane
from .video import VideoInfo

WIDEST = 1600
"""Pixels that a window is wide at most."""
TITLE = "vdeblur: before | after"
QUIT = {ord("q"), 27}
"""Keys that close the window: q, Escape."""


class Preview:
    """A window that shows each frame as it was, and as it became. Only for the main thread."""

    def __init__(self, info: VideoInfo, *, on_close: Callable[[], None]) -> None:
        # Without one, the window library ends the whole process.
        here = not sys.platform.startswith("linux") or any(
            os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
        )
        if not here:
            raise DeviceError("there is no display here for --preview (DISPLAY is not set)")
        self._info, self._on_close = info, on_close
        try:
            cv2.namedWindow(TITLE, cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL)
        except cv2.error as error:
            raise DeviceError(
                "OpenCV here cannot open windows for --preview: pip install opencv-python"
            ) from error

    def show(self, before: Frame, after: Frame) -> None:
        """Show them side by side, smaller if they are large."""
        pair = np.hstack([_bgr(before, self._info), _bgr(after, self._info)])
        if pair.shape[1] > WIDEST:
            size = (WIDEST, round(pair.shape[0] * WIDEST / pair.shape[1]))
            pair = np.asarray(cv2.resize(pair, size, interpolation=cv2.INTER_AREA))
        cv2.imshow(TITLE, pair)
        closed = cv2.waitKey(1) in QUIT or cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1
        if closed:
            self._on_close()

    def close(self) -> None:
        """Take the window away."""
        cv2.destroyAllWindows()


class VirtualCamera:
    """A camera that other programs (video calls) can open."""

    def __init__(self, info: VideoInfo) -> None:
        try:
            import pyvirtualcam
        except ImportError as error:
            raise DeviceError(
                "--virtual-camera needs pyvirtualcam: pip install 'vdeblur[camera]'"
            ) from error
        self._info = info
        try:
            self._camera = pyvirtualcam.Camera(
                info.width, info.height, float(info.rate), fmt=pyvirtualcam.PixelFormat.BGR
            )
        except (RuntimeError, ValueError) as error:
            why = " ".join(str(error).split())
            raise DeviceError(f"there is no virtual camera here: {why}") from error
        self.device: str = self._camera.device
        """What other programs call it."""

    def show(self, before: Frame, after: Frame) -> None:
        """Send the frame as it became."""
        self._camera.send(_bgr(after, self._info))

    def close(self) -> None:
        """Give the device back."""
        self._camera.close()


def _bgr(frame: Frame, info: VideoInfo) -> Plane:
    colors = info.colors
    return pixels.to_bgr(frame.planes, frame.format, matrix=colors.matrix, range=colors.range)
