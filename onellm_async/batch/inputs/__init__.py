"""Inputs of any size and format, as entries that are parsed only when they must be."""
