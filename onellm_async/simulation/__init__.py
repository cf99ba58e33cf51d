"""The real client against the pure local service, in virtual time."""
