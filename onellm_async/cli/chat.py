"""``onellm-async chat``: send one prompt and print the answer, or on a terminal hold a conversation."""

import sys
from time import monotonic
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from onellm_async.cli.command import command
from onellm_async.cli.exit_codes import ExitCode
from onellm_async.cli.general import GENERAL, GeneralFlags
from onellm_async.cli.options import ASKING, CONNECTING, ConnectionFlags, RequestFlags
from onellm_async.cli.stream import STREAM
from onellm_async.cli.terminal import put, read_input, require_output, say
from onellm_async.errors import InvalidRequestError
from onellm_async.formatting import format_usd

if TYPE_CHECKING:
    from onellm_async.chat import ChatRequest, ChatResponse

_EXAMPLES = """\
Examples:
  onellm-async chat "What is the capital of France?"
  onellm-async chat "Say hello" --local
  onellm-async chat --system "You are a patient tutor."     # a conversation
  git diff | onellm-async chat - --system "Write a commit message" -m GPT-5-Mini
  onellm-async chat "Hi" --json --local | jq .usage
"""


def chat(
    prompt: str | None = None,
    /,
    *,
    image: Annotated[tuple[str, ...], Parameter(negative="", show=False)] = (),
    json: Annotated[bool, Parameter(negative="", show_default=False, help="Print the complete reply as JSON.")] = False,
    asking: RequestFlags = ASKING,
    connecting: ConnectionFlags = CONNECTING,
    general: GeneralFlags = GENERAL,
) -> int:
    """Runs ``onellm-async chat``.

    Args:
        prompt: The prompt; `-` reads it from standard input. Without one, a terminal holds a conversation.
        image: Refused, as OneLLM takes text only.
        json: Print the complete reply as JSON.
        asking: The request flags.
        connecting: The connection flags.
        general: The environment, and how much is said.
    """
    if image:
        raise InvalidRequestError(f"--image {image[0]} cannot be sent: OneLLM takes text only.")
    with general.applied():
        return _chat(prompt, asking, connecting, json=json)


def _chat(prompt: str | None, asking: RequestFlags, connecting: ConnectionFlags, *, json: bool) -> int:
    import asyncio

    from onellm_async.cli.connection import defaults_from
    from onellm_async.wire import dump_json

    if prompt is None and not json and sys.stdin.isatty():
        from onellm_async.cli.converse import converse

        return converse(asking, connecting)
    request = defaults_from(asking).request(_read_prompt("-" if prompt is None else prompt))
    require_output()
    started = monotonic()
    response = asyncio.run(_send(request, connecting))
    put(dump_json(response.to_dict()).decode() if json else response.content)
    if not json and not response.content:
        say(f"The answer has no text ({response.finish_reason}); --json shows all of it.")
    elif response.finish_reason == "length":
        say("The answer was cut off at its limit of tokens (--max-tokens).")
    if sys.stderr.isatty():
        say(_summary(response, request.model, monotonic() - started))
    return 0


chat_command: App = command(
    chat,
    _EXAMPLES,
    {
        ExitCode.OK: "the prompt was answered",
        ExitCode.FAILED: "the prompt was not answered",
        ExitCode.STOPPED: "wrong key, spent balance, or the answer cannot be written",
    },
)


async def _send(request: "ChatRequest", connecting: ConnectionFlags) -> "ChatResponse":
    from onellm_async.cli.connection import connected

    async with connected(connecting) as client:
        return await client.send(request, lane="interactive")


def _read_prompt(prompt: str) -> str:
    if prompt in STREAM:
        if sys.stdin.isatty():
            say("Type the prompt, then Ctrl-D.")
        prompt = read_input().decode(errors="replace")
    if not prompt.strip():
        raise InvalidRequestError("The prompt is empty.", advice="Give it as an argument or on standard input.")
    return prompt


def _summary(response: "ChatResponse", model: str, seconds: float) -> str:
    parts = [response.model or model]
    if response.usage is not None:
        parts.append(f"{response.usage.input_tokens or 0:,} + {response.usage.output_tokens or 0:,} tokens")
    if response.cost is not None:
        parts.append(format_usd(response.cost))
    return ", ".join([*parts, f"{seconds:.1f} s"])
