//! Requests as clients send them: what is accepted, what each kind of bad input is told, what an upstream receives.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests may panic")]

use events_model::Tokens;
use gateway::openai::{
    ApiError, ChatFields, ChatMessage, ChatRequest, MaxTokensParameter, RequestLimits,
    request::{COMPLETION_TOKENS_MAX, MESSAGES_MAX, TOOLS_MAX},
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn parse(body: &[u8]) -> Result<ChatRequest, ApiError> {
    ChatRequest::parse(body, &RequestLimits::default())
}

/// A good request with one member set.
fn with(name: &str, value: Value) -> Vec<u8> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hello"}]});
    body[name] = value;
    body.to_string().into_bytes()
}

fn raw(name: &str, value: &str) -> Vec<u8> {
    format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hello"}}],"{name}":{value}}}"#).into_bytes()
}

fn refused(body: &[u8]) -> (u16, Option<String>, Option<String>, String) {
    match parse(body) {
        Ok(_) => panic!("was accepted: {}", String::from_utf8_lossy(&body[..body.len().min(200)])),
        Err(error) => {
            assert!(error.message.len() < 700, "{}", error.message);
            assert_eq!(error.kind, "invalid_request_error");
            (error.status, error.param, error.code, error.message)
        }
    }
}

fn assert_refused(body: &[u8], param: &str, code: &str) {
    let (status, got_param, got_code, message) = refused(body);
    let expected = (400, (!param.is_empty()).then_some(param), Some(code));
    assert_eq!((status, got_param.as_deref(), got_code.as_deref()), expected, "{message}");
}

fn upstream(request: &ChatRequest) -> Value {
    let body = request.upstream_body("up/model", Tokens(77), MaxTokensParameter::MaxTokens);
    serde_json::from_slice(&body).unwrap()
}

#[test]
fn every_parameter_of_openai_is_accepted_and_passed_on() {
    let function = json!({"name": "f-1", "description": "d", "parameters": {"type": "object"}, "strict": true});
    for (name, value) in [
        ("frequency_penalty", json!(-2)),
        ("function_call", json!({"name": "f"})),
        ("functions", json!([{"name": "f"}])),
        ("logit_bias", json!({"50256": -100, "1": 0.5})),
        ("logprobs", json!(true)),
        ("metadata", json!({"a": "b"})),
        ("modalities", json!(["text"])),
        ("moderation", json!({"model": "omni", "policy": {"input": {"mode": "block"}}})),
        ("n", json!(8)),
        ("parallel_tool_calls", json!(false)),
        ("presence_penalty", json!(2.0)),
        ("prompt_cache_key", json!("k")),
        ("prompt_cache_options", json!({"mode": "explicit", "ttl": "30m"})),
        ("prompt_cache_retention", json!("24h")),
        ("reasoning_effort", json!("minimal")),
        ("response_format", json!({"type": "json_schema", "json_schema": {"name": "s", "schema": {"a": [1]}}})),
        ("safety_identifier", json!("u")),
        ("seed", json!(i64::MIN)),
        ("service_tier", json!("flex")),
        ("stop", json!(["a", "b", "c", "d"])),
        ("stop", json!("a")),
        ("store", json!(true)),
        ("stream", json!(true)),
        ("temperature", json!(2)),
        ("tool_choice", json!("required")),
        ("tool_choice", json!({"type": "function", "function": {"name": "f"}})),
        ("tools", json!([{"type": "function", "function": function}, {"type": "custom", "custom": {"name": "c"}}])),
        ("top_p", json!(0)),
        ("user", json!("u")),
        ("verbosity", json!("low")),
        ("user", Value::Null),
    ] {
        let request = parse(&with(name, value.clone())).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(upstream(&request)[name], value, "{name}");
    }
}

#[test]
fn every_kind_of_message_is_accepted() {
    let messages = json!([
        {"role": "system", "content": "s"},
        {"role": "developer", "content": [{"type": "text", "text": "d"}], "name": "n"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": null, "refusal": null, "annotations": [], "audio": null, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "d", "type": "custom", "custom": {"name": "f", "input": "x"}}]},
        {"role": "tool", "content": "r", "tool_call_id": "c"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "function_call": {"name": "f", "arguments": ""}},
        {"role": "function", "content": null, "name": "f"},
    ]);
    let request = parse(&with("messages", messages.clone())).unwrap();
    assert_eq!(upstream(&request)["messages"], messages);
}

fn assert_all_refused<const COUNT: usize>(cases: [(&str, Value, &str, &str); COUNT]) {
    for (name, value, param, code) in cases {
        assert_refused(&with(name, value), param, code);
    }
}

#[test]
fn wrong_models_and_messages_name_the_place_and_the_fault() {
    let part = |part: Value| json!([{"role": "user", "content": [part]}]);
    assert_all_refused([
        ("model", json!(1), "model", "invalid_type"),
        ("model", json!(""), "model", "invalid_value"),
        ("model", json!("a\r\nb: c"), "model", "invalid_value"),
        ("model", json!("x".repeat(129)), "model", "string_above_max_length"),
        ("model", Value::Null, "model", "invalid_type"),
        ("messages", json!("hi"), "messages", "invalid_type"),
        ("messages", json!([]), "messages", "empty_array"),
        ("messages", json!(["hi"]), "messages[0]", "invalid_type"),
        ("messages", json!([{"content": "x"}]), "messages[0].role", "missing_required_parameter"),
        ("messages", json!([{"role": "boss", "content": "x"}]), "messages[0].role", "invalid_value"),
        ("messages", json!([{"role": 7, "content": "x"}]), "messages[0].role", "invalid_type"),
        ("messages", json!([{"role": "user"}]), "messages[0].content", "missing_required_parameter"),
        ("messages", json!([{"role": "user", "content": null}]), "messages[0].content", "invalid_type"),
        ("messages", json!([{"role": "user", "content": 1.5}]), "messages[0].content", "invalid_type"),
        ("messages", json!([{"role": "assistant"}]), "messages[0].content", "missing_required_parameter"),
        (
            "messages",
            json!([{"role": "tool", "content": "x"}]),
            "messages[0].tool_call_id",
            "missing_required_parameter",
        ),
        ("messages", json!([{"role": "user", "content": "x", "y": 1}]), "messages[0].y", "unknown_parameter"),
        ("messages", part(json!({"type": "text"})), "messages[0].content[0].text", "missing_required_parameter"),
        ("messages", part(json!({"type": "image_url"})), "messages[0].content[0]", "unsupported_content"),
        ("messages", part(json!({"type": "input_audio"})), "messages[0].content[0]", "unsupported_content"),
        ("messages", part(json!({"type": "file"})), "messages[0].content[0]", "unsupported_content"),
        ("messages", part(json!({"type": "smell"})), "messages[0].content[0].type", "invalid_value"),
    ]);
}

#[test]
fn wrong_values_name_the_parameter_and_the_fault() {
    assert_all_refused([
        ("max_tokens", json!(0), "max_tokens", "integer_below_min_value"),
        ("max_tokens", json!(-5), "max_tokens", "integer_below_min_value"),
        ("max_tokens", json!(COMPLETION_TOKENS_MAX + 1), "max_tokens", "integer_above_max_value"),
        ("max_tokens", json!(u64::MAX), "max_tokens", "integer_above_max_value"),
        ("max_tokens", json!(1e300), "max_tokens", "integer_above_max_value"),
        ("max_tokens", json!(-1e300), "max_tokens", "integer_below_min_value"),
        ("max_tokens", json!(1.5), "max_tokens", "invalid_type"),
        ("max_tokens", json!("1"), "max_tokens", "invalid_type"),
        ("max_completion_tokens", json!(0), "max_completion_tokens", "integer_below_min_value"),
        ("temperature", json!(2.1), "temperature", "decimal_above_max_value"),
        ("temperature", json!(-0.1), "temperature", "decimal_below_min_value"),
        ("temperature", json!("NaN"), "temperature", "invalid_type"),
        ("top_p", json!(1.01), "top_p", "decimal_above_max_value"),
        ("n", json!(9), "n", "integer_above_max_value"),
        ("n", json!(0), "n", "integer_below_min_value"),
        ("stop", json!(["a", "b", "c", "d", "e"]), "stop", "array_above_max_length"),
        ("stop", json!([1]), "stop[0]", "invalid_type"),
        ("stop", json!(1), "stop", "invalid_type"),
        ("presence_penalty", json!(3), "presence_penalty", "decimal_above_max_value"),
        ("logit_bias", json!({"1": 101}), "logit_bias.1", "decimal_above_max_value"),
        ("top_logprobs", json!(3), "top_logprobs", "invalid_parameter_combination"),
        ("stream", json!("yes"), "stream", "invalid_type"),
        ("stream_options", json!({"include_usage": true}), "stream_options", "invalid_parameter_combination"),
        ("stream_options", json!({"x": true}), "stream_options.x", "unknown_parameter"),
        ("tools", json!([]), "tools", "empty_array"),
        ("tools", json!([{"type": "function"}]), "tools[0].function", "missing_required_parameter"),
        (
            "tools",
            json!([{"type": "function", "function": {"name": "a b"}}]),
            "tools[0].function.name",
            "invalid_value",
        ),
        ("tool_choice", json!("maybe"), "tool_choice", "invalid_value"),
        ("response_format", json!({"type": "xml"}), "response_format.type", "invalid_value"),
        ("metadata", json!({"a": 1}), "metadata.a", "invalid_type"),
        ("metadata", json!({"a": "x".repeat(513)}), "metadata.a", "string_above_max_length"),
        ("seed", json!(1.5), "seed", "invalid_type"),
        ("service_tier", json!("priority"), "service_tier", "invalid_value"),
        ("modalities", json!(["audio"]), "modalities[0]", "invalid_value"),
        ("audio", json!({}), "audio", "unsupported_parameter"),
        ("prediction", json!({"type": "content", "content": "x"}), "prediction", "unsupported_parameter"),
        ("web_search_options", json!({}), "web_search_options", "unsupported_parameter"),
    ]);
}

#[test]
fn documents_that_are_no_good_json_are_refused() {
    for (name, value, code) in [
        ("temperature", "NaN", "invalid_json"),
        ("temperature", "Infinity", "invalid_json"),
        ("temperature", "01", "invalid_json"),
        ("user", r#""\ud800""#, "invalid_json"),
        ("user", "\"\u{1}\"", "invalid_json"),
    ] {
        let (status, _, got, message) = refused(&raw(name, value));
        assert_eq!((status, got.as_deref()), (400, Some(code)), "{message}");
    }
    assert_refused(&raw("temperature", "1e400"), "temperature", "invalid_json");
    assert_refused(&raw("metadata", r#"{"a":"1","\u0061":"2"}"#), "metadata", "duplicate_key");
    assert_refused(&raw("mod\\u0065l", "\"other\""), "", "duplicate_key");
    let deep = format!("{}{}", "{\"a\":".repeat(100), "1");
    let deep = format!(r#"[{{"type":"function","function":{{"name":"f","parameters":{deep}{}}}}}]"#, "}".repeat(100));
    assert_refused(&raw("tools", &deep), "tools", "too_deep");
    assert_refused(&vec![b'['; 1_000_000], "", "invalid_type");
    for body in ["[]", "null", "\"x\"", "17"] {
        assert_refused(body.as_bytes(), "", "invalid_type");
    }
    for body in ["", " ", "{", "{}x", "nul"] {
        assert_refused(body.as_bytes(), "", "invalid_json");
    }
    assert_refused(b"{\"model\":\"\xff\"}", "", "invalid_utf8");
}

#[test]
fn missing_and_unknown_parameters_are_named() {
    assert_refused(b"{}", "model", "missing_required_parameter");
    assert_refused(br#"{"model":"m"}"#, "messages", "missing_required_parameter");
    assert_refused(&with("best_of", json!(1)), "best_of", "unknown_parameter");
    let (.., message) = refused(&with("best_of", json!(1)));
    assert_eq!(message, "Unrecognized request argument supplied: best_of");
    let (_, param, ..) = refused(&with(&"x".repeat(100_000), json!(1)));
    assert_eq!(param.unwrap().len(), 80);
    let both = br#"{"model":"m","messages":[{"role":"user","content":""}],"max_tokens":1,"max_completion_tokens":1}"#;
    assert_refused(both, "max_tokens", "invalid_parameter_combination");
}

#[test]
fn counts_are_allowed_to_the_limit_and_no_further() {
    let messages = |count| Value::Array(vec![json!({"role": "user", "content": "x"}); count]);
    assert!(parse(&with("messages", messages(MESSAGES_MAX))).is_ok());
    assert_refused(&with("messages", messages(MESSAGES_MAX + 1)), "messages", "array_above_max_length");
    let tools = |count| Value::Array(vec![json!({"type": "function", "function": {"name": "f"}}); count]);
    assert!(parse(&with("tools", tools(TOOLS_MAX))).is_ok());
    assert_refused(&with("tools", tools(TOOLS_MAX + 1)), "tools", "array_above_max_length");
    assert!(parse(&with("max_tokens", json!(COMPLETION_TOKENS_MAX))).is_ok());
    let limits = RequestLimits::default();
    let error = parse(&vec![b' '; limits.body_bytes_max + 1]).unwrap_err();
    assert_eq!((error.status, error.code.as_deref()), (413, Some("request_too_large")));
}

#[test]
fn every_prefix_of_a_request_is_refused_as_bad_json() {
    let body =
        with("tools", json!([{"type": "function", "function": {"name": "f", "parameters": {"é": [1.5, null]}}}]));
    for end in 0..body.len() {
        let error = parse(&body[..end]).unwrap_err();
        let code = error.code.as_deref().unwrap();
        assert!(["invalid_json", "invalid_utf8"].contains(&code), "{end}: {error}");
    }
}

#[test]
fn an_upstream_gets_the_same_request_with_its_model_and_an_explicit_bound() {
    let body = br#"{ "messages":[{"role":"user","content":"h\u00e9"}], "temperature":0.70 , "model":"m",
        "stream":true, "stream_options":{"include_obfuscation":false}, "max_completion_tokens":null,
        "seed":12345678901}"#;
    let request = parse(body).unwrap();
    assert!(request.stream && !request.include_usage);
    assert_eq!((request.model.as_str(), request.n, request.completion_tokens_max), ("m", 1, None));
    let sent = request.upstream_body("up \"x\"", Tokens(5), MaxTokensParameter::MaxCompletionTokens);
    assert_eq!(
        sent,
        concat!(
            r#"{"model":"up \"x\"","max_completion_tokens":5,"#,
            r#""stream_options":{"include_usage":true,"include_obfuscation":false},"#,
            r#""messages":[{"role":"user","content":"h\u00e9"}],"temperature":0.70,"stream":true,"seed":12345678901}"#
        )
    );
}

#[test]
fn the_name_the_client_used_for_the_bound_is_kept() {
    for (name, other) in [("max_tokens", "max_completion_tokens"), ("max_completion_tokens", "max_tokens")] {
        let request = parse(&with(name, json!(99))).unwrap();
        assert_eq!(request.completion_tokens_max, Some(Tokens(99)));
        for default in [MaxTokensParameter::MaxTokens, MaxTokensParameter::MaxCompletionTokens] {
            let sent: Value = serde_json::from_slice(&request.upstream_body("u", Tokens(50), default)).unwrap();
            assert_eq!((sent.get(name), sent.get(other)), (Some(&json!(50)), None));
        }
    }
    let sent = upstream(&parse(&with("stream", json!(true))).unwrap());
    assert_eq!(sent["stream_options"], json!({"include_usage": true}));
    assert_eq!(upstream(&parse(&with("stream", json!(false))).unwrap()).get("stream_options"), None);
}

#[test]
fn the_prompt_bound_counts_every_byte_that_reaches_the_prompt() {
    let limits = RequestLimits { prompt_template_tokens: Tokens(8), ..RequestLimits::default() };
    let bound = |body: &[u8]| ChatRequest::parse(body, &limits).unwrap().prompt_tokens_bound().0;
    assert_eq!(bound(&with("user", json!("not in the prompt"))), 5 + 8 + 8);
    let messages = json!([{"role": "user", "content": "é", "name": "abc"},
                          {"role": "user", "content": [{"type": "text", "text": "four"}]}]);
    assert_eq!(bound(&with("messages", messages)), (2 + 3 + 8) + (4 + 2 + 8) + 8);
    let tools = json!([{"type": "function", "function": {"name": "f", "description": "x".repeat(100)}}]);
    assert_eq!(bound(&with("tools", tools.clone())), 5 + 8 + 8 + 512 + tools.to_string().len() as u64);
    let calls = json!([{"role": "assistant", "tool_calls":
        [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "x".repeat(100)}}]}]);
    assert!(bound(&with("messages", calls)) >= 100 + 8 + 8);
}

#[test]
fn the_prompt_estimate_is_what_a_tokenizer_would_probably_count() {
    let estimate = |messages: Value| parse(&with("messages", messages)).unwrap().prompt_tokens_estimate().0;
    assert_eq!(estimate(json!([{"role": "user", "content": ""}])), 3 + 3);
    assert_eq!(estimate(json!([{"role": "user", "content": "What does a freeholder hold?"}])), 7 + 3 + 3);
    let parts =
        json!([{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]);
    assert_eq!(estimate(parts), 2 + 3 + 3);
    let two = json!([{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi", "name": "abc"}]);
    assert_eq!(estimate(two), 2 + 3 + 1 + 1 + 3 + 3);
    let tools = json!([{"type": "function", "function": {"name": "f", "description": "x".repeat(100)}}]);
    let request = parse(&with("tools", tools.clone())).unwrap();
    assert_eq!(request.prompt_tokens_estimate().0, 1 + 3 + 3 + tools.to_string().len().div_ceil(4) as u64);
}

#[test]
fn typed_fields_pass_the_same_checks() {
    let limits = RequestLimits::default();
    let message = ChatMessage { role: "user".to_owned(), content: "hi".to_owned(), ..ChatMessage::default() };
    let fields = ChatFields { model: "m".to_owned(), messages: vec![message], ..ChatFields::default() };
    let request = ChatRequest::new(&fields, &limits).unwrap();
    assert_eq!(
        upstream(&request),
        json!({"model": "up/model", "max_tokens": 77, "messages": [{"role": "user", "content": "hi"}], "stream": false})
    );
    let all = ChatFields {
        max_tokens: Some(9),
        temperature: Some(0.5),
        top_p: Some(1.0),
        stop: vec!["x".to_owned()],
        seed: Some(-1),
        user: "u".to_owned(),
        stream: true,
        ..fields.clone()
    };
    assert_eq!(ChatRequest::new(&all, &limits).unwrap().completion_tokens_max, Some(Tokens(9)));
    for (bad, param) in [
        (ChatFields { temperature: Some(f64::NAN), ..fields.clone() }, "temperature"),
        (ChatFields { top_p: Some(f64::INFINITY), ..fields.clone() }, "top_p"),
        (ChatFields { max_tokens: Some(0), ..fields.clone() }, "max_tokens"),
        (ChatFields { max_tokens: Some(u64::MAX), ..fields.clone() }, "max_tokens"),
        (ChatFields { stop: vec![String::new(); 5], ..fields.clone() }, "stop"),
        (ChatFields { messages: Vec::new(), ..fields.clone() }, "messages"),
        (ChatFields { model: "a b".to_owned(), ..fields }, "model"),
    ] {
        assert_eq!(ChatRequest::new(&bad, &limits).unwrap_err().param.as_deref(), Some(param));
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        let key = prop_oneof![
            "[a-z_]{1,6}",
            prop::sample::select(vec!["role", "content", "type", "text", "name", "function"]).prop_map(str::to_owned)
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key, inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_value_of_any_parameter_is_either_passed_on_unchanged_or_refused_with_its_name(
        name in prop::sample::select(vec![
            "messages", "tools", "tool_choice", "response_format", "stop", "logit_bias", "metadata", "n", "seed",
            "temperature", "user", "functions", "function_call", "moderation", "prompt_cache_options",
        ]),
        value in any_json(),
    ) {
        match parse(&with(name, value.clone())) {
            Ok(request) => {
                // Compared as bytes: to parse again would round the last digit of some decimals.
                let text = request.upstream_body("u", Tokens(1), MaxTokensParameter::MaxTokens);
                let member = format!("\"{name}\":{value}");
                prop_assert!(std::str::from_utf8(&text).unwrap().contains(&member));
                prop_assert!(parse(&text).is_ok(), "what is sent upstream passes the same checks");
            }
            Err(error) => {
                prop_assert_eq!(error.status, 400);
                prop_assert!(error.param.unwrap().starts_with(name));
            }
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(parse(&bytes).is_err());
    }

    #[test]
    fn the_prompt_bound_is_at_least_the_bytes_of_all_texts(texts in prop::collection::vec("\\PC{0,40}", 1..10)) {
        let messages: Vec<_> = texts.iter().map(|text| json!({"role": "user", "content": text})).collect();
        let request = parse(&with("messages", Value::Array(messages))).unwrap();
        let bytes: usize = texts.iter().map(String::len).sum();
        prop_assert!(request.prompt_tokens_bound().0 >= (bytes + 8 * texts.len() + 8) as u64);
    }

    #[test]
    fn the_prompt_estimate_is_never_nothing_nor_above_the_bound_and_grows_with_the_prompt(
        texts in prop::collection::vec("\\PC{0,40}", 1..10),
        more in "\\PC{0,40}",
    ) {
        // The tightest bound: no room for a template but what each message brings.
        let limits = RequestLimits { prompt_template_tokens: Tokens(0), ..RequestLimits::default() };
        let estimate = |texts: &[String]| {
            let messages: Vec<_> = texts.iter().map(|text| json!({"role": "user", "content": text})).collect();
            let request = ChatRequest::parse(&with("messages", Value::Array(messages)), &limits).unwrap();
            assert!((Tokens(1)..=request.prompt_tokens_bound()).contains(&request.prompt_tokens_estimate()));
            request.prompt_tokens_estimate()
        };
        let before = estimate(&texts);
        let mut longer = texts.clone();
        longer.last_mut().unwrap().push_str(&more);
        prop_assert!(before <= estimate(&longer));
        longer.push(more);
        prop_assert!(before < estimate(&longer));
    }
}
