"""Rows of the journal as records, in the order of the input, in a file that appears whole."""
