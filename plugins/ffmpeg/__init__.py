"""vdeblur in FFmpeg and whatever else takes frei0r filters: MLT (Kdenlive, Shotcut), GStreamer."""

EXCHANGE = 2
"""Pictures by which the filter is later than `Processor.delay`: while the host goes on, the helper
moves one picture and finds the motion of the next."""
