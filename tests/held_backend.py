"""A backend of the local server whose answers wait until a test releases them."""

import asyncio

from onellm_async.server.backends import BackendError, echo


async def last_words(processes):
    """What processes that have ended said on standard error, as far as nobody has read it."""
    told = [(process.returncode, (await process.communicate())[1] or b"") for process in processes]
    return "\n".join(f"ended with {code}: {stderr.decode()}" for code, stderr in told)


class HeldBackend:
    """Echoes; a prompt in `held` waits until it is released, one in `failing` fails with `status`.

    Args:
        askers: The processes that ask it, if it is known; more may be added later.
    """

    def __init__(self, askers=()):
        self.askers = askers
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
        """Returns when it was asked so often; fails when all who ask have ended before.

        Their requests were counted before they ended: none of them ends well without its answers.
        """
        asked = asyncio.ensure_future(self._asked(count))
        ends = [asyncio.ensure_future(process.wait()) for process in self.askers]
        ended = asyncio.gather(*ends)
        try:
            await asyncio.wait({asked, ended} if ends else {asked}, return_when=asyncio.FIRST_COMPLETED)
            assert asked.done(), f"asked {len(self.asked)} of {count} times: {await last_words(self.askers)}"
        finally:
            for task in (asked, ended):
                task.cancel()
            await asyncio.gather(asked, ended, return_exceptions=True)

    async def _asked(self, count):
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.asked) >= count)

    async def release(self):
        async with self.changed:
            self.held.clear()
            self.changed.notify_all()

    async def aclose(self):
        pass
