"""How a host waits for what the pure service does not give at once."""

import asyncio

from onellm_async.server.jobs import Delivery, Job
from onellm_async.server.service import Service

__all__ = ["database_place"]


async def database_place(service: Service, job: Job) -> Delivery | None:
    """Waits until `job` has a place in the database.

    Args:
        service: Whose job it is.
        job: An accepted job.

    Returns:
        What is written where no place came free in time, which ends the job; None when it may be processed.
    """
    granted = asyncio.Event()
    if service.claim(job, granted.set):
        return None
    try:
        async with asyncio.timeout(service.settings.faults.database_wait):
            await granted.wait()
    except TimeoutError:
        if not granted.is_set():
            return service.without_place(job)
    return None
