"""Plugins that a child process of pytest has no use for."""

_NAMES = ("hypothesispytest", "xdist", "xdist.looponfail", "valkey", "langsmith_plugin")
"""Entry points. To load them takes twice as long as the rest of a short run."""
WITHOUT_OTHER_PLUGINS = tuple(option for name in _NAMES for option in ("-p", f"no:{name}"))
"""Options of pytest."""
