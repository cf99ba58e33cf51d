"""A run's journal → one HTML file that tells how it went."""
