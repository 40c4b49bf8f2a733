"""vdeblur in a program that uses OpenCV.

`VideoCapture` stands in for `cv2.VideoCapture`; `Stabilizer` serves a loop that has its pictures
from elsewhere.
"""

from .capture import VideoCapture
from .stabilizer import Stabilizer

__all__ = ["Stabilizer", "VideoCapture"]
