"""The official OpenAI client against Freehold: nothing is adapted but the base URL and the key.

Called by openai.rs with the server's address and the keys of four tenants in the environment. Prints one line a
check; any failure ends it with a traceback.
"""

import os
import time

import openai

BASE_URL = os.environ["BASE_URL"]
MESSAGES = [{"role": "user", "content": "Say hello to the event log."}]


def client(key, retries=0):
    return openai.OpenAI(base_url=BASE_URL, api_key=key, max_retries=retries, timeout=30)


def expect(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def done(what):
    print(f"ok {what}", flush=True)


ample = client(os.environ["KEY_AMPLE"])

answer = ample.chat.completions.create(model="sim-small", messages=MESSAGES, max_tokens=24, temperature=0.5)
assert answer.object == "chat.completion" and answer.model == "sim-small", answer
assert answer.choices[0].message.role == "assistant" and answer.choices[0].message.content, answer
assert answer.choices[0].finish_reason in ("stop", "length"), answer
assert 0 < answer.usage.completion_tokens <= 24, answer
assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens, answer
done("plain")

raw = ample.chat.completions.with_raw_response.create(model="sim-small", messages=MESSAGES, max_tokens=8)
for name in ("requests", "tokens"):
    assert int(raw.headers[f"x-ratelimit-limit-{name}"]) > 0, raw.headers
    assert int(raw.headers[f"x-ratelimit-remaining-{name}"]) >= 0, raw.headers
    assert raw.headers[f"x-ratelimit-reset-{name}"].endswith("s"), raw.headers
assert raw.parse()._request_id == raw.headers["x-request-id"], raw.headers
done("headers")

stream = ample.chat.completions.create(model="sim-small", messages=MESSAGES, max_tokens=24, stream=True)
chunks = list(stream)
text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
assert text and len(chunks) > 3, chunks
assert all(chunk.usage is None for chunk in chunks), "usage was not asked for"
assert len({chunk.id for chunk in chunks}) == 1, chunks
assert chunks[-1].choices[0].finish_reason in ("stop", "length"), chunks[-1]
done("streaming")

stream = ample.chat.completions.create(
    model="sim-small", messages=MESSAGES, max_tokens=24, stream=True, stream_options={"include_usage": True}
)
chunks = list(stream)
assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0, chunks[-1]
assert all(chunk.usage is None for chunk in chunks[:-1]), chunks
done("usage")

assert "sim-small" in [model.id for model in ample.models.list()]
assert ample.models.retrieve("sim-small").object == "model"
done("models")

error = expect(openai.AuthenticationError, lambda: client("fhk_nobody_" + "x" * 43).models.list())
assert error.status_code == 401 and error.code == "invalid_api_key", error
expect(openai.AuthenticationError, lambda: client("sk-something-else").models.list())
forged = os.environ["KEY_AMPLE"][:-1] + ("a" if os.environ["KEY_AMPLE"][-1] != "a" else "b")
expect(
    openai.AuthenticationError,
    lambda: client(forged).chat.completions.create(model="sim-small", messages=MESSAGES),
)
done("wrong key")

error = expect(openai.NotFoundError, lambda: ample.chat.completions.create(model="gpt-none", messages=MESSAGES))
assert error.code == "model_not_found", error
error = expect(
    openai.BadRequestError,
    lambda: ample.chat.completions.create(model="sim-small", messages=MESSAGES, max_tokens=-1),
)
assert error.param == "max_tokens" and error.type == "invalid_request_error", error
error = expect(
    openai.BadRequestError,
    lambda: ample.chat.completions.create(model="sim-small", messages=MESSAGES, extra_body={"surprise": 1}),
)
assert "surprise" in error.message, error
done("bad requests")

broke = client(os.environ["KEY_BROKE"])
error = expect(
    openai.APIStatusError, lambda: broke.chat.completions.create(model="sim-small", messages=MESSAGES)
)
assert error.status_code == 402 and error.code == "insufficient_quota", error
done("exhausted budget")

slow = os.environ["KEY_SLOW"]
impatient = client(slow)


def burst():
    for _ in range(20):
        impatient.chat.completions.create(model="sim-small", messages=MESSAGES, max_tokens=4)


error = expect(openai.RateLimitError, burst)
assert error.status_code == 429 and error.code == "rate_limit_exceeded", error
assert int(error.response.headers["retry-after"]) >= 1, error.response.headers
began = time.monotonic()
answer = client(slow, retries=5).chat.completions.create(model="sim-small", messages=MESSAGES, max_tokens=4)
assert answer.choices[0].message.content
assert time.monotonic() - began < 20
done("rate limit and retry")
