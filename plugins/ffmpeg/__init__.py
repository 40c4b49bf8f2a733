"""vdeblur in FFmpeg and whatever else takes frei0r filters: MLT (Kdenlive, Shotcut), GStreamer."""

EXCHANGE = 1
"""Pictures by which the filter is later than `Options.delay`: the host takes an answer with its
next picture, so that neither of the two waits for the other."""
