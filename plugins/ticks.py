"""The clock of pictures whose time a host tells in seconds or milliseconds."""

from fractions import Fraction

SECOND = 2**11 * 3**2 * 5**7
"""Ticks; all usual frame rates and time bases divide it, so that no time is rounded."""
TICK = Fraction(1, SECOND)
"""Seconds; the unit of the frames' times."""
USUAL = SECOND // 30
"""From one picture to the next, as long as nothing else is known."""
