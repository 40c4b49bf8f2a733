"""What the command line reads: types of parameters that click does not have."""

import math
from fractions import Fraction
from typing import Any, get_args

import click

from .options import Zoom


def width_height(text: str) -> tuple[int, int]:
    """'640x360' -> (640, 360)."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise click.BadParameter(f"{text!r} is not written like 640x360")
    return int(width), int(height)


class Size(click.ParamType[Any]):
    """Width and height, written 640x360."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """'640x360' -> (640, 360)."""
        if isinstance(value, tuple):
            return value
        width, height = width_height(value)
        if not (width and height):
            self.fail(f"{value!r} has no pixels", param, ctx)
        return width, height


class Rate(click.ParamType[Any]):
    """Frames per second, as a number or a fraction."""

    name = "rate"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Fraction:
        """'30000/1001' -> Fraction(30000, 1001)."""
        try:
            rate = Fraction(value)
        except (ValueError, ZeroDivisionError):
            self.fail(f"{value!r} is not a number like 25, 29.97 or 30000/1001", param, ctx)
        if not 0 < rate <= 1000:
            self.fail(f"{value!r} is not above 0 and at most 1000", param, ctx)
        return rate


class Seconds(click.ParamType[Any]):
    """A length of time, in seconds or as a clock shows it."""

    name = "time"

    def __init__(self, *, above_nought: bool = False) -> None:
        self._above_nought = above_nought

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """'1:30.5' -> 90.5."""
        if isinstance(value, float):
            return value
        parts = str(value).split(":")
        try:
            numbers = [float(Fraction(part)) for part in parts]
        except (ValueError, ZeroDivisionError, OverflowError):
            numbers = []
        if not 0 < len(numbers) <= 3 or min(numbers) < 0 or any(n >= 60 for n in numbers[1:]):
            self.fail(f"{value!r} is no time like 90, 1:30 or 0:01:30.5", param, ctx)
        seconds = 0.0
        for number in numbers:
            seconds = 60 * seconds + number
        if self._above_nought and not seconds:
            self.fail(f"{value!r} is no time at all", param, ctx)
        return seconds


SIZE, RATE, SECONDS, LENGTH = Size(), Rate(), Seconds(), Seconds(above_nought=True)


class Number(click.FloatRange):
    """A number in a range; "nan" is in none, which click does not see."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number or tell what is wrong."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


class ZoomOrFactor(Number):
    """A number from 1 to 4, or a word."""

    def __init__(self) -> None:
        super().__init__(1, 4)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the word or the number."""
        words = get_args(Zoom)
        if value in words:
            return value
        try:
            float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor one of {', '.join(words)}", param, ctx)
        return super().convert(value, param, ctx)


class Readout(Number):
    """A number from 0 to 1, or "auto"."""

    def __init__(self) -> None:
        super().__init__(0, 1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return "auto" or the number."""
        return value if value == "auto" else super().convert(value, param, ctx)


def _american(token: str) -> str:
    """Both spellings are understood."""
    return token.replace("stabilise", "stabilize")


SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    "show_default": True,
    "token_normalize_func": _american,
}
"""Of every command."""
