//! From a text to a definition: shape, units and bounds. What its parts mean together is judged by `check`.

use events_model::{NanoUsd, saga::Json};

use super::{
    definition::{
        BUDGET_MAX, Definition, ITEMS_LEN_MAX, InputKind, InputType, LEVELS_LEN_MAX, LIMIT_STEPS_MAX, Level, Limits,
        TOKENS_MAX, WAIT_MAX, WINDOW_MAX,
    },
    reader::Reader,
    steps::Steps,
    tree::{self, Content, Finding, Node, compact},
};

const KEYS: &[&str] = &[
    "form",
    "definition",
    "version",
    "description",
    "input",
    "budget",
    "limits",
    "degrade",
    "steps",
    "output",
    "test",
];
/// What a canonical form means: its keys, and every default that it leaves out (`Limits::DEFAULT`, `Retry::NONE` and
/// `PATIENT`, `TIMEOUT_DEFAULT`, those of `steps`). Sagas that run depend on it: whoever changes a default, or lowers a
/// bound, gives the new meaning the next number and goes on reading this one as it is.
pub const FORM: u32 = 1;
/// Longest text for people, bytes.
pub(super) const TEXT_BYTES_MAX: usize = 2_000;

/// Reads and checks a definition.
///
/// # Errors
/// All that is wrong with it, in the order of the text; never empty.
pub fn parse(text: &str) -> Result<Definition, Vec<Finding>> {
    let root = tree::read(text).map_err(|finding| vec![finding])?;
    let mut reader = Reader::default();
    let definition = definition(&root, &mut reader);
    super::check::check(&definition, &mut reader);
    if definition.canonical.as_str().len() > tree::DEFINITION_BYTES_MAX {
        reader.find(root.at, format!("a definition has at most {} bytes as JSON", tree::DEFINITION_BYTES_MAX));
    }
    if reader.findings.is_empty() {
        return Ok(definition);
    }
    reader.findings.sort();
    reader.findings.dedup();
    Err(reader.findings)
}

/// Reads a canonical form: it was checked when it was registered, so its expressions are not parsed again.
///
/// # Errors
/// It is not one.
pub fn load(canonical: &Json) -> Result<Definition, Finding> {
    let text = canonical.as_str();
    let fault = |message: String| Finding { at: tree::Place::default(), message };
    if text.len() > tree::DEFINITION_BYTES_MAX {
        return Err(fault("the canonical form is too long".to_owned()));
    }
    let value = serde_json::from_str(text).map_err(|error| fault(error.to_string()))?;
    let (root, mut reader) = (Node::from_json(&value), Reader::default());
    reader.required(&root, "a canonical form", "form");
    let definition = definition(&root, &mut reader);
    match reader.findings.into_iter().next() {
        None => Ok(definition),
        Some(finding) => Err(finding),
    }
}

fn definition(root: &Node, reader: &mut Reader) -> Definition {
    reader.map(root, "a definition", KEYS);
    if let Some(node) = root.get("form")
        && !matches!(node.content, Content::Int(form) if form == i64::from(FORM))
    {
        reader.find(node.at, format!("the definition is of another form than {FORM}"));
    }
    let name = reader.required(root, "a definition", "definition").map(|node| reader.name(node, "definition"));
    let version =
        reader.required(root, "a definition", "version").map(|node| reader.whole(node, "version", 1, u32::MAX));
    let description = root.get("description").map(|node| reader.text(node, "description", TEXT_BYTES_MAX));
    let budget = root.get("budget").map(|node| reader.money(node, "budget", BUDGET_MAX));
    let mut steps = Steps::default();
    if let Some(node) = reader.required(root, "a definition", "steps") {
        steps.block(node, None, 1, reader);
    }
    Definition {
        name: name.unwrap_or_default(),
        version: version.unwrap_or(1),
        description: description.unwrap_or_default(),
        input: root.get("input").map(|node| input(node, reader)).unwrap_or_default(),
        budget: budget.unwrap_or(NanoUsd(0)),
        limits: root.get("limits").map_or(Limits::DEFAULT, |node| limits(node, reader)),
        degrade: root.get("degrade").map(|node| levels(node, reader)).unwrap_or_default(),
        steps: steps.steps,
        blocks: steps.blocks,
        output: root.get("output").cloned(),
        canonical: canonical(root),
    }
}

/// The definition without what is only about it, with its form: compact, keys in ascending order.
fn canonical(root: &Node) -> Json {
    let mut value = root.to_json();
    if let Some(keys) = value.as_object_mut() {
        keys.remove("test");
        keys.insert("form".to_owned(), FORM.into());
    }
    compact(&value)
}

fn input(node: &Node, reader: &mut Reader) -> std::collections::BTreeMap<String, InputType> {
    let mut types = std::collections::BTreeMap::new();
    for (key, node) in reader.map(node, "input", &[]) {
        let text = reader.text(node, "the type of an input", 16);
        let (word, optional) = match text.strip_suffix('?') {
            Some(word) => (word, true),
            None => (text.as_str(), false),
        };
        let kind = match word {
            "string" => InputKind::Text,
            "int" => InputKind::Int,
            "number" => InputKind::Number,
            "bool" => InputKind::Bool,
            "list" => InputKind::List,
            "map" => InputKind::Map,
            "any" => InputKind::Any,
            _ => {
                reader.find(node.at, "an input is a string, int, number, bool, list, map or any, with ? if optional");
                InputKind::Any
            }
        };
        if !super::reader::is_name(&key.text) || key.text.contains('-') {
            reader.find(key.at, "the name of an input must be letters, digits and _, a letter first");
        }
        types.insert(key.text.clone(), InputType { kind, optional });
    }
    types
}

fn limits(node: &Node, reader: &mut Reader) -> Limits {
    let mut limits = Limits::DEFAULT;
    for (key, node) in reader.map(node, "limits", &["steps", "wall_time", "spend", "repeats", "no_progress_steps"]) {
        match key.text.as_str() {
            "steps" => limits.steps = reader.whole(node, "steps", 1, LIMIT_STEPS_MAX),
            "wall_time" => limits.wall_time = reader.duration(node, "wall_time", WAIT_MAX),
            "spend" => limits.spend = reader.money(node, "spend", BUDGET_MAX),
            "no_progress_steps" => {
                limits.no_progress_steps = reader.whole(node, "no_progress_steps", 2, LIMIT_STEPS_MAX);
            }
            "repeats" => {
                for (key, node) in reader.map(node, "repeats", &["window", "same"]) {
                    match key.text.as_str() {
                        "window" => limits.window = reader.whole(node, "window", 2, WINDOW_MAX),
                        "same" => limits.same = reader.whole(node, "same", 2, WINDOW_MAX),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if limits.same > limits.window {
        reader.find(node.at, "repeats: same must be at most window");
    }
    limits
}

fn levels(node: &Node, reader: &mut Reader) -> Vec<Level> {
    let mut levels = Vec::new();
    for node in reader.list(node, "degrade", LEVELS_LEN_MAX) {
        let mut level = Level::default();
        for (key, node) in reader.map(node, "a level", &["tier", "max_tokens", "context_messages"]) {
            match key.text.as_str() {
                "tier" => level.tier = Some(reader.name(node, "tier")),
                "max_tokens" => level.max_tokens = Some(reader.whole(node, "max_tokens", 1, TOKENS_MAX)),
                "context_messages" => {
                    level.context_messages = Some(reader.whole(node, "context_messages", 1, ITEMS_LEN_MAX));
                }
                _ => {}
            }
        }
        if level == Level::default() && matches!(node.content, Content::Map(_)) {
            reader.find(node.at, "a level changes nothing");
        }
        levels.push(level);
    }
    levels
}
