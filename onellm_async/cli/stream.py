"""The lone hyphen that stands for standard input or output."""

__all__ = ["STREAM"]

STREAM = ("-", "\0-")
"""As it is written, and as it passes cyclopts, which takes a lone hyphen for an option."""
