//! What a start must bring: a definition that can be read, an input of the right types, prices, money and time.

use std::collections::BTreeSet;

use events_model::{
    StreamId,
    saga::{Event, Start},
};
use serde_json::Value;

use super::{
    Rejection,
    definition::{Definition, InputKind, Kind},
    parse,
    state::OUTPUT_BYTES_MAX,
};
use crate::Context;

/// Most sagas above one another.
pub const DEPTH_MAX: u32 = 8;

/// Decides on a start.
pub(super) fn start(start: &Start, context: &Context) -> Result<Event, Rejection> {
    let now = context.now;
    let definition = parse::load(&start.definition).map_err(|fault| Rejection::Definition(fault.message))?;
    if start.stream.kind() != "saga" {
        return Err(Rejection::Invalid("a saga has a stream of its own".to_owned()));
    }
    check_input(&definition, start)?;
    check_prices(&definition, start)?;
    if let Some(parent) = &start.parent
        && (parent.depth > DEPTH_MAX || parent.stream.tenant_id() != start.stream.tenant_id())
    {
        return Err(Rejection::Invalid(format!("sagas start one another at most {DEPTH_MAX} deep, in one tenant")));
    }
    let budget = match start.budget {
        Some(budget) if budget.0 < 0 || budget > definition.budget => {
            return Err(Rejection::Invalid(format!("the budget must be $0 to {}", definition.budget)));
        }
        Some(budget) => budget,
        None => definition.budget,
    };
    let latest = now.after(definition.limits.wall_time);
    let deadline = start.deadline.unwrap_or(latest).min(latest);
    if deadline <= now {
        return Err(Rejection::Invalid("the deadline is over".to_owned()));
    }
    Ok(Event::Started {
        stream: start.stream.clone(),
        definition: start.definition.clone(),
        input: start.input.clone(),
        budget: budget.min(definition.limits.spend),
        deadline,
        seed: context.inputs.seed,
        parent: start.parent.clone(),
        prices: start.prices.clone(),
        at: now,
    })
}

fn check_input(definition: &Definition, start: &Start) -> Result<(), Rejection> {
    let refuse = |message: String| Err(Rejection::Input(message));
    if start.input.as_str().len() > OUTPUT_BYTES_MAX {
        return refuse(format!("the input has at most {OUTPUT_BYTES_MAX} bytes"));
    }
    let Ok(Value::Object(input)) = serde_json::from_str::<Value>(start.input.as_str()) else {
        return refuse("the input must be a JSON object".to_owned());
    };
    if let Some(unknown) = input.keys().find(|key| !definition.input.contains_key(*key)) {
        return refuse(format!("there is no input {unknown}"));
    }
    for (name, wanted) in &definition.input {
        let found = input.get(name).filter(|value| !(wanted.optional && value.is_null()));
        let fits = found.is_none_or(|value| match wanted.kind {
            InputKind::Text => value.is_string(),
            InputKind::Int => value.is_i64(),
            InputKind::Number => value.is_number(),
            InputKind::Bool => value.is_boolean(),
            InputKind::List => value.is_array(),
            InputKind::Map => value.is_object(),
            InputKind::Any => true,
        });
        if !fits || (found.is_none() && !wanted.optional) {
            return refuse(format!("the input {name} is missing or of another type"));
        }
    }
    Ok(())
}

fn check_prices(definition: &Definition, start: &Start) -> Result<(), Rejection> {
    if start.prices.iter().any(|price| price.input_per_mtok.0 < 0 || price.output_per_mtok.0 < 0) {
        return Err(Rejection::Invalid("a price is below nothing".to_owned()));
    }
    let priced: BTreeSet<&str> = start.prices.iter().map(|price| price.model.as_str()).collect();
    match models(definition).into_iter().find(|model| !priced.contains(model)) {
        Some(model) => Err(Rejection::NoPrice(model.to_owned())),
        None => Ok(()),
    }
}

/// The models a definition names.
pub fn models(definition: &Definition) -> BTreeSet<&str> {
    let mut models = BTreeSet::new();
    for step in &definition.steps {
        if let Kind::Model { model, .. } = &step.kind {
            models.insert(model.as_str());
        }
    }
    models
}

/// The stream of a tenant's saga.
///
/// # Errors
/// The name is not 1 to 63 of `a-z`, `0-9` and `-`.
pub fn stream(tenant: &events_model::TenantId, name: &str) -> Result<StreamId, events_model::id::Error> {
    StreamId::new(&format!("saga/{tenant}/{name}"))
}
