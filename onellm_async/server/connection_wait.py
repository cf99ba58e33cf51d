"""How a host waits for what the pure service does not give at once."""

import asyncio

from onellm_async.server.jobs import Job, ServerReply
from onellm_async.server.service import Service


async def wait_for_connection(service: Service, job: Job) -> ServerReply | None:
    """Waits until `job` has a place in the database.

    Args:
        service: Whose job it is.
        job: An accepted job.

    Returns:
        What is written where no place came free in time, which ends the job; None when it may be processed.
    """
    granted = asyncio.Event()
    if service.acquire_connection(job, granted.set):
        return None
    try:
        async with asyncio.timeout(service.settings.faults.database_wait):
            await granted.wait()
    except TimeoutError:
        if not granted.is_set():
            return service.fail_without_connection(job)
    return None
