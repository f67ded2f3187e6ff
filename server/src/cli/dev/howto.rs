//! How to send requests, to be copied and pasted: real addresses, the real key.

use std::path::Path;

use super::{MODEL, Ready, TENANT};
use crate::{
    cli::{failure::Failure, output::Output},
    config::Config,
};

/// Where chat requests go.
pub(super) const PATH: &str = "/v1/chat/completions";
const PROMPT: &str = "Say hello to the first tenant.";

/// The body of a chat request.
pub(super) fn body() -> String {
    format!(r#"{{"model":"{MODEL}","messages":[{{"role":"user","content":"{PROMPT}"}}],"max_tokens":64}}"#)
}

/// Prints how to go on.
pub(super) fn print(ready: &Ready, data: &Path, output: &mut Output) -> Result<(), Failure> {
    let Ready { http, grpc, key, took: _ } = ready;
    let key = key.expose();
    let (body, options) = (body(), options(ready, data));
    output.lines(format_args!(
        r#"
call it with curl
  curl http://{http}{PATH} \
    -H 'authorization: Bearer {key}' -H 'content-type: application/json' \
    -d '{body}'

with grpcurl (it needs no files, the server describes itself)
  grpcurl -plaintext -H 'authorization: Bearer {key}' \
    -d '{body}' \
    {grpc} freehold.gateway.v1.Gateway/Complete

with the OpenAI client for Python (pip install openai)
  from openai import OpenAI
  client = OpenAI(base_url="http://{http}/v1", api_key="{key}")
  stream = client.chat.completions.create(
      model="{MODEL}", messages=[{{"role": "user", "content": "{PROMPT}"}}], stream=True)
  for chunk in stream:
      print(chunk.choices[0].delta.content or "", end="", flush=True)

and see what happened
  freehold tenant show {TENANT}{options}
  freehold episode list {TENANT}{options}
  freehold state tenant/{TENANT} --at-version 2{options}

Ctrl-C drains and stops."#
    ))
}

/// What other commands need to find this server, if it is not where they look by themselves.
fn options(ready: &Ready, data: &Path) -> String {
    let usual = Config::default();
    let mut options = String::new();
    if data != usual.data {
        options.push_str(&format!(" --data {}", quoted(&data.to_string_lossy())));
    }
    if ready.grpc != usual.grpc.listen {
        options.push_str(&format!(" --server http://{}", ready.grpc));
    }
    options
}

/// A word as a shell takes it: in single quotes if it has anything that a shell would read otherwise.
fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "_./-+=:@%,".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_a_shell_would_read_otherwise_are_quoted() {
        assert_eq!(quoted("./data-1/x"), "./data-1/x");
        assert_eq!(quoted("my data"), "'my data'");
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(quoted(""), "''");
    }
}
