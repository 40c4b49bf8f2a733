"""Ways into other programs: OpenCV, FFmpeg, editors."""
