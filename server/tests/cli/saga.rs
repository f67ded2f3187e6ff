//! `freehold saga check` and `test`, on the examples and on faulty files.

use std::{fs, path::Path};

use serde_json::Value;
use tempfile::TempDir;

use crate::run;

/// The repository's example definitions of sagas.
fn saga_examples() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/sagas");
    let mut files: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path().display().to_string()).collect();
    files.sort();
    files
}

#[test]
fn example_sagas_are_checked_and_tested_without_a_server() {
    let directory = TempDir::new().unwrap();
    let files = saga_examples();
    assert_eq!(files.len(), 3);
    for file in &files {
        let checked = run(directory.path(), &["saga", "check", file]);
        assert_eq!(checked.code, Some(0), "{}{}", checked.out, checked.err);
        let json = run(directory.path(), &["saga", "check", file, "--json"]).json();
        assert_eq!(json["sha256"].as_str().unwrap().len(), 64);
        assert!(checked.out.contains(json["steps"][0]["id"].as_str().unwrap()), "{}", checked.out);
        let tested = run(directory.path(), &["saga", "test", file]);
        assert_eq!(tested.code, Some(0), "{}{}", tested.out, tested.err);
        assert!(tested.out.contains("ends the same when every step runs twice"), "{}", tested.out);
        assert_eq!(run(directory.path(), &["saga", "test", file, "--json"]).json()["problems"], Value::Array(vec![]));
    }
    let order = run(directory.path(), &["saga", "check", &files[1]]).out;
    assert!(order.contains("undone by http POST ${input.service}/refunds"), "{order}");
}

#[test]
fn faults_of_a_saga_are_told_with_file_line_and_column() {
    let directory = TempDir::new().unwrap();
    let file = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    file("bad.yaml", "definition: bad\nversion: 1\nsteps:\n  - id: a\n    set: {x: \"${nobody}\"}\n");
    let bad = run(directory.path(), &["saga", "check", "bad.yaml"]);
    assert_eq!((bad.code, bad.out.as_str()), (Some(1), "bad.yaml:5:17: there is no variable nobody\n"));
    let json = run(directory.path(), &["saga", "check", "bad.yaml", "--json"]);
    let found: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((json.code, &found["findings"][0]["at"]["line"]), (Some(1), &Value::from(5)));
    file("huge.yaml", &"x".repeat(10 * 1024 * 1024));
    let huge = run(directory.path(), &["saga", "check", "huge.yaml"]);
    assert_eq!(huge.code, Some(1));
    assert!(huge.err.contains("at most 262144 bytes"), "{}", huge.err);
    assert_eq!(run(directory.path(), &["saga", "check", "none.yaml"]).code, Some(1));
    // What cannot be undone does not unwind.
    file(
        "stuck.yaml",
        "definition: stuck\nversion: 1\nsteps:\n  - id: a\n    http: {url: u}\n    compensate:\n      http: {url: \"${has(steps.a) ? steps.a.gone : 'u'}\"}\n  - id: b\n    http: {url: u}\n",
    );
    let stuck = run(directory.path(), &["saga", "test", "stuck.yaml"]);
    assert_eq!(stuck.code, Some(1));
    assert!(stuck.out.contains("problem: with b failing it does not unwind: needs_operator"), "{}", stuck.out);
}
