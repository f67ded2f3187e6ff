//! Commands and events of the tenant actor, and the data they carry.
//!
//! Commands are imperative, events past tense; money is integer nano-USD. Derives of serde serve snapshots,
//! read models and JSON for people; the log's bytes are made in `persisted::v1`.

use serde::{Deserialize, Serialize};

use crate::{
    id::{KeyId, RequestId},
    unit::{DurationUs, NanoUsd, TimestampUs, Tokens},
};

/// Most budgets a plan brings: one per period.
pub const BUDGETS_PER_PLAN_MAX: usize = 4;
/// Longest free text in a command (names, labels, reasons, details), bytes.
pub const TEXT_BYTES_MAX: usize = 512;

/// A calendar period in UTC; weeks begin on Monday.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Period {
    /// 00:00 to 24:00.
    Day,
    /// Monday to Sunday.
    Week,
    /// First to last of the month.
    Month,
    /// January to December.
    Year,
}

impl Period {
    /// All of them, shortest first.
    pub const ALL: [Self; 4] = [Self::Day, Self::Week, Self::Month, Self::Year];

    /// `day`, `week`, `month` or `year`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Year => "year",
        }
    }
}

/// A hard ceiling on what is settled and reserved in a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Which calendar period.
    pub period: Period,
    /// The ceiling.
    pub limit: NanoUsd,
}

/// What a tenant may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// `free`, `pro`, `enterprise` or a name of the operator's.
    pub name: String,
    /// Refill of the request bucket, thousandths of a request per second.
    pub requests_per_second_milli: u64,
    /// Size of the request bucket, requests.
    pub request_burst: u32,
    /// Refill per minute and size of the token bucket.
    pub tokens_per_minute: u64,
    /// Most requests admitted and not settled.
    pub concurrency_max: u32,
    /// Share in fair queueing.
    pub weight: u32,
    /// Dearest request that may be admitted, by its worst case.
    pub request_cost_max: NanoUsd,
    /// Budgets that come with the plan.
    pub budgets: Vec<Budget>,
}

/// What tokens cost, as it stood in a price book.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// Version of the price book it was taken from.
    pub price_book_version: u32,
    /// Nano-USD per million prompt tokens.
    pub input_per_mtok: NanoUsd,
    /// Nano-USD per million completion tokens.
    pub output_per_mtok: NanoUsd,
}

/// Who says how many tokens were used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageSource {
    /// The upstream, in its answer.
    Reported,
    /// The upstream, when it was asked afterwards.
    LookedUp,
    /// We, from what was delivered.
    Counted,
    /// Nobody: nothing reached the upstream, or it refused.
    None,
}

/// Tokens a request used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: Tokens,
    /// Tokens of the answer.
    pub completion_tokens: Tokens,
    /// Who says so.
    pub source: UsageSource,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The whole answer was delivered.
    Completed,
    /// The client went away; the upstream call was cancelled.
    ClientGone,
    /// The upstream refused or failed before an answer began.
    UpstreamFailed,
    /// The upstream broke off in the middle of its answer.
    UpstreamCut,
    /// The answer reached the reservation and was ended by us.
    ReservationReached,
    /// It took longer than it may.
    TimedOut,
    /// The process that served it died; settled after restart from the upstream's own record.
    Recovered,
}

impl Outcome {
    /// The word operators see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::ClientGone => "client-gone",
            Self::UpstreamFailed => "upstream-failed",
            Self::UpstreamCut => "upstream-cut",
            Self::ReservationReached => "reservation-reached",
            Self::TimedOut => "timed-out",
            Self::Recovered => "recovered",
        }
    }
}

/// Why a request was not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalReason {
    /// More requests per second than the plan allows.
    RequestRate,
    /// More tokens per minute than the plan allows.
    TokenRate,
    /// More requests at once than the plan allows.
    Concurrency,
    /// The budget has no room for the worst case.
    Budget,
    /// The worst case is dearer than a single request may be.
    RequestCost,
    /// The tenant is suspended.
    Suspended,
    /// The key is unknown or revoked.
    Key,
    /// The tenant's mailbox was full.
    Overload,
}

impl RefusalReason {
    /// The word operators see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RequestRate => "request-rate",
            Self::TokenRate => "token-rate",
            Self::Concurrency => "concurrency",
            Self::Budget => "budget",
            Self::RequestCost => "request-cost",
            Self::Suspended => "suspended",
            Self::Key => "key",
            Self::Overload => "overload",
        }
    }
}

/// Asks to admit a model request and to hold its worst case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AdmitRequest {
    /// The request; also its episode.
    pub request_id: RequestId,
    /// The key that was shown.
    pub key_id: KeyId,
    /// Model as the client named it.
    pub model: String,
    /// Upstream it was routed to.
    pub upstream: String,
    /// Name of the model there.
    pub upstream_model: String,
    /// Bound from above on the prompt.
    pub prompt_tokens_max: Tokens,
    /// Bound from above on the answer, all choices together.
    pub completion_tokens_max: Tokens,
    /// The price in force.
    pub price: Price,
    /// When the reservation expires if nobody settles it.
    pub deadline: TimestampUs,
    /// Whether the answer streams.
    pub streaming: bool,
    /// The process that serves it, `NODE/INCARNATION`; empty = the only one there is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub served_by: String,
}

/// Tells how an admitted request ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SettleRequest {
    /// The request.
    pub request_id: RequestId,
    /// How it ended.
    pub outcome: Outcome,
    /// What it used.
    pub usage: Usage,
    /// Status of the upstream's answer; 0 = none came.
    pub upstream_status: u32,
    /// From the call to the first token; 0 = none came.
    pub first_token: DurationUs,
    /// From the call to the end.
    pub duration: DurationUs,
    /// For operators: why, if it did not complete.
    pub detail: String,
}

/// A wish to the tenant actor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Command {
    /// Begins the tenant.
    RegisterTenant {
        /// Name for people.
        display_name: String,
        /// What it may do.
        plan: Plan,
        /// Where its events may be stored.
        zone: String,
    },
    /// Adds a key.
    IssueApiKey {
        /// Its id.
        key_id: KeyId,
        /// What is shown of it.
        prefix: String,
        /// HMAC-SHA256 under the installation's pepper.
        #[serde(with = "hex_bytes")]
        hash: [u8; 32],
        /// For people.
        label: String,
    },
    /// Ends a key.
    RevokeApiKey {
        /// Its id.
        key_id: KeyId,
        /// Why.
        reason: String,
    },
    /// Changes what the tenant may do.
    SetPlan {
        /// The new plan.
        plan: Plan,
    },
    /// Sets or lifts a ceiling.
    SetBudget {
        /// Which period.
        period: Period,
        /// `None` = no limit.
        limit: Option<NanoUsd>,
    },
    /// Stops admitting.
    Suspend {
        /// Why.
        reason: String,
    },
    /// Admits again.
    Resume,
    /// See [`AdmitRequest`].
    AdmitRequest(AdmitRequest),
    /// See [`SettleRequest`].
    SettleRequest(SettleRequest),
    /// Releases a reservation whose deadline has passed.
    ExpireReservation {
        /// The request.
        request_id: RequestId,
    },
    /// Records how many requests were refused in a second, for one reason.
    RecordRefusals {
        /// Why.
        reason: RefusalReason,
        /// Which second, since 1970.
        second: u64,
        /// How many.
        count: u64,
    },
}

/// A fact about a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Event {
    /// The tenant began.
    TenantRegistered {
        /// Name for people.
        display_name: String,
        /// What it may do.
        plan: Plan,
        /// Where its events may be stored.
        zone: String,
        /// When.
        at: TimestampUs,
    },
    /// A key was added.
    ApiKeyIssued {
        /// Its id.
        key_id: KeyId,
        /// What is shown of it.
        prefix: String,
        /// HMAC-SHA256 under the installation's pepper.
        #[serde(with = "hex_bytes")]
        hash: [u8; 32],
        /// For people.
        label: String,
        /// When.
        at: TimestampUs,
    },
    /// A key was ended.
    ApiKeyRevoked {
        /// Its id.
        key_id: KeyId,
        /// Why.
        reason: String,
        /// When.
        at: TimestampUs,
    },
    /// The plan changed.
    PlanSet {
        /// The new plan.
        plan: Plan,
        /// When.
        at: TimestampUs,
    },
    /// A ceiling was set or lifted.
    BudgetSet {
        /// Which period.
        period: Period,
        /// `None` = no limit.
        limit: Option<NanoUsd>,
        /// When.
        at: TimestampUs,
    },
    /// The tenant admits nothing from here.
    TenantSuspended {
        /// Why.
        reason: String,
        /// When.
        at: TimestampUs,
    },
    /// The tenant admits again.
    TenantResumed {
        /// When.
        at: TimestampUs,
    },
    /// A request may go to its upstream; its worst case is held.
    RequestAdmitted {
        /// What was asked.
        request: AdmitRequest,
        /// The worst case.
        reserved: NanoUsd,
        /// When.
        at: TimestampUs,
    },
    /// A request ended; its reservation is gone.
    RequestSettled {
        /// What was told.
        settlement: SettleRequest,
        /// What the tenant pays: the priced usage, at most the reservation.
        cost: NanoUsd,
        /// Reservation minus cost.
        released: NanoUsd,
        /// Priced usage beyond the reservation, borne by the operator.
        overrun: NanoUsd,
        /// When.
        at: TimestampUs,
    },
    /// Nobody settled the request in time; its reservation is gone.
    ReservationExpired {
        /// The request.
        request_id: RequestId,
        /// What was held.
        released: NanoUsd,
        /// When.
        at: TimestampUs,
    },
    /// Requests were refused in one second for one reason.
    RequestsRefused {
        /// Why.
        reason: RefusalReason,
        /// Which second, since 1970.
        second: u64,
        /// How many.
        count: u64,
    },
}

/// Shows 32 bytes as hexadecimal in JSON and keeps them as text in snapshots.
pub mod hex_bytes {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    /// Writes lowercase hexadecimal.
    ///
    /// # Errors
    /// As the serializer.
    pub fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        let text = bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
            text.push_str(&format!("{byte:02x}"));
            text
        });
        serializer.serialize_str(&text)
    }

    /// Reads hexadecimal.
    ///
    /// # Errors
    /// The text is not 64 hexadecimal digits.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; 32];
        let pairs = text.as_bytes().chunks_exact(2);
        if text.len() != 64 {
            return Err(D::Error::custom("64 hexadecimal digits expected"));
        }
        for (byte, pair) in bytes.iter_mut().zip(pairs) {
            let digits = std::str::from_utf8(pair).map_err(D::Error::custom)?;
            *byte = u8::from_str_radix(digits, 16).map_err(D::Error::custom)?;
        }
        Ok(bytes)
    }
}
