import json

from onellm_async import APIConnectionError, AuthenticationError, ChatOutcome, ChatRequest, ChatResponse, Fate, Usage
from onellm_async.batch import InputFormat, Item, OutcomeWriter

REQUEST = ChatRequest("GPT-5", "Hi")
RESPONSE = ChatResponse(
    "Hello", model="gpt-5", provider="OpenAI", role="assistant", usage=Usage(3, 5, 8), finish_reason="stop", cost=0.5
)


def written(outcome, shape, custom_id="a"):
    line = OutcomeWriter(created=1234).line(Item(2, 5, REQUEST, custom_id), outcome, shape)
    assert line.endswith(b"\n")
    return json.loads(line)


def test_an_answer_in_the_plain_shape():
    assert written(ChatOutcome(0, REQUEST, RESPONSE), InputFormat.JSONL) == {
        "index": 2,
        "custom_id": "a",
        "response": {
            "content": "Hello",
            "model": "gpt-5",
            "provider": "OpenAI",
            "usage": {"input_tokens": 3, "output_tokens": 5, "total_tokens": 8},
            "finish_reason": "stop",
            "cost": 0.5,
            "attempts": 1,
        },
        "error": None,
    }


def test_a_failure_in_the_plain_shape_tells_type_message_and_status():
    http = written(
        ChatOutcome(0, REQUEST, error=AuthenticationError("No such key", status_code=401)), InputFormat.TEXT, None
    )
    lost = written(ChatOutcome(0, REQUEST, error=APIConnectionError("reset", fate=Fate.AMBIGUOUS)), InputFormat.TEXT)

    assert http == {
        "index": 2,
        "response": None,
        "error": {"type": "AuthenticationError", "message": "No such key", "status_code": 401},
    }
    assert lost["error"] == {"type": "APIConnectionError", "message": "reset", "status_code": None}


def test_an_answer_in_openais_shape_is_a_chat_completion():
    record = written(ChatOutcome(0, REQUEST, RESPONSE), InputFormat.OPENAI_BATCH)

    assert record.keys() == {"id", "custom_id", "response", "error"}
    assert record["custom_id"] == "a"
    assert record["error"] is None
    assert record["response"]["status_code"] == 200
    body = record["response"]["body"]
    assert body["object"] == "chat.completion"
    assert body["created"] == 1234
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Hello"}
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    assert body["onellm"] == {"provider": "OpenAI", "cost": 0.5, "attempts": 1}


def test_openais_shape_bears_a_reply_that_tells_nothing_but_its_text():
    body = written(ChatOutcome(0, REQUEST, ChatResponse("Hello")), InputFormat.OPENAI_BATCH)["response"]["body"]

    assert body["model"] == "GPT-5"
    assert body["usage"] is None
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Hello"}


def test_an_http_error_is_a_response_in_openais_shape_and_a_lost_request_an_error():
    http = written(
        ChatOutcome(0, REQUEST, error=AuthenticationError("No such key", status_code=401)), InputFormat.OPENAI_BATCH
    )
    lost = written(
        ChatOutcome(0, REQUEST, error=APIConnectionError("reset", fate=Fate.AMBIGUOUS)), InputFormat.OPENAI_BATCH
    )

    assert http["response"]["status_code"] == 401
    assert http["response"]["body"] == {"error": {"message": "No such key", "type": "AuthenticationError", "code": 401}}
    assert http["error"] is None
    assert lost["response"] is None
    assert lost["error"] == {"code": "APIConnectionError", "message": "reset"}


def test_a_lone_surrogate_does_not_lose_a_paid_answer():
    record = written(ChatOutcome(0, REQUEST, ChatResponse("a\ud800b")), InputFormat.JSONL, "\udfff")

    assert record["response"]["content"] == "a\ud800b"
    assert record["custom_id"] == "\udfff"
