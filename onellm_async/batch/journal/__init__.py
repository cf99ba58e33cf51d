"""What a run remembers, in SQLite: one writer thread, readers from any process."""
