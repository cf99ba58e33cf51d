"""The servers that are asked, each in a process of its own."""
