//! How to send requests, to be copied and pasted: real addresses, the real key.

use serde_json::json;

use super::{MODEL, Ready, TENANT};
use crate::cli::{failure::Failure, output::Output};

/// Where chat requests go.
pub(super) const PATH: &str = "/v1/chat/completions";
const PROMPT: &str = "Say hello to the first tenant.";

/// The body of a chat request.
pub(super) fn body() -> String {
    json!({ "model": MODEL, "messages": [{ "role": "user", "content": PROMPT }], "max_tokens": 64 }).to_string()
}

/// Prints how to go on.
pub(super) fn print(ready: &Ready, output: &mut Output) -> Result<(), Failure> {
    let Ready { http, grpc, key, took: _ } = ready;
    let key = key.expose();
    let body = body();
    output.line(format_args!(
        r#"
call it with curl
  curl http://{http}{PATH} \
    -H 'authorization: Bearer {key}' -H 'content-type: application/json' \
    -d '{body}'

with grpcurl (it needs no files, the server describes itself)
  grpcurl -plaintext -H 'authorization: Bearer {key}' \
    -d '{{"model":"{MODEL}","messages":[{{"role":"user","content":"{PROMPT}"}}],"max_tokens":64}}' \
    {grpc} freehold.gateway.v1.Gateway/Complete

with the OpenAI client for Python (pip install openai)
  from openai import OpenAI
  client = OpenAI(base_url="http://{http}/v1", api_key="{key}")
  stream = client.chat.completions.create(
      model="{MODEL}", messages=[{{"role": "user", "content": "{PROMPT}"}}], stream=True)
  for chunk in stream:
      print(chunk.choices[0].delta.content or "", end="", flush=True)

and see what happened
  freehold tenant show {TENANT}
  freehold episode list {TENANT}
  freehold state tenant/{TENANT} --at-version 2

Ctrl-C drains and stops."#
    ))
}
