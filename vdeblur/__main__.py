"""`python -m vdeblur` is `vdeblur`."""

from .cli import entry

if __name__ == "__main__":
    entry()
