"""A backend of the local server whose answers wait until a test releases them."""

import asyncio

from onellm_async.server.backends import BackendError, echo


class HeldBackend:
    """Echoes; a prompt in `held` waits until it is released, one in `failing` fails with `status`."""

    def __init__(self):
        self.asked = []
        self.held = set()
        self.failing = set()
        self.status = 500
        self.changed = asyncio.Condition()

    async def complete(self, job):
        prompt = job.request.messages[-1].content
        async with self.changed:
            self.asked.append(prompt)
            self.changed.notify_all()
            await self.changed.wait_for(lambda: prompt not in self.held)
        if prompt in self.failing:
            raise BackendError("It fails.", status=self.status)
        return echo(job)

    async def until_asked(self, count):
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.asked) >= count)

    async def release(self):
        async with self.changed:
            self.held.clear()
            self.changed.notify_all()

    async def aclose(self):
        pass
