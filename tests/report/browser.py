"""A small client of Chromium's DevTools protocol: opens a page, sees what it draws, logs and asks for."""

import asyncio
import base64
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from threading import Thread

import aiohttp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


@contextmanager
def chromium(profile: Path) -> Iterator[str]:
    """A browser without a window, which ends with the block; the address to connect to."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **streams) as process:
        assert process.stderr is not None
        address = ""
        for line in process.stderr:
            if line.startswith(b"DevTools listening on "):
                address = line.decode().split()[-1]
                break
        assert address, "Chromium did not start"
        draining = Thread(target=process.stderr.read)
        draining.start()
        try:
            yield address
            process.terminate()
            process.wait(10)
        finally:
            process.kill()
            draining.join()


@asynccontextmanager
async def connected(address: str) -> AsyncIterator["Browser"]:
    """A connection to a browser; its pages are closed with the block."""
    async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
        browser = Browser(socket)
        listening = asyncio.create_task(browser.listen())
        try:
            yield browser
            await browser.close_pages()
        finally:
            await socket.close()
            await listening


class Browser:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = count(1)
        self._answers: dict[int, asyncio.Future[dict]] = {}
        self._pages: dict[str, Page] = {}
        self._targets: list[str] = []

    async def listen(self) -> None:
        async for message in self._socket:
            told = message.json()
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told)
            elif (page := self._pages.get(told.get("sessionId", ""))) is not None:
                page.hear(told["method"], told["params"])

    async def call(self, method: str, session: str | None = None, **parameters: object) -> dict:
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": parameters}
        await self._socket.send_json(message if session is None else message | {"sessionId": session})
        told = await asyncio.wait_for(answer, 30)
        assert "error" not in told, (method, told["error"])
        return told["result"]

    async def open(
        self, path: Path, *, width: int = 1100, height: int = 800, dark: bool = False, scripts: bool = True
    ) -> "Page":
        """A file in a new tab, once everything of it is drawn."""
        target = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
        self._targets.append(target)
        session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            await page.call(f"{domain}.enable")
        await page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        await page.dark(dark)
        await page.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        await page.call("Page.navigate", url=path.as_uri())
        await asyncio.wait_for(page.loaded.wait(), 30)
        if scripts:
            await page.drawn()
        return page

    async def close_pages(self) -> None:
        while self._targets:
            await self.call("Target.closeTarget", targetId=self._targets.pop())


class Page:
    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.loaded = asyncio.Event()
        self.requests: list[str] = []
        self.complaints: list[str] = []

    def hear(self, method: str, told: dict) -> None:
        if method == "Page.loadEventFired":
            self.loaded.set()
        elif method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str(told["args"]))
        elif method == "Log.entryAdded":
            self.complaints.append(told["entry"]["text"])

    async def call(self, method: str, **parameters: object) -> dict:
        return await self._browser.call(method, self._session, **parameters)

    async def run(self, expression: str) -> object:
        """The value of JavaScript, promises awaited."""
        told = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    async def dark(self, dark: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def drawn(self) -> None:
        """Returns after the next two frames."""
        await self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))).then(() => 0)")

    async def screenshot(self, path: Path) -> None:
        told = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(told["data"]))
