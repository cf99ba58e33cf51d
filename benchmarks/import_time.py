"""How long a program waits for its imports, and a user for ``--help``: fresh interpreters, one after the other."""

import os
import subprocess
import sys
import time

from benchmarks.peers import Contender
from benchmarks.repetitions import Found, interleaved, shortfall, spread
from benchmarks.report import Section

BASELINE = Contender("import aiohttp", "", {"arguments": ["-c", "import aiohttp"]})
CONTENDERS = (
    Contender("an interpreter that does nothing", "", {"arguments": ["-c", ""]}),
    BASELINE,
    Contender("import onellm_async", "", {"arguments": ["-c", "import onellm_async"]}),
    Contender(
        "from onellm_async import AsyncOneLLM", "", {"arguments": ["-c", "from onellm_async import AsyncOneLLM"]}
    ),
    Contender("onellm-async --help", "", {"arguments": ["-m", "onellm_async", "--help"]}),
)


_COMPILING = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""As it is for a user: what was compiled once is kept."""


def _once(contender: Contender) -> Found:
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *contender.options["arguments"]], stdout=subprocess.DEVNULL, env=_COMPILING
    )
    _, status, usage = os.wait4(process.pid, 0)
    elapsed = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        return {"broken": f"exit status {process.returncode}"}
    return {"elapsed": elapsed, "cpu": usage.ru_utime + usage.ru_stime}


def run(*, repetitions: int) -> Section:
    """Measures each in turn."""
    for contender in CONTENDERS:
        _once(contender)  # compiles what is not compiled yet
    table = interleaved(CONTENDERS, repetitions, _once)
    baseline = next(found for contender, found in table if contender is BASELINE)
    return Section(
        "Imports",
        "Fresh interpreters, from start to end; the ratio is that of the time to `import aiohttp`, interpreter "
        f"included, in the same repetition. Median of {repetitions} (minimum to maximum).",
        ("what", "ms", "CPU ms", "time / import aiohttp"),
        [
            (contender.name, missing, "", "")
            if (missing := shortfall(found))
            else (
                contender.name,
                spread(each["elapsed"] * 1000 for each in found),
                spread(each["cpu"] * 1000 for each in found),
                spread((own["elapsed"] / base["elapsed"] for own, base in zip(found, baseline, strict=True)), 2),
            )
            for contender, found in table
        ],
    )
