//! Definitions as strangers write them: what is wrong is refused with its place, in bounded time.

use std::time::Duration;

use actors_core::saga::{cycle, expression::Expression, load, parse, template, tree};
use serde_json::json;

use crate::story::definition;

/// The findings as `line:column message`.
fn findings(text: &str) -> Vec<String> {
    let started = stopwatch();
    let found = match parse(text) {
        Ok(read) => panic!("it was taken: {read:#?}"),
        Err(findings) => findings,
    };
    // A hundred times what it takes: this is against minutes, not milliseconds.
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    found.into_iter().map(|one| format!("{}:{} {}", one.at.line, one.at.column, one.message)).collect()
}

#[expect(clippy::disallowed_methods, reason = "a bound of time is what the test is about")]
fn stopwatch() -> std::time::Instant {
    std::time::Instant::now()
}

#[track_caller]
fn refused(text: &str, expected: &[&str]) {
    let found = findings(text);
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found:?} does not begin with {expected:?}");
    }
}

#[test]
fn every_fault_has_its_line_and_column() {
    let text = "definition: Orders!\nversion: 0\ncolour: red\nbudget: 5\nsteps:\n  - id: a\n    http: {url: u}\n    \
                wait: {for: 1h}\n  - id: a\n    retry: {attempts: 1000}\n    notify: {body: 1}\n  - set: {}\n  - id: b\n";
    refused(
        text,
        &[
            "1:13 definition must be letters",
            "2:10 version must be a whole number, 1 to",
            "3:1 a definition has no key colour; it may have",
            "4:9 budget must be US dollars such as $1.50",
            "8:5 a step does one thing, but there are http and wait",
            "9:5 there are two steps with the id or result a",
            "10:23 attempts must be a whole number, 1 to 100",
            "11:13 notify needs url",
            "12:5 a step needs id",
            "13:5 a step must do something: model, http",
        ],
    );
}

#[test]
fn texts_that_are_no_yaml_are_refused_where_they_break() {
    refused("", &["1:1 there is nothing in it"]);
    refused("a: [1, 2", &["1:4 unclosed bracket"]);
    refused("a: 1\na: 2\n", &["2:1 a is there twice"]);
    refused("a: {b: 1, b: 2}\n", &["1:11 b is there twice"]);
    refused("a: 1\n---\nb: 2\n", &["3:1 there must be one document"]);
    refused("a: !!str 1\n", &["1:"]);
    refused("? [1]\n: 2\n", &["1:3 a key must be a text"]);
    refused("<<: {a: 1}\n", &["1:1 merge keys are not allowed"]);
    refused("[1, 2]", &["1:1 a definition must be a map, but is a list"]);
    refused("%YAML 1.2\n---\na: 1\n", &["1:"]);
}

#[test]
fn anchors_and_aliases_are_refused_before_they_can_unfold() {
    refused("a: &x 1\nb: *x\n", &["1:7 anchors are not allowed"]);
    let mut bomb = "a0: &a0 [lol, lol]\n".to_owned();
    for n in 1..40 {
        bomb.push_str(&format!("a{n}: &a{n} [*a{0}, *a{0}]\n", n - 1));
    }
    refused(&bomb, &["1:9 anchors are not allowed"]);
}

#[test]
fn large_and_deep_texts_are_refused_at_once() {
    refused(&"x".repeat(10 * 1024 * 1024), &["1:1 a definition has at most 262144 bytes"]);
    for (open, close) in [("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", "")] {
        let text = open.repeat(60_000) + &close.repeat(if close.is_empty() { 0 } else { 40_000 });
        assert_eq!(findings(&text[..text.len().min(256 * 1024)]).len(), 1, "{open}");
    }
    let wide: String = (0..20_000).map(|n| format!("k{n}: 1\n")).collect();
    refused(&wide, &["1025:1 a map has at most 1024 keys"]);
    let steps: String = (0..600).map(|n| format!("- id: s{n}\n  set: {{}}\n")).collect();
    refused(&definition("", &steps), &["5:3 steps has at most 512 elements", "5:3 there must be"]);
    let mut nested = "- id: x\n  set: {}\n".to_owned();
    for n in 0..10 {
        let inner: String = nested.lines().map(|line| format!("      {line}\n")).collect();
        nested = format!("- id: n{n}\n  each:\n    items: \"[1]\"\n    steps:\n{inner}");
    }
    assert!(findings(&definition("", &nested))[0].contains("steps nest at most 8 deep"));
}

#[test]
fn expressions_know_only_what_is_there() {
    let steps = "- id: a\n  set: {x: \"${steps.b.y}\"}\n- id: b\n  if: \"'text'\"\n  set: {y: \"${nobody + 1}\"}\n\
                 - id: c\n  set: {z: \"${steps.none}\", w: \"${steps.c}\"}\n- id: d\n  set: {v: \"${1 +}\"}\n\
                 - id: e\n  set: {u: \"${input\"}\n";
    refused(
        &definition("", steps),
        &[
            "6:17 the outcome of b is not there yet",
            "8:10 'text' is never true or false",
            "9:17 there is no variable nobody",
            "11:17 there is no step none",
            "11:37 the outcome of c is not there yet",
            "13:",
            "15:15 ${ has no }",
        ],
    );
}

#[test]
fn branches_and_items_keep_their_outcomes_to_themselves() {
    let steps = "- id: p\n  parallel:\n    branches:\n      - - id: a\n          set: {}\n      - - id: b\n          \
                 set: {x: \"${steps.a}\"}\n- id: e\n  each:\n    items: \"[1]\"\n    as: n\n    steps:\n      - id: i\n        \
                 set: {x: \"${n + index}\"}\n      - id: j\n        set: {x: \"${steps.i}\"}\n- id: z\n  \
                 set: {x: \"${steps.i}\", y: \"${n}\", w: \"${steps.a}\"}\n";
    let found = findings(&definition("", steps));
    assert_eq!(found.len(), 3, "{found:#?}");
    for (found, expected) in found.iter().zip(["the outcome of a", "the outcome of i", "no variable n"]) {
        assert!(found.contains(expected), "{found:?}");
    }
}

#[test]
fn fields_have_kinds_units_and_bounds() {
    for (step, expected) in [
        ("http: 5", "http must be a map, but is a number"),
        ("http: {url: [1]}", "url must be a text, but is a list"),
        ("http: {url: u, method: FETCH}", "method must be GET or POST"),
        ("http: {url: u, ok: [99]}", "ok is a list of statuses"),
        ("wait: {}", "wait needs either for or until"),
        ("wait: {for: soon}", "for must be a time such as"),
        ("wait: {for: 1000d}", "at most 366d"),
        ("wait: {for: 1h}\n  retry: {attempts: 2}", "wait has no retry"),
        ("http: {url: u}\n  timeout: 2d", "a timeout of at most 3600s"),
        ("signal: {name: go}", "signal needs timeout"),
        ("signal: {name: go, timeout: 1h, on_timeout: panic}", "on_timeout must be fail or continue"),
        ("saga: {definition: story, version: 1}", "story starts itself"),
        ("parallel: {branches: []}", "there must be at least one branch"),
        (
            "choice: [{otherwise: [{id: b, set: {}}]}, {when: x, steps: [{id: c, set: {}}]}]",
            "otherwise must be the last",
        ),
        ("each: {items: x, in_parallel: 65, steps: [{id: b, set: {}}]}", "in_parallel must be a whole number, 1 to 64"),
        ("model: {model: m, messages: []}", "model needs max_tokens"),
        ("approve: {title: t, timeout: 1h}\n  timeout: 1h", "the timeout of an approve stands within it"),
        ("http: {url: u, headers: {\"a b\": c}}", "a b is no name of a header"),
        (
            "http: {url: u}\n  compensate: {http: {url: \"${steps.a.body}\"}}",
            "a has no outcome if it timed out: ask has(steps.a) first",
        ),
        ("http: {url: u}\n  compensate: {model: {}}", "compensate has no key model"),
        ("http: {url: u}\n  compensate: {}", "compensate must do something"),
        ("set: {}\n  result: input", "is a reserved name"),
    ] {
        let found = findings(&definition("", &format!("- id: a\n  {step}\n")));
        assert!(found.iter().any(|found| found.contains(expected)), "{step}: {found:#?}");
        assert!(found.iter().all(|found| !found.starts_with("0:")), "{step}: {found:#?}");
    }
    let head = "input: {a: text}\nlimits: {steps: 0, repeats: {window: 3, same: 9}}\ndegrade: [{}]";
    assert_eq!(findings(&definition(head, "- id: a\n  set: {}\n")).len(), 4);
}

#[test]
fn sagas_that_start_one_another_for_ever_are_found() {
    let of = |name: &str, child: &str| {
        let text = format!(
            "definition: {name}\nversion: 1\nsteps:\n  - id: a\n    saga: {{definition: {child}, version: 1}}\n"
        );
        parse(&text).unwrap()
    };
    let (a, b, c, d) = (of("a", "b"), of("b", "c"), of("c", "b"), of("d", "none"));
    assert_eq!(cycle([&a, &d]), None);
    assert_eq!(cycle([&a, &b, &c, &d]), Some(vec!["b".to_owned(), "c".to_owned()]));
}

#[test]
fn the_canonical_form_is_json_and_says_the_same() {
    let text =
        definition("input: {b: int, a: string}\nbudget: $1", "- id: x\n  # why\n  set: {z: 1, a: [true, 1.5, null]}\n")
            + "test: {input: {}}\n";
    let read = parse(&text).unwrap();
    let canonical = r#"{"budget":"$1","definition":"story","form":1,"input":{"a":"string","b":"int"},"steps":[{"id":"x","set":{"a":[true,1.5,null],"z":1}}],"version":1}"#;
    assert_eq!(read.canonical.as_str(), canonical);
    assert_eq!(load(&read.canonical).unwrap(), read);
    assert_eq!(parse(canonical).unwrap(), read);
}

#[test]
fn scalars_have_the_types_of_yaml_1_2() {
    let read =
        tree::read("[1, -2, 1.5, 1e3, true, no, ~, '5', 0x1F, 1_000, .inf, 12:30, '', 99999999999999999999]").unwrap();
    let expected = json!([1, -2, 1.5, 1000.0, true, "no", null, "5", "0x1F", "1_000", ".inf", "12:30", "", 1e20]);
    assert_eq!(read.to_json(), expected);
}

#[test]
fn templates_keep_types_and_put_texts_together() {
    let mut evaluate = |text: &str| {
        Expression::parse(text).unwrap().evaluate([("n".to_owned(), json!(5)), ("s".to_owned(), json!("x"))])
    };
    let mut render =
        |text: &str| template::render(&tree::read(text).unwrap(), &mut evaluate).map_err(|error| error.to_string());
    assert_eq!(render("'${n}'").unwrap(), json!(5));
    assert_eq!(render("'${n} of ${s}: $${n} ${ {\"a\": \"}\"}.a }'").unwrap(), json!("5 of x: ${n} }"));
    assert_eq!(render("{a: ['${s}', 1]}").unwrap(), json!({"a": ["x", 1]}));
    assert!(render("'${n.x}'").unwrap_err().contains("n.x"));
}

/// The value of an expression over a list of numbers and a map.
fn value(text: &str) -> Result<serde_json::Value, String> {
    let numbers: Vec<_> = (0..100).collect();
    let variables = [
        ("l".to_owned(), json!(numbers)),
        ("m".to_owned(), json!({"b": 2, "a": 1, "c": 3})),
        ("s".to_owned(), json!("x".repeat(10_000))),
    ];
    let expression = Expression::parse(text).map_err(|invalid| invalid.to_string())?;
    expression.evaluate(variables).map_err(|failure| failure.to_string())
}

#[test]
fn expressions_mean_what_cel_means() {
    for (text, expected) in [
        ("1 + 2 * 3", json!(7)),
        ("m.map(k, k + '=' + string(m[k]))", json!(["a=1", "b=2", "c=3"])),
        ("m.exists(k, m[k] == 2) && !m.all(k, m[k] == 2)", json!(true)),
        ("l.filter(x, x % 50 == 1)", json!([1, 51])),
        ("l.map(x, x > 97, x * 2)", json!([196, 198])),
        ("[1, 2].exists_one(x, x == 1)", json!(true)),
        ("{'z': [1, {'a': null}]}", json!({"z": [1, {"a": null}]})),
        ("has(m.a) && !has(m.z)", json!(true)),
        ("size(s) > 9999 ? 'long' : 'short'", json!("long")),
        ("'a' in m && s.startsWith('xx') && 3 in l", json!(true)),
        ("int('5') + int(1.9)", json!(6)),
    ] {
        assert_eq!(value(text), Ok(expected), "{text}");
    }
}

#[test]
fn expressions_that_explode_end_by_their_budget() {
    let chain = |times: usize| format!("[s]{}", ".map(y, [y, y])".repeat(times));
    for text in [
        "l.map(a, l.map(b, l.map(c, 1)))".to_owned(),
        "l.map(a, l.map(b, l.map(c, l.map(d, l.map(e, 1)))))".to_owned(),
        "l.all(a, l.all(b, l.all(c, a + b + c >= 0)))".to_owned(),
        "l.exists(a, l.exists(b, l.exists(c, l.exists(d, a + b + c + d < 0))))".to_owned(),
        "[0].map(a, s + s).map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a)"
            .to_owned(),
        chain(30),
        chain(200),
        "l.map(x, s == s && s == s && s + 'a' == s + 'a')".to_owned(),
        "l.map(x, s.contains('y') || s.contains('z'))".to_owned(),
        "l.map(x, {'a': s, 'b': s, 'c': [s, s, s]})".to_owned(),
        // Every round costs what its body has of operators.
        format!("l.all(a, l.all(b, a{} >= 0))", " * b".repeat(60)),
        // What a loop runs over is copied for it.
        "l.all(a, [s, s, s, s, s, s, s, s].all(b, true))".to_owned(),
        // An error that an operator swallows is still the end.
        "l.all(a, l.all(b, l.all(c, true))) || true".to_owned(),
    ] {
        let started = stopwatch();
        let error = value(&text).unwrap_err();
        assert!(error.contains("units of work") || error.contains("operators, brackets"), "{text}: {error}");
        assert!(started.elapsed() < Duration::from_secs(10), "{text}: {:?}", started.elapsed());
    }
}

#[test]
fn a_definition_full_of_the_largest_expressions_is_checked_in_bounded_time() {
    let shapes = [
        format!("[{}1]", "1,".repeat(1_900)),
        format!("{}1{}", "(".repeat(32), ")".repeat(32)),
        format!("{}1{}", "[1,(".repeat(16), ")]".repeat(16)),
        format!("{}1{}", "{'a': ".repeat(32), "}".repeat(32)),
        format!("true{}", " ? [1] : {'a': 1} == (1)".repeat(30)),
        format!("size([{}])", "[1].map(x, x + 1), ".repeat(38)),
        format!("{}1", "1 < 2 == true != false || ".repeat(22)),
    ];
    for shape in &shapes {
        assert!(shape.len() <= 4_096);
        let count = (250 * 1_024 / (shape.len() + 40)).min(500);
        let steps: String = (0..count).map(|n| format!("- id: s{n}\n  set: {{x: \"${{{shape}}}\"}}\n")).collect();
        let text = definition("", &steps);
        let started = stopwatch();
        let taken = parse(&text).is_ok();
        println!("{} bytes of {}...: {taken}, {:?}", text.len(), &shape[..20], started.elapsed());
        assert!(started.elapsed() < Duration::from_secs(120), "{shape}: {:?}", started.elapsed());
    }
}

#[test]
fn expressions_that_are_not_allowed_are_refused_when_they_are_read() {
    for (text, expected) in [
        ("now()", "there is no function now"),
        ("s.matches('(a+)+')", "there is no function matches"),
        ("timestamp('2026-01-01T00:00:00Z')", "there is no function timestamp"),
        ("b'abc'", "bytes are not allowed"),
        ("Message{a: 1}", "there are no message types"),
        ("steps", "name the step"),
        ("steps['a']", "name the step"),
        ("", ""),
        ("a b", ""),
    ] {
        let error = Expression::parse(text).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    assert!(Expression::parse(&"1+".repeat(4_000)).is_err());
    for deep in ["(", "[", "{1:", "-", "!", "a?b:", "f(", "a["] {
        let started = stopwatch();
        assert!(Expression::parse(&deep.repeat(4_000 / deep.len())).is_err(), "{deep}");
        assert!(started.elapsed() < Duration::from_secs(20), "{deep}: {:?}", started.elapsed());
    }
    // The deepest that are allowed are parsed and evaluated on the small stack of a test's thread.
    for (first, more, times) in [
        ("1", "+1", 160),
        ("true", " && true", 80),
        ("true", " ? true : false", 160),
        ("m", ".a", 160),
        ("1", " in l", 160),
    ] {
        let longest = format!("{first}{}", more.repeat(times));
        drop(Expression::parse(&longest).unwrap().evaluate([("m".to_owned(), json!({})), ("l".to_owned(), json!([]))]));
        assert!(Expression::parse(&(longest + more)).is_err(), "{more}");
    }
    for (open, close) in [("(", ")"), ("[", "]"), ("{'a': ", "}"), ("size([", "])"), ("!(", ")")] {
        let nested = format!("{}1{}", open.repeat(16), close.repeat(16));
        drop(Expression::parse(&nested).map(|read| read.evaluate([])));
    }
}

#[test]
fn an_expression_has_one_value_whatever_the_order_of_a_hash_map() {
    let text = "[m.map(k, k), m.filter(k, m[k] > 1), {'y': 1, 'x': 2, 'w': 3}, string(m.a)]";
    let first = value(text).unwrap().to_string();
    for _ in 0..50 {
        assert_eq!(value(text).unwrap().to_string(), first);
        // Errors do not show values, which print in the order of the map.
        assert_eq!(value("m + 1"), value("m + 1"));
        assert_eq!(value("m < m"), value("m < m"));
    }
}

#[test]
fn a_definition_has_a_bounded_number_of_expressions() {
    let texts = "\"${1}\", ".repeat(2_001);
    let found = findings(&definition("", &format!("- id: a\n  set: {{x: [{texts}]}}\n")));
    assert!(found.len() == 1 && found[0].contains("at most 2000 expressions"), "{found:?}");
}
