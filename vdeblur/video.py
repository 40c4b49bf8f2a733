"""Read and write video files: the door to PyAV, which no other module goes through."""

from .info import Colors, ContentLight, Mastering, VideoInfo
from .reader import VideoReader
from .writer import VideoWriter

__all__ = ["Colors", "ContentLight", "Mastering", "VideoInfo", "VideoReader", "VideoWriter"]
