//! What a definition's parts mean together: names are unique, expressions are expressions, and what they name is there
//! when they are evaluated.
//!
//! A step may name an earlier step of its own list or of a list around it, and what is inside such a step, except
//! inside an `each` (which has an outcome for each item) and in another branch of the same `parallel`.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    definition::{Definition, Kind, StepIndex, Until},
    expression::{EXPRESSIONS_LEN_MAX, Expression},
    reader::{Reader, cut},
    template::{Part, expressions},
    tree::{Content, Node, Place},
};

/// Names that the steps' paths and variables need for themselves.
const RESERVED: &[&str] = &["compensate", "input", "steps", "saga", "now", "index"];
/// Variables that are always there.
const VARIABLES: &[&str] = &["input", "saga", "now"];

/// Where an expression is evaluated.
#[derive(Clone, Copy)]
enum Site {
    /// Before a step's own outcome is there.
    Step(StepIndex),
    /// After it.
    Compensation(StepIndex),
    /// After all.
    Output,
}

/// Adds what is wrong to the reader's findings.
pub(super) fn check(definition: &Definition, reader: &mut Reader) {
    let mut seen = BTreeMap::new();
    for step in &definition.steps {
        let at = step.at.0;
        if RESERVED.contains(&step.id.as_str()) || RESERVED.contains(&step.result.as_str()) {
            reader.find(at, format!("{} is a reserved name", step.id));
        }
        for name in BTreeSet::from([&step.id, &step.result]) {
            if seen.insert(name.clone(), ()).is_some() && !name.is_empty() {
                reader.find(at, format!("there are two steps with the id or result {}", cut(name)));
            }
        }
    }
    let mut checker = Checker { definition, reader, expressions: 0 };
    for (index, step) in (0_u32..).zip(&definition.steps) {
        let site = Site::Step(index);
        if let Some(condition) = &step.condition {
            checker.expression(condition, site, true);
        }
        checker.kind(&step.kind, site);
        if let Some(compensation) = &step.compensate {
            checker.kind(&compensation.kind, Site::Compensation(index));
        }
    }
    if let Some(output) = &definition.output {
        checker.template(output, Site::Output);
    }
}

/// A saga that starts itself, through others or not, among some definitions; `None` = there is none.
pub fn cycle<'d>(definitions: impl IntoIterator<Item = &'d Definition>) -> Option<Vec<String>> {
    let graph: BTreeMap<&str, BTreeSet<&str>> =
        definitions.into_iter().fold(BTreeMap::new(), |mut graph, definition| {
            let children = definition.children().map(|(name, _)| name);
            graph.entry(definition.name.as_str()).or_insert_with(BTreeSet::new).extend(children);
            graph
        });
    // What starts nothing that is left is on no cycle; what cannot be taken away is on one, or leads to one.
    let mut left = graph.clone();
    loop {
        let gone: Vec<&str> = left
            .iter()
            .filter(|(_, children)| !children.iter().any(|child| left.contains_key(child)))
            .map(|(name, _)| *name)
            .collect();
        if gone.is_empty() {
            break;
        }
        for name in gone {
            left.remove(name);
        }
    }
    let mut path: Vec<String> = Vec::new();
    let mut next = *left.keys().next()?;
    while !path.iter().any(|name| name == next) {
        path.push(next.to_owned());
        next = left.get(next)?.iter().find(|child| left.contains_key(*child))?;
    }
    let start = path.iter().position(|name| name == next)?;
    Some(path.split_off(start))
}

struct Checker<'c> {
    definition: &'c Definition,
    reader: &'c mut Reader,
    /// How many there were.
    expressions: u32,
}

impl Checker<'_> {
    fn kind(&mut self, kind: &Kind, site: Site) {
        match kind {
            Kind::Model { messages, temperature, .. } => self.templates([Some(messages), temperature.as_ref()], site),
            Kind::Http { url, headers, body, .. } => {
                self.templates([Some(url), headers.as_ref(), body.as_ref()], site);
                self.text(url, "url");
            }
            Kind::Append { stream, payload, .. } => {
                self.templates([Some(stream), Some(payload)], site);
                self.text(stream, "stream");
            }
            Kind::Notify { url, body } => {
                self.templates([Some(url), body.as_ref()], site);
                self.text(url, "url");
            }
            Kind::Approve { title, assignees, .. } => self.templates([Some(title), assignees.as_ref()], site),
            Kind::Wait(Until::At(until)) => self.template(until, site),
            Kind::Wait(Until::For(_)) | Kind::Signal { .. } | Kind::Parallel { .. } => {}
            Kind::Saga { definition, input, .. } => {
                self.templates([input.as_ref()], site);
                let at = self.place(site);
                if *definition == self.definition.name {
                    self.reader.find(at, format!("{definition} starts itself"));
                }
            }
            Kind::Choice { cases } => {
                for condition in cases.iter().filter_map(|(condition, _)| condition.as_ref()) {
                    self.expression(condition, site, true);
                }
            }
            Kind::Each { items, variable, .. } => {
                match &items.content {
                    Content::List(_) => self.template(items, site),
                    Content::Null
                    | Content::Bool(_)
                    | Content::Int(_)
                    | Content::Float(_)
                    | Content::Text(_)
                    | Content::Map(_) => self.expression(items, site, false),
                }
                if variable != "item" && RESERVED.contains(&variable.as_str()) {
                    self.reader.find(items.at, format!("{variable} is a reserved name"));
                }
            }
            Kind::Set { values } => self.template(values, site),
            Kind::Fail { kind, message } => self.templates([Some(kind), Some(message)], site),
        }
    }

    fn place(&self, site: Site) -> Place {
        match site {
            Site::Step(step) | Site::Compensation(step) => self.definition.step(step).map(|step| step.at.0),
            Site::Output => None,
        }
        .unwrap_or_default()
    }

    fn text(&mut self, node: &Node, what: &str) {
        if !matches!(node.content, Content::Text(_) | Content::Null) {
            self.reader.find(node.at, format!("{what} must be a text, but is {}", node.what()));
        }
    }

    fn templates<'n>(&mut self, nodes: impl IntoIterator<Item = Option<&'n Node>>, site: Site) {
        nodes.into_iter().flatten().for_each(|node| self.template(node, site));
    }

    fn template(&mut self, node: &Node, site: Site) {
        expressions(node, &mut |node, part| match part {
            Ok(Part::Plain(_)) => {}
            Ok(Part::Expression { text, offset }) => {
                self.parsed(&text, shifted(node, offset), site, false);
            }
            Err(invalid) => self.reader.find(shifted(node, invalid.offset), invalid),
        });
    }

    /// A field that is one expression, with or without `${}` around it.
    fn expression(&mut self, node: &Node, site: Site, condition: bool) {
        match &node.content {
            Content::Text(text) => {
                let bare = bare(text);
                let offset = u32::from(bare.len() != text.len()).saturating_mul(2);
                self.parsed(bare, shifted(node, offset), site, condition);
            }
            Content::Bool(_) if condition => {}
            Content::Null
            | Content::Bool(_)
            | Content::Int(_)
            | Content::Float(_)
            | Content::List(_)
            | Content::Map(_) => {
                self.reader.find(node.at, format!("there must be an expression, but is {}", node.what()));
            }
        }
    }

    fn parsed(&mut self, text: &str, at: Place, site: Site, condition: bool) {
        self.expressions = self.expressions.saturating_add(1);
        if self.expressions > EXPRESSIONS_LEN_MAX {
            // Told once, and not read on: that alone takes time.
            if self.expressions == EXPRESSIONS_LEN_MAX.saturating_add(1) {
                self.reader.find(at, format!("a definition has at most {EXPRESSIONS_LEN_MAX} expressions"));
            }
            return;
        }
        let expression = match Expression::parse(text) {
            Ok(expression) => expression,
            Err(invalid) => {
                let at = Place { column: at.column.saturating_add(invalid.offset), ..at };
                return self.reader.find(at, format!("{} is no expression: {invalid}", cut(text)));
            }
        };
        if condition && expression.never_bool {
            self.reader.find(at, format!("{} is never true or false", cut(text)));
        }
        let loops = self.loops(site);
        for name in &expression.uses.variables {
            if !VARIABLES.contains(&name.as_str()) && !loops.contains(name) {
                self.reader.find(at, format!("there is no variable {}", cut(name)));
            }
        }
        for name in &expression.uses.steps {
            match self.definition.by_result(name) {
                None => self.reader.find(at, format!("there is no step {}", cut(name))),
                Some(step) if !self.is_visible(step, site) => {
                    self.reader
                        .find(at, format!("the outcome of {} is not there yet, or is another branch's", cut(name)));
                }
                // A step is undone too if its last word was a timeout: then it has no outcome.
                Some(step)
                    if matches!(site, Site::Compensation(own) if own == step)
                        && !text.contains(&format!("has(steps.{name}")) =>
                {
                    let said =
                        format!("{} has no outcome if it timed out: ask has(steps.{}) first", cut(name), cut(name));
                    self.reader.find(at, said);
                }
                Some(_) => {}
            }
        }
    }

    /// The variables of the loops around a place.
    fn loops(&self, site: Site) -> BTreeSet<String> {
        let (Site::Step(step) | Site::Compensation(step)) = site else { return BTreeSet::new() };
        let mut names = BTreeSet::new();
        for (around, _) in self.definition.ancestors(step) {
            if let Some(Kind::Each { variable, .. }) = self.definition.step(around).map(|step| &step.kind) {
                names.extend([variable.clone(), "index".to_owned()]);
            }
        }
        names
    }

    fn is_visible(&self, wanted: StepIndex, site: Site) -> bool {
        let (own, from) = match site {
            Site::Step(step) => (false, Some(step)),
            Site::Compensation(step) => (true, Some(step)),
            Site::Output => (false, None),
        };
        if from == Some(wanted) {
            return own;
        }
        let around = from.map(|step| self.definition.ancestors(step)).unwrap_or_default();
        // What is around a step has no outcome before the step has.
        if around.iter().any(|(step, _)| *step == wanted) || from.is_some_and(|from| wanted > from) {
            return false;
        }
        let chain = self.definition.ancestors(wanted);
        let shared = chain.iter().zip(&around).take_while(|(left, right)| left == right).count();
        // Two branches of the same step: neither knows of the other.
        if let (Some((left, _)), Some((right, _))) = (chain.get(shared), around.get(shared))
            && left == right
        {
            return false;
        }
        chain
            .get(shared..)
            .unwrap_or_default()
            .iter()
            .all(|(step, _)| !matches!(self.definition.step(*step).map(|step| &step.kind), Some(Kind::Each { .. })))
    }
}

/// An expression without the `${}` that may stand around it.
pub(super) fn bare(text: &str) -> &str {
    text.strip_prefix("${").and_then(|text| text.strip_suffix('}')).unwrap_or(text)
}

/// A place inside a text; of a block of lines, where it begins.
fn shifted(node: &Node, offset: u32) -> Place {
    let column = |inset: u32| node.at.column.saturating_add(inset).saturating_add(offset);
    Place { column: node.inset.map_or(node.at.column, column), ..node.at }
}
