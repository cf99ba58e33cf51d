"""The wait for a database connection, on the event loop of the host: real or virtual time."""

import asyncio

from onellm_async.server.jobs import Job, ServerReply
from onellm_async.server.service import Service


async def wait_for_connection(service: Service, job: Job) -> ServerReply | None:
    """Waits until `job` has a database connection, at most `Faults.database_wait` seconds.

    Args:
        service: The service that accepted the job.
        job: An accepted job.

    Returns:
        The reply that ends the job if no connection became free in time; None if the job can be processed.
    """
    granted = asyncio.Event()
    if service.acquire_connection(job, granted.set):
        return None
    try:
        async with asyncio.timeout(service.settings.faults.database_wait):
            await granted.wait()
    except TimeoutError:
        # The connection may have been granted in the moment in which the time ran out.
        if not granted.is_set():
            return service.fail_without_connection(job)
    return None
