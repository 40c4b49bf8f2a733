"""vdeblur in FFmpeg and whatever else takes frei0r filters: MLT (Kdenlive, Shotcut), GStreamer."""
