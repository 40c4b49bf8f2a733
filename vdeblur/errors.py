"""What can go wrong, said so that a user can act on it.

    VdeblurError
    ├── SourceError      the input cannot be read (missing, not a video, broken)
    ├── SinkError        the output cannot be written (exists, no folder, codec, disk full)
    ├── ModelError       a model bundle is missing, damaged or of another version
    ├── EngineError      a compiled engine is damaged, or was made for something else
    └── DeviceError      a device or backend was asked for that is not here

Each message is one line: what, which and what to do. Wrong arguments of a call are
`ValueError` or `TypeError`.
"""


class VdeblurError(Exception):
    """The root of all errors that a user's input or machine can cause."""


class SourceError(VdeblurError):
    """The input cannot be read."""


class SinkError(VdeblurError):
    """The output cannot be written."""


class ModelError(VdeblurError):
    """A model bundle is missing, damaged or of another version."""


class EngineError(VdeblurError):
    """A compiled engine is damaged, or was made for another machine, model or library."""


class DeviceError(VdeblurError):
    """A device or backend was asked for that is not here."""
