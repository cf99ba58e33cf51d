"""Integrations with tools that users already have, a module for each. None is imported by the package itself."""
