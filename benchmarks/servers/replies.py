"""What the servers answer: the same text in both wire formats."""

import json

CONTENT = (
    "A token bucket lets requests through as long as it holds tokens, and refills at a constant rate. Its capacity is "
    "the largest burst; its refill is the rate that can be kept up. Whoever sends faster is refused, and whoever sends "
    "more slowly wastes what overflows."
)

_FLAT = {
    "provider": "OpenAI",
    "model": "gpt-5-mini-2025-08-07",
    "role": "assistant",
    "content": CONTENT,
    "usage": {"input_tokens": 68, "output_tokens": 57, "total_tokens": 125},
    "finish_reason": "stop",
}
_OPENAI = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_750_000_000,
    "model": "gpt-5-mini-2025-08-07",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": CONTENT}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 68, "completion_tokens": 57, "total_tokens": 125},
}

PATHS = {"/api": json.dumps(_FLAT).encode(), "/v1/chat/completions": json.dumps(_OPENAI).encode()}
"""The body of a success at each path."""

REFUSAL = json.dumps({"error": {"message": "Rate limit exceeded.", "type": "rate_limit_error"}}).encode()
"""The body of a 429: no Retry-After beside it, as the self-hosted OneLLM backend sends none."""
