"""The groups of flags, in the order in which every help shows them."""

from cyclopts import Group

INPUT = Group.create_ordered("Input")
SELECTION = Group.create_ordered("Selection")
OUTPUT = Group.create_ordered("Output")
BUDGET = Group.create_ordered("Budget")
RESUMING = Group.create_ordered("Resuming")
SESSION = Group.create_ordered("Session")
REQUEST = Group.create_ordered("Request")
LIMITS = Group.create_ordered("Limits")
CONNECTION = Group.create_ordered("Connection")
ASSUMPTIONS = Group.create_ordered("Assumptions")
SHARD = Group.create_ordered("Shard")
GATEWAY = Group.create_ordered("Gateway")
SERVER = Group.create_ordered("Server")
FAULTS = Group.create_ordered("Faults")
GENERAL = Group.create_ordered("General")
