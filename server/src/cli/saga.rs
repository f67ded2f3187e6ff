//! `freehold saga ...` on a file: checks a definition, shows its steps, runs its three tests. Needs no server.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use actors_core::saga::{
    definition::{Compensation, Definition, Join, Kind, StepIndex, Until},
    parse,
    simulate::{fixture, test},
    tree::{Content, DEFINITION_BYTES_MAX, Finding, Node},
};
use events_model::DurationUs;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    arguments::Saga,
    failure::{Failure, Problem},
    output::{Column, Output},
};

/// Most characters shown of a template.
const SHOWN_MAX: usize = 60;

/// Runs a command about a definition.
pub(super) fn run(command: &Saga, output: &mut Output) -> Result<(), Failure> {
    match command {
        Saga::Check { file } => check(file, output),
        Saga::Test { file } => run_tests(file, output),
    }
}

/// Reads one byte more than a definition may have: whoever gives more is told so.
fn read(file: &Path) -> Result<String, Failure> {
    let problem = |error: &io::Error| Problem::new(format!("read {}", file.display())).because(error);
    let most = u64::try_from(DEFINITION_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    File::open(file).and_then(|file| file.take(most).read_to_end(&mut bytes)).map_err(|error| problem(&error))?;
    if bytes.len() > DEFINITION_BYTES_MAX {
        let text = format!("{}: a definition has at most {DEFINITION_BYTES_MAX} bytes", file.display());
        return Err(Problem::new(text).into());
    }
    String::from_utf8(bytes).map_err(|error| Problem::new(format!("read {}", file.display())).because(&error).into())
}

fn check(file: &Path, output: &mut Output) -> Result<(), Failure> {
    let text = read(file)?;
    let definition = match parse(&text).and_then(|read| fixture(&text, &read).map(|_| read).map_err(|one| vec![one])) {
        Ok(definition) => definition,
        Err(findings) => return Err(tell(file, &findings, output)?),
    };
    if output.json() {
        return output.document(&json!({
            "file": file.display().to_string(),
            "definition": definition.name,
            "version": definition.version,
            "sha256": digest(&definition),
            "findings": [],
            "steps": definition.steps.iter().map(step_json).collect::<Vec<_>>(),
        }));
    }
    output.line(format!("{}@{}  {}", definition.name, definition.version, definition.description))?;
    let mut lines = Vec::new();
    picture(&definition, 0, "", &mut lines);
    output.lines(lines.join("\n"))?;
    output.line(format!("{} steps, sha256 {}", definition.steps.len(), digest(&definition)))
}

/// Prints findings as compilers do.
fn tell(file: &Path, findings: &[Finding], output: &mut Output) -> Result<Failure, Failure> {
    if output.json() {
        output.document(&json!({"file": file.display().to_string(), "findings": findings}))?;
        return Ok(Failure::Found);
    }
    for Finding { at, message } in findings {
        output.line(format!("{}:{}:{}: {message}", file.display(), at.line, at.column))?;
    }
    Ok(Failure::Found)
}

fn run_tests(file: &Path, output: &mut Output) -> Result<(), Failure> {
    let text = read(file)?;
    let read = parse(&text).and_then(|read| match fixture(&text, &read) {
        Ok(fixture) => Ok((read, fixture)),
        Err(finding) => Err(vec![finding]),
    });
    let (definition, fixture) = match read {
        Ok(read) => read,
        Err(findings) => return Err(tell(file, &findings, output)?),
    };
    let report = test(&definition, &fixture);
    if output.json() {
        output.document(&report)?;
    } else {
        output.line(format!("{}@{}: {} deeds in the good run", definition.name, definition.version, report.deeds))?;
        let rows = report.failures.iter().zip(&report.lost);
        let rows = rows.map(|((path, end), (_, lost))| vec![path.clone(), end.clone(), lost.clone()]);
        let columns = ["step", "how it ends if it fails", "if its answer is lost"].map(Column::Left);
        output.table(&columns, rows)?;
        for step in &report.not_reached {
            output.line(format!("not reached: {step} (write outcomes under `test` that lead to it)"))?;
        }
        for problem in &report.problems {
            output.line(format!("problem: {problem}"))?;
        }
        if report.problems.is_empty() {
            output.line("it succeeds, unwinds from each step and each lost answer, and ends the same when every step runs twice")?;
        }
    }
    if report.problems.is_empty() { Ok(()) } else { Err(Failure::Found) }
}

/// The name of what a definition says.
fn digest(definition: &Definition) -> String {
    Sha256::digest(definition.canonical.as_str()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn step_json(step: &actors_core::saga::definition::Step) -> Value {
    let undone = step.compensate.as_ref().map(|undo| undo.kind.name());
    json!({"id": step.id, "kind": step.kind.name(), "line": step.at.0.line, "compensated_by": undone})
}

/// The steps as a tree.
fn picture(definition: &Definition, block: u32, indent: &str, lines: &mut Vec<String>) {
    let steps = definition.block(block);
    for (number, index) in steps.iter().enumerate() {
        let last = number.saturating_add(1) == steps.len();
        let (branch, deeper) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        lines.push(format!("{indent}{branch}{}", label(definition, *index)));
        branches(definition, *index, &format!("{indent}{deeper}"), lines);
    }
}

fn branches(definition: &Definition, index: StepIndex, indent: &str, lines: &mut Vec<String>) {
    let Some(step) = definition.step(index) else { return };
    let blocks = step.kind.blocks();
    if let Kind::Each { .. } = step.kind {
        return blocks.iter().for_each(|block| picture(definition, *block, indent, lines));
    }
    for (number, block) in blocks.iter().enumerate() {
        let last = number.saturating_add(1) == blocks.len();
        let (branch, deeper) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        let name = match &step.kind {
            Kind::Choice { cases } => match cases.get(number) {
                Some((Some(when), _)) => format!("when {}", shown(when)),
                Some((None, _)) | None => "otherwise".to_owned(),
            },
            Kind::Parallel { .. }
            | Kind::Each { .. }
            | Kind::Model { .. }
            | Kind::Http { .. }
            | Kind::Append { .. }
            | Kind::Notify { .. }
            | Kind::Approve { .. }
            | Kind::Wait(_)
            | Kind::Signal { .. }
            | Kind::Saga { .. }
            | Kind::Set { .. }
            | Kind::Fail { .. } => format!("branch {number}"),
        };
        lines.push(format!("{indent}{branch}{name}"));
        picture(definition, *block, &format!("{indent}{deeper}"), lines);
    }
}

fn label(definition: &Definition, index: StepIndex) -> String {
    let Some(step) = definition.step(index) else { return String::new() };
    let mut label = format!("{}: {}", step.id, does(&step.kind));
    if let Some(condition) = &step.condition {
        label.push_str(&format!(", if {}", shown(condition)));
    }
    if step.retry.attempts > 1 {
        label.push_str(&format!(", {} attempts", step.retry.attempts));
    }
    if let Some(Compensation { kind, .. }) = &step.compensate {
        label.push_str(&format!("  <- undone by {}", does(kind)));
    }
    label
}

fn does(kind: &Kind) -> String {
    match kind {
        Kind::Model { model, max_tokens, .. } => format!("model {model}, at most {max_tokens} tokens"),
        Kind::Http { method, url, .. } => format!("http {method} {}", shown(url)),
        Kind::Append { stream, event, .. } => format!("append {event} to {}", shown(stream)),
        Kind::Notify { url, .. } => format!("notify {}", shown(url)),
        Kind::Approve { title, timeout, .. } => format!("approve {:?}, within {}", shown(title), span(*timeout)),
        Kind::Wait(Until::For(wait)) => format!("wait {}", span(*wait)),
        Kind::Wait(Until::At(until)) => format!("wait until {}", shown(until)),
        Kind::Signal { name, timeout, .. } => format!("signal {name}, within {}", span(*timeout)),
        Kind::Saga { definition, version, .. } => format!("saga {definition}@{version}"),
        Kind::Parallel { join: Join::All, .. } => "parallel, all".to_owned(),
        Kind::Parallel { join: Join::Any, .. } => "parallel, the first".to_owned(),
        Kind::Choice { .. } => "choice".to_owned(),
        Kind::Each { items, in_parallel, .. } => format!("each {}, {in_parallel} at a time", shown(items)),
        Kind::Set { .. } => "set".to_owned(),
        Kind::Fail { kind, .. } => format!("fail {}", shown(kind)),
    }
}

fn shown(node: &Node) -> String {
    let text = match &node.content {
        Content::Text(text) => text.clone(),
        Content::Null | Content::Bool(_) | Content::Int(_) | Content::Float(_) | Content::List(_) | Content::Map(_) => {
            node.to_json().to_string()
        }
    };
    let mut cut: String = text.chars().take(SHOWN_MAX).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

/// A time in its largest whole unit.
fn span(span: DurationUs) -> String {
    let units = [(86_400_000_000, "d"), (3_600_000_000, "h"), (60_000_000, "m"), (1_000_000, "s")];
    let fits = units.iter().find(|(micros, _)| span.0.is_multiple_of(*micros));
    fits.map_or_else(|| format!("{}ms", span.0 / 1_000), |(micros, unit)| format!("{}{unit}", span.0 / micros))
}
