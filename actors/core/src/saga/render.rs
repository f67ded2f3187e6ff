//! From templates and the state to values and requests.

use std::{cell::Cell, collections::BTreeMap};

use events_model::{
    NanoUsd, StreamId, TimestampUs, Tokens,
    saga::{Json, StepPath},
};
use serde_json::{Value, json};

use super::{
    check::bare,
    definition::Kind,
    expression::{Expression, Failure, WORK_MAX},
    meter::BYTES_PER_UNIT,
    request::Request,
    state::{Round, State, compensated_step, hash, value},
    template,
    tree::{Content, Node, compact},
};
use crate::price;

/// A failure: its kind and what is said about it.
pub(super) type Fault = (String, String);

/// The kind of a failure of an expression.
pub const EXPRESSION: &str = "expression";
/// Longest stored text of a failure, bytes.
pub const MESSAGE_BYTES_MAX: usize = 2_000;
/// Largest recorded request, bytes.
pub const REQUEST_BYTES_MAX: usize = 128 * 1024;
/// Tokens of a message besides its text, at most.
const TOKENS_PER_MESSAGE: u64 = 16;

/// Where and when expressions are evaluated.
#[derive(Clone, Copy)]
pub(super) struct Site<'s> {
    pub(super) state: &'s State,
    pub(super) rounds: &'s [Round],
    pub(super) now: TimestampUs,
    /// The work of this decision so far, units.
    pub(super) work: &'s Cell<u64>,
    /// How much of it was there before this step.
    pub(super) before: u64,
}

impl<'s> Site<'s> {
    pub(super) fn new(state: &'s State, rounds: &'s [Round], now: TimestampUs, work: &'s Cell<u64>) -> Self {
        Self { state, rounds, now, work, before: work.get() }
    }

    fn charge(&self, units: u64) -> Result<(), Failure> {
        self.work.set(self.work.get().saturating_add(units));
        if self.work.get().saturating_sub(self.before) > WORK_MAX { Err(Failure::TooMuchTogether) } else { Ok(()) }
    }

    /// A stored text as a value, at the price of reading it.
    fn read(&self, json: &Json) -> Result<Value, Failure> {
        self.charge(units(json.as_str()))?;
        Ok(value(json))
    }

    /// The value of an expression.
    pub(super) fn evaluate(&self, text: &str) -> Result<Value, Failure> {
        self.charge(units(text))?;
        if let Some(found) = self.path(text) {
            return found;
        }
        let expression = Expression::parse(text)?;
        let mut variables = Vec::new();
        for name in &expression.uses.variables {
            if let Some(value) = self.variable(name) {
                variables.push((name.clone(), value?));
            }
        }
        if !expression.uses.steps.is_empty() {
            let mut steps = serde_json::Map::new();
            for name in &expression.uses.steps {
                if let Some(output) = self.output(name) {
                    steps.insert(name.clone(), self.read(output)?);
                }
            }
            variables.push(("steps".to_owned(), Value::Object(steps)));
        }
        let (value, units) = expression.metered(variables);
        self.charge(units)?;
        value
    }

    /// The value of `a.b.c`, without the machinery: most expressions are that.
    fn path(&self, text: &str) -> Option<Result<Value, Failure>> {
        let mut names = text.trim().split('.');
        let plain = |name: &str| {
            name.starts_with(|first: char| first.is_ascii_lowercase())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        if !names.clone().all(plain) || matches!(text.trim(), "true" | "false" | "null") {
            return None;
        }
        let missing = |name: &str| Err(Failure::NoValue(format!("there is no key {name}")));
        let root = names.next()?;
        let mut found = if root == "steps" {
            let step = names.next()?;
            match self.output(step) {
                Some(output) => match self.read(output) {
                    Ok(value) => value,
                    Err(failure) => return Some(Err(failure)),
                },
                None => return Some(missing(step)),
            }
        } else {
            match self.variable(root)? {
                Ok(value) => value,
                Err(failure) => return Some(Err(failure)),
            }
        };
        for name in names {
            match found {
                Value::Object(mut entries) => match entries.remove(name) {
                    Some(inner) => found = inner,
                    None => return Some(missing(name)),
                },
                // What is no object is left to the machinery, for its words about it.
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => return None,
            }
        }
        Some(Ok(found))
    }

    fn output(&self, result: &str) -> Option<&Json> {
        let step = self.state.definition()?.by_result(result)?;
        self.state.outputs.get(&self.state.instance(step, self.rounds)?)
    }

    fn variable(&self, name: &str) -> Option<Result<Value, Failure>> {
        let state = self.state;
        match name {
            "input" => Some(self.read(&state.input)),
            "now" => Some(Ok(micros(self.now))),
            "saga" => {
                let stream = state.stream.as_ref()?;
                let tenant = stream.tenant_id().map(|tenant| tenant.as_str().to_owned());
                Some(Ok(json!({
                    "id": stream.name(), "tenant": tenant, "started_at": micros(state.started_at),
                    "spent": state.spent.0,
                })))
            }
            "index" => self.rounds.last().map(|round| Ok(Value::from(round.index))),
            _ => {
                let definition = state.definition()?;
                let named = |round: &&Round| {
                    let kind = definition.step(round.step).map(|step| &step.kind);
                    matches!(kind, Some(Kind::Each { variable, .. }) if variable == name)
                };
                self.rounds.iter().rev().find(named).map(|round| self.read(&round.item))
            }
        }
    }

    /// A template's value.
    pub(super) fn render(&self, node: &Node) -> Result<Value, Fault> {
        template::render(node, &mut |text| self.evaluate(text)).map_err(|error| expression(&error))
    }

    fn optional(&self, node: Option<&Node>) -> Result<Option<Json>, Fault> {
        node.map(|node| self.render(node).map(|value| compact(&value))).transpose()
    }

    /// A template's value as a text.
    pub(super) fn text(&self, node: &Node) -> Result<String, Fault> {
        match self.render(node)? {
            Value::String(text) => Ok(text),
            value @ (Value::Bool(_) | Value::Number(_)) => Ok(value.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => {
                Err((EXPRESSION.to_owned(), "there must be a text".to_owned()))
            }
        }
    }

    fn url(&self, node: &Node) -> Result<String, Fault> {
        let Content::Text(text) = &node.content else { return self.text(node) };
        template::render_url(text, &mut |text| self.evaluate(text)).map_err(|error| expression(&error))
    }

    /// Whether a condition holds.
    pub(super) fn holds(&self, node: &Node) -> Result<bool, Fault> {
        let value = match &node.content {
            Content::Text(text) => self.evaluate(bare(text)).map_err(|failure| expression(&failure))?,
            Content::Null
            | Content::Bool(_)
            | Content::Int(_)
            | Content::Float(_)
            | Content::List(_)
            | Content::Map(_) => node.to_json(),
        };
        value.as_bool().ok_or_else(|| (EXPRESSION.to_owned(), "a condition is neither true nor false".to_owned()))
    }

    /// The items of an `each`.
    pub(super) fn items(&self, node: &Node) -> Result<Vec<Value>, Fault> {
        let value = match &node.content {
            Content::Text(text) => self.evaluate(bare(text)).map_err(|failure| expression(&failure))?,
            Content::Null
            | Content::Bool(_)
            | Content::Int(_)
            | Content::Float(_)
            | Content::List(_)
            | Content::Map(_) => self.render(node)?,
        };
        match value {
            Value::Array(items) => Ok(items),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
                Err((EXPRESSION.to_owned(), "items must be a list".to_owned()))
            }
        }
    }

    /// The request of an action, recorded, and the most that it may cost.
    pub(super) fn request(&self, kind: &Kind, key: &StepPath, attempt: u32) -> Result<(Json, NanoUsd), Fault> {
        let (request, cost) = self.asked(kind, key, attempt)?;
        let request = request.write();
        if request.as_str().len() > REQUEST_BYTES_MAX {
            let said = format!("a request has at most {REQUEST_BYTES_MAX} bytes");
            return Err(("request_too_large".to_owned(), said));
        }
        Ok((request, cost))
    }

    fn asked(&self, kind: &Kind, key: &StepPath, attempt: u32) -> Result<(Request, NanoUsd), Fault> {
        let nothing = NanoUsd(0);
        match kind {
            Kind::Model { model, messages, max_tokens, temperature, tier } => {
                self.model(model, messages, *max_tokens, temperature.as_ref(), tier)
            }
            Kind::Http { method, url, headers, body, ok } => {
                let request = Request::Http {
                    method: method.clone(),
                    url: self.url(url)?,
                    headers: self.headers(headers.as_ref())?,
                    body: self.optional(body.as_ref())?,
                    ok: ok.clone(),
                };
                Ok((request, nothing))
            }
            Kind::Append { stream, event, payload } => {
                let name = self.text(stream)?;
                let tenant = self.tenant()?;
                let stream = StreamId::new(&format!("app/{tenant}/{name}")).map_err(|error| expression(&error))?;
                let payload = compact(&self.render(payload)?);
                Ok((Request::Append { stream, event: event.clone(), payload }, nothing))
            }
            Kind::Notify { url, body } => {
                Ok((Request::Notify { url: self.url(url)?, body: self.optional(body.as_ref())? }, nothing))
            }
            Kind::Approve { title, assignees, .. } => {
                let assignees = match assignees {
                    Some(node) => self.render(node)?,
                    None => Value::Array(Vec::new()),
                };
                let names = assignees
                    .as_array()
                    .map(|names| names.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>());
                let names = names.flatten();
                let names = names.ok_or_else(|| (EXPRESSION.to_owned(), "assignees must be texts".to_owned()))?;
                Ok((Request::Approve { title: self.text(title)?, assignees: names }, nothing))
            }
            Kind::Saga { definition, version, input, budget } => {
                let input = self.optional(input.as_ref())?.unwrap_or_else(|| "{}".into());
                let own = self.state.stream.as_ref().map(|stream| stream.as_str()).unwrap_or_default();
                let parts = [own.as_bytes(), key.as_str().as_bytes(), &attempt.to_le_bytes()[..]];
                let name = format!("saga/{}/child-{:016x}", self.tenant()?, hash(parts));
                let stream = StreamId::new(&name).map_err(|error| expression(&error))?;
                let (definition, version) = (definition.clone(), *version);
                // A saga that undoes something spends nothing: its money would be beyond the budget.
                let budget = if compensated_step(key).is_some() { NanoUsd(0) } else { *budget };
                Ok((Request::Saga { definition, version, input, budget, stream }, budget))
            }
            Kind::Wait(_)
            | Kind::Signal { .. }
            | Kind::Parallel { .. }
            | Kind::Choice { .. }
            | Kind::Each { .. }
            | Kind::Set { .. }
            | Kind::Fail { .. } => Err((EXPRESSION.to_owned(), "it asks nothing of the world".to_owned())),
        }
    }

    fn tenant(&self) -> Result<events_model::TenantId, Fault> {
        let tenant = self.state.stream.as_ref().and_then(StreamId::tenant_id);
        tenant.ok_or_else(|| (EXPRESSION.to_owned(), "the saga has no tenant".to_owned()))
    }

    fn headers(&self, node: Option<&Node>) -> Result<BTreeMap<String, String>, Fault> {
        let mut headers = BTreeMap::new();
        if let Some(Node { content: Content::Map(entries), .. }) = node {
            for (key, node) in entries {
                let value = self.text(node)?;
                if value.chars().any(|letter| letter.is_control() && letter != '\t') {
                    let said = format!("the header {} has a control character", key.text);
                    return Err((EXPRESSION.to_owned(), said));
                }
                headers.insert(key.text.clone(), value);
            }
        }
        Ok(headers)
    }

    fn model(
        &self,
        model: &str,
        messages: &Node,
        max_tokens: u32,
        temperature: Option<&Node>,
        tier: &str,
    ) -> Result<(Request, NanoUsd), Fault> {
        let mut tier = tier.to_owned();
        let (mut most, mut kept) = (max_tokens, None);
        let level = usize::try_from(self.state.level).unwrap_or(usize::MAX);
        for level in self.state.definition().iter().flat_map(|read| read.degrade.iter().take(level)) {
            tier = level.tier.clone().unwrap_or(tier);
            most = most.min(level.max_tokens.unwrap_or(most));
            kept = level.context_messages.or(kept);
        }
        let Value::Array(mut messages) = self.render(messages)? else {
            return Err((EXPRESSION.to_owned(), "messages must be a list".to_owned()));
        };
        if let Some(kept) = kept {
            shorten(&mut messages, usize::try_from(kept).unwrap_or(usize::MAX));
        }
        let count = u64::try_from(messages.len()).unwrap_or(u64::MAX);
        let messages = compact(&Value::Array(messages));
        // No tokenizer makes more tokens than there are bytes.
        let bytes = u64::try_from(messages.as_str().len()).unwrap_or(u64::MAX);
        let prompt = Tokens(bytes.saturating_add(count.saturating_mul(TOKENS_PER_MESSAGE)));
        let prices = &self.state.prices;
        let of = |tier: &str| prices.iter().find(|price| price.model == model && price.tier == tier);
        let Some(rate) = of(&tier).or_else(|| of("")) else {
            return Err(("no_price".to_owned(), format!("{model} has no price")));
        };
        let cost =
            price::line(prompt, rate.input_per_mtok).plus(price::line(Tokens(most.into()), rate.output_per_mtok));
        let temperature = self.optional(temperature)?;
        Ok((Request::Model { model: model.to_owned(), messages, max_tokens: most, temperature, tier }, cost))
    }

    /// When a wait is over.
    pub(super) fn until(&self, node: &Node) -> Result<TimestampUs, Fault> {
        let value = self.render(node)?;
        let time = match &value {
            Value::Number(micros) => micros.as_u64(),
            Value::String(text) => chrono::DateTime::parse_from_rfc3339(text)
                .ok()
                .and_then(|time| u64::try_from(time.timestamp_micros()).ok()),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        };
        let fault = || (EXPRESSION.to_owned(), "until must be RFC 3339 or UTC microseconds".to_owned());
        time.map(TimestampUs).ok_or_else(fault)
    }
}

/// What reading a text takes, units.
fn units(text: &str) -> u64 {
    let bytes = u64::try_from(text.len()).unwrap_or(u64::MAX);
    bytes.checked_div(BYTES_PER_UNIT).unwrap_or(bytes).saturating_add(1)
}

/// Keeps the last messages, and those of the system.
fn shorten(messages: &mut Vec<Value>, kept: usize) {
    let first = messages.len().saturating_sub(kept);
    let mut index = 0_usize;
    messages.retain(|message| {
        let system = message.get("role").and_then(Value::as_str) == Some("system");
        let keep = system || index >= first;
        index = index.saturating_add(1);
        keep
    });
}

fn micros(at: TimestampUs) -> Value {
    Value::from(i64::try_from(at.0).unwrap_or(i64::MAX))
}

fn expression(error: &impl ToString) -> Fault {
    (EXPRESSION.to_owned(), cut(&error.to_string()))
}

/// A text for the log, of bounded length.
pub(super) fn cut(text: &str) -> String {
    let mut end = text.len().min(MESSAGE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    text.get(..end).unwrap_or_default().to_owned()
}
