//! Stored forms of sagas. One table per direction-free mapping: the macro makes both directions of it.

use proto::log::v1 as pb;

use super::{SCHEMA_VERSION, decode, encode, unknown};
use crate::{
    envelope::{Payload, PayloadView, Stored},
    id::StreamId,
    saga::{Cause, Command, Event, Json, Limit, Parent, SagaPrice, Start, StepPath},
    unit::{NanoUsd, TimestampUs},
    wire::DecodeError,
};

/// A field's two forms.
trait Field: Sized {
    type Stored;
    fn store(&self) -> Self::Stored;
    fn load(stored: Self::Stored) -> Result<Self, DecodeError>;
}

macro_rules! plain {
    ($($type:ty),*) => {$(
        impl Field for $type {
            type Stored = Self;
            fn store(&self) -> Self {
                self.clone()
            }
            fn load(stored: Self) -> Result<Self, DecodeError> {
                Ok(stored)
            }
        }
    )*};
}
plain!(u32, u64, bool, String, Vec<u32>);

macro_rules! wrapped {
    ($($type:ident($inner:ty) $store:expr, $load:expr;)*) => {$(
        impl Field for $type {
            type Stored = $inner;
            fn store(&self) -> $inner {
                $store(self)
            }
            fn load(stored: $inner) -> Result<Self, DecodeError> {
                Ok($load(stored))
            }
        }
    )*};
}
wrapped! {
    TimestampUs(u64) |at: &TimestampUs| at.0, TimestampUs;
    NanoUsd(i64) |money: &NanoUsd| money.0, NanoUsd;
    StepPath(String) |path: &StepPath| path.as_str().to_owned(), StepPath::from;
    Json(String) |json: &Json| json.as_str().to_owned(), Json::from;
}

impl Field for StreamId {
    type Stored = String;
    fn store(&self) -> String {
        self.as_str().to_owned()
    }
    fn load(stored: String) -> Result<Self, DecodeError> {
        Self::new(&stored).map_err(|_| DecodeError::Value { what: "a saga's stream" })
    }
}

impl<T: Field> Field for Option<T> {
    type Stored = Option<T::Stored>;
    fn store(&self) -> Self::Stored {
        self.as_ref().map(Field::store)
    }
    fn load(stored: Self::Stored) -> Result<Self, DecodeError> {
        stored.map(T::load).transpose()
    }
}

impl Field for Vec<StepPath> {
    type Stored = Vec<String>;
    fn store(&self) -> Self::Stored {
        self.iter().map(Field::store).collect()
    }
    fn load(stored: Self::Stored) -> Result<Self, DecodeError> {
        stored.into_iter().map(StepPath::load).collect()
    }
}

impl Field for Vec<SagaPrice> {
    type Stored = Vec<pb::SagaPrice>;
    fn store(&self) -> Self::Stored {
        let one = |price: &SagaPrice| pb::SagaPrice {
            model: price.model.clone(),
            tier: price.tier.clone(),
            input_per_mtok_nano_usd: price.input_per_mtok.0,
            output_per_mtok_nano_usd: price.output_per_mtok.0,
        };
        self.iter().map(one).collect()
    }
    fn load(stored: Self::Stored) -> Result<Self, DecodeError> {
        let one = |price: pb::SagaPrice| SagaPrice {
            model: price.model,
            tier: price.tier,
            input_per_mtok: NanoUsd(price.input_per_mtok_nano_usd),
            output_per_mtok: NanoUsd(price.output_per_mtok_nano_usd),
        };
        Ok(stored.into_iter().map(one).collect())
    }
}

impl Field for Parent {
    type Stored = pb::SagaParent;
    fn store(&self) -> pb::SagaParent {
        pb::SagaParent {
            stream: self.stream.store(),
            path: self.path.store(),
            attempt: self.attempt,
            depth: self.depth,
        }
    }
    fn load(stored: pb::SagaParent) -> Result<Self, DecodeError> {
        Ok(Self {
            stream: StreamId::load(stored.stream)?,
            path: stored.path.into(),
            attempt: stored.attempt,
            depth: stored.depth,
        })
    }
}

impl Field for Cause {
    type Stored = i32;
    fn store(&self) -> i32 {
        let stored = match self {
            Self::StepFailed => pb::SagaCause::StepFailed,
            Self::Limit => pb::SagaCause::Limit,
            Self::Cancelled => pb::SagaCause::Cancelled,
            Self::Operator => pb::SagaCause::Operator,
        };
        stored.into()
    }
    fn load(stored: i32) -> Result<Self, DecodeError> {
        match pb::SagaCause::try_from(stored) {
            Ok(pb::SagaCause::StepFailed) => Ok(Self::StepFailed),
            Ok(pb::SagaCause::Limit) => Ok(Self::Limit),
            Ok(pb::SagaCause::Cancelled) => Ok(Self::Cancelled),
            Ok(pb::SagaCause::Operator) => Ok(Self::Operator),
            Ok(pb::SagaCause::Unspecified) | Err(_) => Err(DecodeError::Value { what: "a saga's cause" }),
        }
    }
}

impl Field for Limit {
    type Stored = i32;
    fn store(&self) -> i32 {
        let stored = match self {
            Self::Steps => pb::SagaLimit::Steps,
            Self::WallTime => pb::SagaLimit::WallTime,
            Self::Spend => pb::SagaLimit::Spend,
            Self::Repeats => pb::SagaLimit::Repeats,
            Self::NoProgress => pb::SagaLimit::NoProgress,
            Self::OutputBytes => pb::SagaLimit::OutputBytes,
        };
        stored.into()
    }
    fn load(stored: i32) -> Result<Self, DecodeError> {
        match pb::SagaLimit::try_from(stored) {
            Ok(pb::SagaLimit::Steps) => Ok(Self::Steps),
            Ok(pb::SagaLimit::WallTime) => Ok(Self::WallTime),
            Ok(pb::SagaLimit::Spend) => Ok(Self::Spend),
            Ok(pb::SagaLimit::Repeats) => Ok(Self::Repeats),
            Ok(pb::SagaLimit::NoProgress) => Ok(Self::NoProgress),
            Ok(pb::SagaLimit::OutputBytes) => Ok(Self::OutputBytes),
            Ok(pb::SagaLimit::Unspecified) | Err(_) => Err(DecodeError::Value { what: "a saga's limit" }),
        }
    }
}

/// Both directions: `Variant { field: stored_field, ... } = Message`.
macro_rules! stored {
    ($type:ident $(, boxed $boxed:ident($inner:ident { $($in_field:ident: $in_stored:ident),* }) = $in_message:ident)? ;
     $($variant:ident { $($field:ident: $stored:ident),* } = $message:ident;)*) => {
        impl Stored for $type {
            fn to_payload(&self) -> Payload {
                match self {
                    $(Self::$boxed(inner) => encode(
                        concat!("freehold.log.v1.", stringify!($in_message)),
                        &pb::$in_message { $($in_stored: Field::store(&inner.$in_field)),* },
                    ),)?
                    $(Self::$variant { $($field),* } => encode(
                        concat!("freehold.log.v1.", stringify!($message)),
                        &pb::$message { $($stored: Field::store($field)),* },
                    ),)*
                }
            }

            fn from_payload(payload: PayloadView<'_>) -> Result<Self, DecodeError> {
                if payload.schema_version != SCHEMA_VERSION {
                    return Err(unknown(payload.kind, payload.schema_version));
                }
                $(if payload.kind == concat!("freehold.log.v1.", stringify!($in_message)) {
                    let message: pb::$in_message =
                        decode(concat!("freehold.log.v1.", stringify!($in_message)), payload.bytes)?;
                    return Ok(Self::$boxed(Box::new($inner { $($in_field: Field::load(message.$in_stored)?),* })));
                })?
                $(if payload.kind == concat!("freehold.log.v1.", stringify!($message)) {
                    let _message: pb::$message =
                        decode(concat!("freehold.log.v1.", stringify!($message)), payload.bytes)?;
                    return Ok(Self::$variant { $($field: Field::load(_message.$stored)?),* });
                })*
                Err(unknown(payload.kind, payload.schema_version))
            }
        }
    };
}

stored! {
    Command, boxed Start(Start {
        stream: stream, definition: definition, input: input, budget: budget_nano_usd, deadline: deadline_us,
        parent: parent, prices: prices
    }) = StartSaga;
    Signal { name: name, payload: payload } = SignalSaga;
    Cancel { reason: reason } = CancelSaga;
    SucceedStep { path: path, attempt: attempt, output: output, cost: cost_nano_usd } = SucceedSagaStep;
    FailStep { path: path, attempt: attempt, kind: kind, message: message, cost: cost_nano_usd } = FailSagaStep;
    Wake {} = WakeSaga;
    RetryStep { path: path } = RetrySagaStep;
    SkipStep { path: path, reason: reason } = SkipSagaStep;
    Compensate { reason: reason } = CompensateSaga;
    Migrate { definition: definition } = MigrateSaga;
}

stored! {
    Event;
    Started {
        stream: stream, definition: definition, input: input, budget: budget_nano_usd, deadline: deadline_us,
        seed: seed, parent: parent, prices: prices, at: at_us
    } = SagaStarted;
    StepStarted {
        path: path, attempt: attempt, request: request, reserved: reserved_nano_usd, deadline: deadline_us, at: at_us
    } = SagaStepStarted;
    StepHeld { path: path, attempt: attempt, at: at_us } = SagaStepHeld;
    StepSucceeded { path: path, attempt: attempt, output: output, cost: cost_nano_usd, at: at_us } = SagaStepSucceeded;
    StepSkipped { path: path } = SagaStepSkipped;
    AttemptFailed {
        path: path, attempt: attempt, kind: kind, message: message, cost: cost_nano_usd, retry_at: retry_at_us,
        at: at_us
    } = SagaAttemptFailed;
    StepFailed {
        path: path, attempt: attempt, kind: kind, message: message, cost: cost_nano_usd, at: at_us
    } = SagaStepFailed;
    WaitStarted { path: path, signal: signal, until: until_us, at: at_us } = SagaWaitStarted;
    WaitEnded { path: path, at: at_us } = SagaWaitEnded;
    SignalReceived { name: name, payload: payload, at: at_us } = SagaSignalReceived;
    SignalConsumed { path: path, name: name, at: at_us } = SagaSignalConsumed;
    BranchesStarted { path: path, branches: branches } = SagaBranchesStarted;
    ItemsFound { path: path, items: items } = SagaItemsFound;
    ItemStarted { path: path, index: index } = SagaItemStarted;
    BranchEnded { path: path } = SagaBranchEnded;
    Degraded { level: level, reason: reason, at: at_us } = SagaDegraded;
    LoopCut { reason: reason, at: at_us } = SagaLoopCut;
    UnwindingStarted {
        cause: cause, path: path, kind: kind, message: message, at: at_us
    } = SagaUnwindingStarted;
    CompensationStarted {
        path: path, attempt: attempt, request: request, deadline: deadline_us, at: at_us
    } = SagaCompensationStarted;
    StepCompensated { path: path, attempt: attempt, at: at_us } = SagaStepCompensated;
    CompensationFailed {
        path: path, attempt: attempt, kind: kind, message: message, at: at_us
    } = SagaCompensationFailed;
    CompensationSkipped { path: path, reason: reason, at: at_us } = SagaCompensationSkipped;
    OperatorNeeded {
        path: path, kind: kind, message: message, compensated: compensated, remaining: remaining, at: at_us
    } = SagaOperatorNeeded;
    StepRetried { path: path, at: at_us } = SagaStepRetried;
    OutcomeIgnored {
        path: path, attempt: attempt, succeeded: succeeded, detail: detail, output: output, at: at_us
    } = SagaOutcomeIgnored;
    ChildCancelled { path: path, child: child, reason: reason, at: at_us } = SagaChildCancelled;
    Completed { output: output, at: at_us } = SagaCompleted;
    Failed { kind: kind, message: message, at: at_us } = SagaFailed;
    Unwound { kind: kind, message: message, at: at_us } = SagaUnwound;
    Cancelled { reason: reason, at: at_us } = SagaCancelled;
    Migrated { definition: definition, at: at_us } = SagaMigrated;
}
