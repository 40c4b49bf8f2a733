"""A steady, sharp video from a shaky, blurred one."""
