import asyncio

# After a test without a loop pytest-asyncio asks for "the current loop", and before Python 3.14 that makes one which
# nobody closes. Saying that there is none prevents it.
asyncio.set_event_loop(None)
