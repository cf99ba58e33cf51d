"""Answers a large file of prompts on a Ray cluster; the same command again resumes.

    python examples/ray_shards.py prompts.jsonl shards -o answers.jsonl --quota redis://10.0.0.5:6379

The input is split into shards on storage that all nodes reach. Each is a durable run with its own journal, so when Ray
repeats the shard of an actor that died, nothing that was answered is sent again. Actors are for failure, not for speed:
one of them uses the whole rate limit. The key is read from ONELLM_API_KEY on every node.
"""

import argparse
import asyncio
from pathlib import Path

import ray

from onellm_async import AsyncOneLLM, Limits
from onellm_async.batch import ShardResult, merge_shards, run_shard, split_input


class RunShard:
    """An actor, which runs up to four shards at a time."""

    def __init__(self, limits: Limits, quota: str, options: dict[str, object]) -> None:
        self.limits = limits
        self.quota = quota
        self.options = options

    async def __call__(self, batch: dict[str, list[str]]) -> dict[str, list[object]]:
        """Runs the shards of a batch, and returns a row about each."""
        async with AsyncOneLLM(limits=self.limits, quota=self.quota) as client:
            results: list[ShardResult] = [await run_shard(client, path, **self.options) for path in batch["shard"]]
        return {name: [result[name] for result in results] for name in ShardResult.__annotations__}


def answer(shards: list[Path], *, actors: int, limits: Limits, quota: str, options: dict[str, object]) -> list[dict]:
    """Runs the shards, and returns a row about each."""
    # A block is what Ray repeats, so each shard is a block of its own.
    rows = ray.data.from_items([{"shard": str(path)} for path in shards], override_num_blocks=len(shards))
    return rows.map_batches(
        RunShard,
        fn_constructor_kwargs={"limits": limits, "quota": quota, "options": options},
        batch_size=1,
        num_cpus=0.5,
        compute=ray.data.ActorPoolStrategy(size=actors),
    ).take_all()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("shards", type=Path, help="directory on storage that all nodes reach")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default="GPT-5-Nano")
    parser.add_argument("--max-tokens", type=int, default=300)
    parser.add_argument("--quota", default="host", help="redis://HOST:PORT for several nodes")
    parser.add_argument("--rpm", type=float, default=40)
    parser.add_argument("--burst", type=int, default=40)
    parser.add_argument("--actors", type=int, default=4)
    parser.add_argument("--prompts-per-shard", type=int, default=1000)
    given = parser.parse_args()
    shards = split_input(given.prompts, given.shards.resolve(), prompts=given.prompts_per_shard)
    ray.init(num_cpus=max(2, given.actors))
    rows = answer(
        shards,
        actors=given.actors,
        limits=Limits(requests_per_minute=given.rpm, burst=given.burst),
        quota=given.quota,
        options={"model": given.model, "max_tokens": given.max_tokens},
    )
    open_rows = [row for row in rows if not row["complete"]]
    for row in open_rows:
        print(f"{row['shard']}: {row['error'] or 'not complete'}")
    print(f"{sum(row['answered'] for row in rows):,} answered, {sum(row['cost'] for row in rows):.4f} USD")
    if open_rows:
        return 1  # the same command resumes them
    asyncio.run(merge_shards(given.shards, given.output, force=True))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
