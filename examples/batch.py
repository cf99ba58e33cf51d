"""Sends a file of prompts, one per line, and writes each answer as a line of JSON on completion.

::

    python examples/batch.py examples/prompts.txt answers.jsonl

It needs ``ONELLM_API_KEY``, and ``ONELLM_BASE_URL`` for any other than the documented URL. Answers come in the order
of completion; ``index`` says which prompt each belongs to. ``onellm-async run`` does more: it resumes after a
crash, has a cost cap, keeps the order of the input, and reads tables.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

from onellm_async import AsyncOneLLM, ChatOutcome, FanoutProgress, OneLLMError


def prompts_in(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if prompt := line.strip():
                yield prompt


def record_of(outcome: ChatOutcome) -> dict[str, object]:
    if outcome.response is None:
        return {"index": outcome.index, "prompt": outcome.prompt, "error": str(outcome.error)}
    return {
        "index": outcome.index,
        "prompt": outcome.prompt,
        "content": outcome.response.content,
        "cost": outcome.response.cost,
    }


def show(progress: FanoutProgress) -> None:
    print(f"\r{progress.done} done, {progress.failed} failed, ${progress.cost:.4f}", end="", file=sys.stderr)


async def main(source: Path, target: Path) -> int:
    failed = 0
    with target.open("x", encoding="utf-8") as answers:  # "x": answers that were paid for are never overwritten
        async with AsyncOneLLM() as client:
            outcomes = client.iter_chats(prompts_in(source), model="GPT-5-Nano", max_tokens=400, on_progress=show)
            async with aclosing(outcomes):
                async for outcome in outcomes:
                    failed += not outcome.ok
                    print(json.dumps(record_of(outcome), ensure_ascii=False), file=answers, flush=True)
    print(file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("Usage: python batch.py PROMPTS.txt ANSWERS.jsonl")
    try:
        sys.exit(asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]))))
    except KeyboardInterrupt:
        sys.exit(130)
    except (OneLLMError, OSError) as error:  # what concerns every prompt: a wrong key, an empty balance, a missing file
        sys.exit(f"\n{error}")
