//! The meter of one evaluation, and values on their way in and out of it.
//!
//! Invariants: what is spent never comes back; a loop over a map goes over its keys in ascending order; nothing of a hash
//! map's order leaves. The counter is an atomic because `cel` wants its functions `Sync`: it is born and dies with one
//! evaluation, in one thread.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use cel::{
    ExecutionError, FunctionContext,
    common::{
        types::{CelInt, CelList, CelMap, CelString},
        value::{CowVal, Val},
    },
    objects::{Key, Map},
};
use serde_json::Value;

use super::expression::{Failure, UNITS_MAX};

/// Bytes of text that cost a unit.
pub(super) const BYTES_PER_UNIT: u64 = 8;

/// What one evaluation may still spend.
pub(super) struct Meter {
    left: AtomicU64,
}

impl Meter {
    pub(super) fn new() -> Self {
        Self { left: AtomicU64::new(UNITS_MAX) }
    }

    /// What has been spent.
    pub(super) fn used(&self) -> u64 {
        UNITS_MAX.saturating_sub(self.left.load(Ordering::Relaxed))
    }

    pub(super) fn is_spent(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }

    fn spend(&self, units: u64) -> Result<(), ExecutionError> {
        let left = self.left.load(Ordering::Relaxed).saturating_sub(units);
        self.left.store(left, Ordering::Relaxed);
        if left == 0 { Err(ExecutionError::function_error("limit", Failure::TooMuch)) } else { Ok(()) }
    }

    /// Charges a value by its size and hands it on.
    pub(super) fn charge<'c, 'v>(
        &self,
        context: &mut FunctionContext<'c, 'v>,
    ) -> Result<CowVal<'c, 'v>, ExecutionError> {
        let value = context.args.pop().ok_or_else(ExecutionError::missing_argument_or_target)?;
        self.spend(measure(&*value, self.left.load(Ordering::Relaxed)))?;
        Ok(value)
    }

    /// Charges what a loop runs over: its size, for the items are copied, and every round by the size of its body.
    pub(super) fn range<'c, 'v>(
        &self,
        context: &mut FunctionContext<'c, 'v>,
    ) -> Result<CowVal<'c, 'v>, ExecutionError> {
        let missing = ExecutionError::missing_argument_or_target;
        let weight = context.args.pop().ok_or_else(missing)?;
        let weight = weight.downcast_ref::<CelInt>().and_then(|weight| u64::try_from(*weight.inner()).ok());
        let range = context.args.pop().ok_or_else(missing)?;
        self.spend(measure(&*range, self.left.load(Ordering::Relaxed)))?;
        let rounds = |len: usize| u64::try_from(len).unwrap_or(u64::MAX).saturating_mul(weight.unwrap_or(1));
        if let Some(list) = range.downcast_ref::<CelList<'_>>() {
            self.spend(rounds(list.inner().len()))?;
            return Ok(range);
        }
        let Some(map) = range.downcast_ref::<CelMap<'_>>() else {
            return Err(context.error("a loop runs over a list or a map"));
        };
        self.spend(rounds(map.inner().len()))?;
        let mut keys: Vec<String> = Vec::with_capacity(map.inner().len());
        for key in map.inner().keys() {
            match key.inner().downcast_ref::<CelString<'_>>() {
                Some(key) => keys.push(key.inner().to_owned()),
                None => return Err(context.error("a loop runs over maps whose keys are texts")),
            }
        }
        keys.sort_unstable();
        let keys: Vec<Box<dyn Val + 'v>> =
            keys.into_iter().map(|key| Box::new(CelString::from(key)) as Box<dyn Val + 'v>).collect();
        Ok(CowVal::owned(CelList::from(keys)))
    }
}

/// The size of a value in units; counting ends where the budget does.
fn measure(value: &dyn Val, most: u64) -> u64 {
    if let Some(text) = value.downcast_ref::<CelString<'_>>() {
        let bytes = u64::try_from(text.inner().len()).unwrap_or(u64::MAX);
        return bytes.checked_div(BYTES_PER_UNIT).unwrap_or(bytes).saturating_add(1);
    }
    let mut sum = 1_u64;
    if let Some(list) = value.downcast_ref::<CelList<'_>>() {
        for element in list.inner() {
            sum = sum.saturating_add(measure(element.as_ref(), most.saturating_sub(sum)));
            if sum >= most {
                break;
            }
        }
    } else if let Some(map) = value.downcast_ref::<CelMap<'_>>() {
        // The sum does not depend on the order; where it is cut, the evaluation fails either way.
        for (key, value) in map.inner() {
            let left = most.saturating_sub(sum);
            sum = sum.saturating_add(measure(key.inner(), left)).saturating_add(measure(value.as_ref(), left));
            if sum >= most {
                break;
            }
        }
    }
    sum
}

pub(super) fn from_json(value: Value) -> cel::Value {
    match value {
        Value::Null => cel::Value::Null,
        Value::Bool(value) => cel::Value::Bool(value),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => cel::Value::Int(whole),
            None => cel::Value::Float(number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => cel::Value::String(Arc::new(text)),
        Value::Array(values) => cel::Value::List(Arc::new(values.into_iter().map(from_json).collect())),
        Value::Object(entries) => {
            let entry = |(key, value)| (Key::String(Arc::new(key)), from_json(value));
            cel::Value::Map(Map { map: Arc::new(entries.into_iter().map(entry).collect()) })
        }
    }
}

pub(super) fn to_json(value: cel::Value) -> Result<Value, Failure> {
    match value {
        cel::Value::Null => Ok(Value::Null),
        cel::Value::Bool(value) => Ok(Value::Bool(value)),
        cel::Value::Int(value) => Ok(Value::from(value)),
        cel::Value::UInt(value) => i64::try_from(value).map(Value::from).map_err(|_| Failure::NotJson),
        cel::Value::Float(value) => serde_json::Number::from_f64(value).map(Value::Number).ok_or(Failure::NotJson),
        cel::Value::String(text) => Ok(Value::String(text.as_str().to_owned())),
        cel::Value::List(values) => values.iter().cloned().map(to_json).collect::<Result<_, _>>().map(Value::Array),
        cel::Value::Map(entries) => {
            let entry = |(key, value): (&Key, &cel::Value)| match key {
                Key::String(key) => Ok((key.as_str().to_owned(), to_json(value.clone())?)),
                Key::Int(_) | Key::Uint(_) | Key::Bool(_) => Err(Failure::NotJson),
            };
            // The order of this iteration is the hash map's; a `serde_json` map is sorted.
            entries.map.iter().map(entry).collect::<Result<_, _>>().map(Value::Object)
        }
        cel::Value::Function(..) | cel::Value::Bytes(_) | cel::Value::Opaque(_) | cel::Value::Struct(_) => {
            Err(Failure::NotJson)
        }
    }
}
