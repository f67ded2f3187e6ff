//! Reads steps: one list of all steps and one of all blocks, in the order of the text.

use events_model::{DurationUs, NanoUsd};

use super::{
    definition::{
        ATTEMPTS_MAX, BRANCHES_LEN_MAX, BUDGET_MAX, BlockIndex, Compensation, ITEMS_IN_PARALLEL_MAX, ITEMS_LEN_MAX,
        Join, Kind, OnTimeout, Position, Retry, STEP_DEPTH_MAX, STEPS_LEN_MAX, Step, StepIndex, TIMEOUT_MAX,
        TOKENS_MAX, Until, WAIT_MAX,
    },
    parse::TEXT_BYTES_MAX,
    reader::Reader,
    tree::{Content, Node},
};

const KINDS: &[&str] = &[
    "model", "http", "append", "notify", "approve", "wait", "signal", "saga", "parallel", "choice", "each", "set",
    "fail",
];
const STEP_KEYS: &[&str] = &[
    "id",
    "name",
    "if",
    "timeout",
    "retry",
    "compensate",
    "result",
    "model",
    "http",
    "append",
    "notify",
    "approve",
    "wait",
    "signal",
    "saga",
    "parallel",
    "choice",
    "each",
    "set",
    "fail",
];
const COMPENSATION_KEYS: &[&str] = &["timeout", "retry", "http", "append", "notify", "saga"];
const ON_TIMEOUT: &[(&str, OnTimeout)] = &[("fail", OnTimeout::Fail), ("continue", OnTimeout::Continue)];
const METHODS: &[(&str, &str)] =
    &[("GET", "GET"), ("POST", "POST"), ("PUT", "PUT"), ("PATCH", "PATCH"), ("DELETE", "DELETE")];
/// Longest name of a header, bytes.
const HEADER_BYTES_MAX: usize = 128;
/// Answers that count as success where a step does not say.
const OK_DEFAULT: (u16, u16) = (200, 299);

/// What has been read so far.
#[derive(Debug, Default)]
pub(super) struct Steps {
    pub(super) steps: Vec<Step>,
    pub(super) blocks: Vec<Vec<StepIndex>>,
}

impl Steps {
    /// Reads a list of steps.
    pub(super) fn block(
        &mut self,
        node: &Node,
        parent: Option<(StepIndex, u32)>,
        depth: usize,
        reader: &mut Reader,
    ) -> BlockIndex {
        let block = self.blocks.len();
        self.blocks.push(Vec::new());
        let index = u32::try_from(block).unwrap_or(u32::MAX);
        if depth > STEP_DEPTH_MAX {
            reader.find(node.at, format!("steps nest at most {STEP_DEPTH_MAX} deep"));
            return index;
        }
        let nodes = reader.list(node, "steps", STEPS_LEN_MAX);
        if nodes.is_empty() {
            reader.find(node.at, "there must be at least one step");
        }
        for node in nodes {
            if self.steps.len() >= STEPS_LEN_MAX {
                reader.find(node.at, format!("a definition has at most {STEPS_LEN_MAX} steps"));
                break;
            }
            let step = self.step(node, parent, depth, reader);
            if let Some(block) = self.blocks.get_mut(block) {
                block.push(step);
            }
        }
        index
    }

    fn step(&mut self, node: &Node, parent: Option<(StepIndex, u32)>, depth: usize, reader: &mut Reader) -> StepIndex {
        reader.map(node, "a step", STEP_KEYS);
        let index = u32::try_from(self.steps.len()).unwrap_or(u32::MAX);
        let id = reader.required(node, "a step", "id").map(|node| reader.name(node, "id")).unwrap_or_default();
        let result = node.get("result").map(|node| reader.name(node, "result"));
        let compensate = node.get("compensate").map(|node| self.compensation(node, reader));
        self.steps.push(Step {
            name: node.get("name").map(|node| reader.text(node, "name", TEXT_BYTES_MAX)).unwrap_or_default(),
            condition: node.get("if").cloned(),
            timeout: node.get("timeout").map(|node| reader.duration(node, "timeout", WAIT_MAX)),
            retry: node.get("retry").map_or(Retry::NONE, |node| retry(node, Retry::PATIENT, reader)),
            compensate,
            result: result.unwrap_or_else(|| id.clone()),
            id,
            kind: Kind::Set { values: Node::default() },
            parent,
            at: Position(node.at),
        });
        let kind = self.kind(node, "a step", KINDS, index, depth, reader);
        if let Some(step) = usize::try_from(index).ok().and_then(|index| self.steps.get_mut(index)) {
            let bounded =
                matches!(kind, Kind::Model { .. } | Kind::Http { .. } | Kind::Append { .. } | Kind::Notify { .. });
            if bounded && step.timeout.is_some_and(|timeout| timeout > TIMEOUT_MAX) {
                reader.find(node.at, "a step that waits for a machine has a timeout of at most 3600s");
            }
            if let (Kind::Approve { .. }, Some(found)) = (&kind, node.get("timeout")) {
                reader.find(found.at, "the timeout of an approve stands within it");
            }
            if !kind.is_action() {
                for key in ["timeout", "retry", "compensate"] {
                    if let Some(found) = node.get(key) {
                        reader.find(found.at, format!("{} has no {key}", kind.name()));
                    }
                }
            }
            step.kind = kind;
        }
        index
    }

    fn compensation(&mut self, node: &Node, reader: &mut Reader) -> Compensation {
        reader.map(node, "compensate", COMPENSATION_KEYS);
        let kinds = ["http", "append", "notify", "saga"];
        Compensation {
            timeout: node.get("timeout").map(|found| {
                let most = if node.get("saga").is_some() { WAIT_MAX } else { TIMEOUT_MAX };
                reader.duration(found, "timeout", most)
            }),
            kind: self.kind(node, "compensate", &kinds, 0, 0, reader),
            retry: node.get("retry").map_or(Retry::PATIENT, |node| retry(node, Retry::PATIENT, reader)),
        }
    }

    fn kind(
        &mut self,
        node: &Node,
        what: &str,
        kinds: &[&str],
        index: StepIndex,
        depth: usize,
        reader: &mut Reader,
    ) -> Kind {
        let nothing = Kind::Set { values: Node::default() };
        let Content::Map(entries) = &node.content else { return nothing };
        let mut found = entries.iter().filter(|(key, _)| kinds.contains(&key.text.as_str()));
        let Some((key, value)) = found.next() else {
            reader.find(node.at, format!("{what} must do something: {}", kinds.join(", ")));
            return nothing;
        };
        if let Some((second, _)) = found.next() {
            reader.find(second.at, format!("{what} does one thing, but there are {} and {}", key.text, second.text));
        }
        let deeper = depth.saturating_add(1);
        match key.text.as_str() {
            "model" => model(value, reader),
            "http" => http(value, reader),
            "append" => append(value, reader),
            "notify" => {
                reader.map(value, "notify", &["url", "body"]);
                Kind::Notify { url: template(value, "notify", "url", reader), body: value.get("body").cloned() }
            }
            "approve" => approve(value, reader),
            "wait" => wait(value, reader),
            "signal" => signal(value, reader),
            "saga" => saga(value, reader),
            "parallel" => self.parallel(value, index, deeper, reader),
            "choice" => self.choice(value, index, deeper, reader),
            "each" => self.each(value, index, deeper, reader),
            "set" => {
                reader.map(value, "set", &[]);
                Kind::Set { values: value.clone() }
            }
            _ => {
                reader.map(value, "fail", &["kind", "message"]);
                let message = template(value, "fail", "message", reader);
                Kind::Fail { kind: template(value, "fail", "kind", reader), message }
            }
        }
    }

    fn parallel(&mut self, node: &Node, index: StepIndex, depth: usize, reader: &mut Reader) -> Kind {
        reader.map(node, "parallel", &["branches", "join"]);
        let words = [("all", Join::All), ("any", Join::Any)];
        let join = node.get("join").map_or(Join::All, |node| reader.word(node, "join", &words, Join::All));
        let mut branches = Vec::new();
        if let Some(found) = reader.required(node, "parallel", "branches") {
            for (branch, node) in (0_u32..).zip(reader.list(found, "branches", BRANCHES_LEN_MAX)) {
                branches.push(self.block(node, Some((index, branch)), depth, reader));
            }
            if branches.is_empty() {
                reader.find(found.at, "there must be at least one branch");
            }
        }
        Kind::Parallel { branches, join }
    }

    fn choice(&mut self, node: &Node, index: StepIndex, depth: usize, reader: &mut Reader) -> Kind {
        let mut cases = Vec::new();
        let nodes = reader.list(node, "choice", BRANCHES_LEN_MAX);
        for (branch, case) in (0_u32..).zip(nodes) {
            let last = u32::try_from(nodes.len()).is_ok_and(|len| branch.saturating_add(1) == len);
            let (condition, steps) = match case.get("otherwise") {
                Some(steps) => {
                    reader.map(case, "a case", &["otherwise"]);
                    if !last {
                        reader.find(case.at, "otherwise must be the last case");
                    }
                    (None, Some(steps))
                }
                None => {
                    reader.map(case, "a case", &["when", "steps"]);
                    (reader.required(case, "a case", "when").cloned(), reader.required(case, "a case", "steps"))
                }
            };
            if let Some(steps) = steps {
                cases.push((condition, self.block(steps, Some((index, branch)), depth, reader)));
            }
        }
        if nodes.is_empty() {
            reader.find(node.at, "there must be at least one case");
        }
        Kind::Choice { cases }
    }

    fn each(&mut self, node: &Node, index: StepIndex, depth: usize, reader: &mut Reader) -> Kind {
        reader.map(node, "each", &["items", "as", "at_most", "in_parallel", "steps"]);
        let at_most = node.get("at_most").map(|node| reader.whole(node, "at_most", 1, ITEMS_LEN_MAX));
        let in_parallel =
            node.get("in_parallel").map(|node| reader.whole(node, "in_parallel", 1, ITEMS_IN_PARALLEL_MAX));
        let variable = node.get("as").map(|node| reader.name(node, "as"));
        let items = template(node, "each", "items", reader);
        let steps = reader.required(node, "each", "steps").cloned().unwrap_or_default();
        Kind::Each {
            items,
            variable: variable.unwrap_or_else(|| "item".to_owned()),
            at_most: at_most.unwrap_or(ITEMS_LEN_MAX),
            in_parallel: in_parallel.unwrap_or(1),
            block: self.block(&steps, Some((index, 0)), depth, reader),
        }
    }
}

fn template(node: &Node, what: &str, key: &str, reader: &mut Reader) -> Node {
    reader.required(node, what, key).cloned().unwrap_or_default()
}

fn retry(node: &Node, default: Retry, reader: &mut Reader) -> Retry {
    let mut retry = default;
    for (key, node) in reader.map(node, "retry", &["attempts", "first", "max", "factor", "not"]) {
        match key.text.as_str() {
            "attempts" => retry.attempts = reader.whole(node, "attempts", 1, ATTEMPTS_MAX),
            "first" => retry.first = reader.duration(node, "first", WAIT_MAX),
            "max" => retry.max = reader.duration(node, "max", WAIT_MAX),
            "factor" => retry.factor = reader.whole(node, "factor", 1, 10),
            "not" => {
                retry.not =
                    reader.list(node, "not", BRANCHES_LEN_MAX).iter().map(|node| reader.name(node, "a kind")).collect();
            }
            _ => {}
        }
    }
    retry.max = retry.max.max(retry.first);
    retry
}

fn model(node: &Node, reader: &mut Reader) -> Kind {
    reader.map(node, "model", &["model", "messages", "max_tokens", "temperature", "tier"]);
    let name = reader.required(node, "model", "model").map(|node| reader.text(node, "model", 200));
    let max_tokens =
        reader.required(node, "model", "max_tokens").map(|node| reader.whole(node, "max_tokens", 1, TOKENS_MAX));
    let tier = node.get("tier").map(|node| reader.name(node, "tier"));
    let messages = template(node, "model", "messages", reader);
    if matches!(messages.content, Content::Bool(_) | Content::Int(_) | Content::Float(_)) {
        reader.find(messages.at, "messages must be a list");
    }
    Kind::Model {
        model: name.unwrap_or_default(),
        messages,
        max_tokens: max_tokens.unwrap_or(1),
        temperature: node.get("temperature").cloned(),
        tier: tier.unwrap_or_default(),
    }
}

fn http(node: &Node, reader: &mut Reader) -> Kind {
    reader.map(node, "http", &["method", "url", "headers", "body", "ok"]);
    let method = node.get("method").map_or("POST", |node| reader.word(node, "method", METHODS, "POST"));
    if let Some(headers) = node.get("headers") {
        for (key, _) in reader.map(headers, "headers", &[]) {
            // RFC 9110's token.
            let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            if key.text.is_empty() || key.text.len() > HEADER_BYTES_MAX || !key.text.bytes().all(is_token) {
                reader.find(key.at, format!("{} is no name of a header", super::reader::cut(&key.text)));
            }
        }
    }
    let mut ok = Vec::new();
    if let Some(node) = node.get("ok") {
        for node in reader.list(node, "ok", BRANCHES_LEN_MAX) {
            match range(node) {
                Some(range) => ok.push(range),
                None => reader.find(node.at, "ok is a list of statuses such as 200 or 200-299"),
            }
        }
    }
    if ok.is_empty() {
        ok.push(OK_DEFAULT);
    }
    let (headers, body) = (node.get("headers").cloned(), node.get("body").cloned());
    Kind::Http { method: method.to_owned(), url: template(node, "http", "url", reader), headers, body, ok }
}

fn range(node: &Node) -> Option<(u16, u16)> {
    let text = match &node.content {
        Content::Int(status) => status.to_string(),
        Content::Text(text) => text.clone(),
        Content::Null | Content::Bool(_) | Content::Float(_) | Content::List(_) | Content::Map(_) => return None,
    };
    let (first, last) = text.split_once('-').unwrap_or((&text, &text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    if 100 <= first && first <= last && last <= 599 { Some((first, last)) } else { None }
}

fn append(node: &Node, reader: &mut Reader) -> Kind {
    reader.map(node, "append", &["stream", "type", "payload"]);
    let event = reader.required(node, "append", "type").map(|node| reader.text(node, "type", 200));
    Kind::Append {
        stream: template(node, "append", "stream", reader),
        event: event.unwrap_or_default(),
        payload: template(node, "append", "payload", reader),
    }
}

fn approve(node: &Node, reader: &mut Reader) -> Kind {
    reader.map(node, "approve", &["title", "assignees", "timeout", "on_timeout"]);
    let (timeout, on_timeout) = timeout(node, "approve", reader);
    let assignees = node.get("assignees").cloned();
    Kind::Approve { title: template(node, "approve", "title", reader), assignees, timeout, on_timeout }
}

fn timeout(node: &Node, what: &str, reader: &mut Reader) -> (DurationUs, OnTimeout) {
    let timeout = reader.required(node, what, "timeout").map(|node| reader.duration(node, "timeout", WAIT_MAX));
    let on_timeout = node.get("on_timeout");
    let on_timeout =
        on_timeout.map_or(OnTimeout::Fail, |node| reader.word(node, "on_timeout", ON_TIMEOUT, OnTimeout::Fail));
    (timeout.unwrap_or(DurationUs::from_secs(1)), on_timeout)
}

fn wait(node: &Node, reader: &mut Reader) -> Kind {
    reader.map(node, "wait", &["for", "until"]);
    match (node.get("for"), node.get("until")) {
        (Some(span), None) => Kind::Wait(Until::For(reader.duration(span, "for", WAIT_MAX))),
        (None, Some(until)) => Kind::Wait(Until::At(until.clone())),
        (Some(_), Some(_)) | (None, None) => {
            reader.find(node.at, "wait needs either for or until");
            Kind::Wait(Until::For(DurationUs::from_secs(1)))
        }
    }
}

fn signal(node: &Node, reader: &mut Reader) -> Kind {
    reader.map(node, "signal", &["name", "timeout", "on_timeout"]);
    let name = reader.required(node, "signal", "name").map(|node| reader.name(node, "name"));
    let (timeout, on_timeout) = timeout(node, "signal", reader);
    Kind::Signal { name: name.unwrap_or_default(), timeout, on_timeout }
}

fn saga(node: &Node, reader: &mut Reader) -> Kind {
    reader.map(node, "saga", &["definition", "version", "input", "budget"]);
    let definition = reader.required(node, "saga", "definition").map(|node| reader.name(node, "definition"));
    let version = reader.required(node, "saga", "version").map(|node| reader.whole(node, "version", 1, u32::MAX));
    Kind::Saga {
        definition: definition.unwrap_or_default(),
        version: version.unwrap_or(1),
        input: node.get("input").cloned(),
        budget: node.get("budget").map_or(NanoUsd(0), |node| reader.money(node, "budget", BUDGET_MAX)),
    }
}
