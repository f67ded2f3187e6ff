//! What one simulated upstream is asked to be.
//!
//! Invariant: after [`Options::validate`] every rate is in 0..=1, every range is non-empty and every number is inside
//! its named limit, so that nothing behind it checks again. This module reads no file and no environment.

use std::io;

use serde::{Deserialize, Serialize};

/// Longest completion of one choice that can be asked for, in tokens.
pub const COMPLETION_TOKENS_MAX: u32 = 32_768;
/// Most client request ids remembered by default; the oldest is forgotten first.
pub const RECORDS_DEFAULT: usize = 1_000_000;
/// Most client request ids that can be asked to be remembered (about 200 bytes each).
pub const RECORDS_MAX: usize = 100_000_000;
/// Most models one simulator serves.
pub const MODELS_MAX: usize = 1_000;
/// Longest latency, stall or window, in milliseconds (one hour).
pub const PAUSE_MS_MAX: u64 = 3_600_000;
/// Fastest pace that is not "unlimited", in tokens per second.
pub const TOKENS_PER_SECOND_MAX: u32 = 1_000_000;

/// The models served when none are named.
const MODELS_DEFAULT: [&str; 2] = ["sim-small", "sim-large"];
/// Shortest and longest completion when none are named, in tokens.
const COMPLETION_TOKENS_DEFAULT: (u32, u32) = (16, 64);

/// The behaviour of one simulated upstream; the default has no latency and no faults.
///
/// Units are in the names. Rates are probabilities per request in 0..=1; each kind of fault is drawn by itself, so
/// turning one on does not move the others.
#[derive(Clone, Debug, PartialEq, clap::Args, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Seed of every draw and every text
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    pub seed: u64,
    /// Models served, separated by commas
    #[arg(long, value_delimiter = ',', default_values_t = MODELS_DEFAULT.map(String::from), value_name = "NAMES")]
    pub models: Vec<String>,
    /// API key that /v1 requires; without it every caller is served
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// Time to the first token, median, in milliseconds
    #[arg(long, default_value_t = 0, value_name = "MS")]
    pub ttft_p50_ms: u64,
    /// Time to the first token, 90th percentile, in milliseconds; at least the median
    #[arg(long, default_value_t = 0, value_name = "MS")]
    pub ttft_p90_ms: u64,
    /// Time to the first token, 99th percentile and longest, in milliseconds; at least the 90th percentile
    #[arg(long, default_value_t = 0, value_name = "MS")]
    pub ttft_p99_ms: u64,
    /// Pace of one response, all its choices together, in tokens per second; 0 is unlimited
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    pub tokens_per_second: u32,
    /// Shortest completion, in tokens
    #[arg(long, default_value_t = COMPLETION_TOKENS_DEFAULT.0, value_name = "TOKENS")]
    pub completion_tokens_min: u32,
    /// Longest completion, in tokens; max_tokens of a request cuts it with finish_reason "length"
    #[arg(long, default_value_t = COMPLETION_TOKENS_DEFAULT.1, value_name = "TOKENS")]
    pub completion_tokens_max: u32,
    /// Rate of requests answered with 500 before generation, 0 to 1
    #[arg(long, default_value_t = 0.0, value_name = "RATE")]
    pub error_500_rate: f64,
    /// Rate of requests answered with 503 before generation, 0 to 1
    #[arg(long, default_value_t = 0.0, value_name = "RATE")]
    pub error_503_rate: f64,
    /// Rate of responses whose connection breaks in the middle, 0 to 1
    #[arg(long, default_value_t = 0.0, value_name = "RATE")]
    pub cut_rate: f64,
    /// Rate of responses that stop sending in the middle and go on later, 0 to 1
    #[arg(long, default_value_t = 0.0, value_name = "RATE")]
    pub stall_rate: f64,
    /// Length of a stall, in milliseconds
    #[arg(long, default_value_t = 0, value_name = "MS")]
    pub stall_ms: u64,
    /// Rate of responses with a chunk (or a plain body) that is not valid JSON, 0 to 1
    #[arg(long, default_value_t = 0.0, value_name = "RATE")]
    pub malformed_rate: f64,
    /// Rate of responses that ignore max_tokens and go on, 0 to 1
    #[arg(long, default_value_t = 0.0, value_name = "RATE")]
    pub overrun_rate: f64,
    /// Period of the rate limit windows, in milliseconds; 0 is no windows
    #[arg(long, default_value_t = 0, value_name = "MS")]
    pub rate_limit_every_ms: u64,
    /// The last part of every period in which requests are answered with 429, in milliseconds
    #[arg(long, default_value_t = 0, value_name = "MS")]
    pub rate_limit_for_ms: u64,
    /// Most client request ids whose usage is remembered; the oldest is forgotten first
    #[arg(long, default_value_t = RECORDS_DEFAULT, value_name = "COUNT")]
    pub records_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 0,
            models: MODELS_DEFAULT.map(String::from).into(),
            api_key: None,
            ttft_p50_ms: 0,
            ttft_p90_ms: 0,
            ttft_p99_ms: 0,
            tokens_per_second: 0,
            completion_tokens_min: COMPLETION_TOKENS_DEFAULT.0,
            completion_tokens_max: COMPLETION_TOKENS_DEFAULT.1,
            error_500_rate: 0.0,
            error_503_rate: 0.0,
            cut_rate: 0.0,
            stall_rate: 0.0,
            stall_ms: 0,
            malformed_rate: 0.0,
            overrun_rate: 0.0,
            rate_limit_every_ms: 0,
            rate_limit_for_ms: 0,
            records_max: RECORDS_DEFAULT,
        }
    }
}

/// Why options cannot be simulated. Names are the fields of [`Options`].
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Invalid {
    /// A rate is not a probability.
    #[error("{name} is {value}: it must be from 0 to 1")]
    Rate {
        /// The field.
        name: &'static str,
        /// Its value.
        value: f64,
    },
    /// The two rates of refusals add up to more than every request.
    #[error("error_500_rate + error_503_rate is {sum}: it must be at most 1")]
    Refusals {
        /// What they add up to.
        sum: f64,
    },
    /// A number is outside its limits.
    #[error("{name} is {value}: it must be from {min} to {max}")]
    Range {
        /// The field.
        name: &'static str,
        /// Its value.
        value: u64,
        /// Smallest allowed.
        min: u64,
        /// Largest allowed.
        max: u64,
    },
    /// A model name is empty, or contains something else than visible ASCII.
    #[error("models contains {name:?}: a model name is visible ASCII and not empty")]
    Model {
        /// The name.
        name: String,
    },
}

impl From<Invalid> for io::Error {
    fn from(invalid: Invalid) -> Self {
        Self::new(io::ErrorKind::InvalidInput, invalid)
    }
}

impl Options {
    /// Checks every field against its limits.
    ///
    /// # Errors
    /// [`Invalid`] names the first field that is outside them.
    pub fn validate(&self) -> Result<(), Invalid> {
        for (name, value) in [
            ("error_500_rate", self.error_500_rate),
            ("error_503_rate", self.error_503_rate),
            ("cut_rate", self.cut_rate),
            ("stall_rate", self.stall_rate),
            ("malformed_rate", self.malformed_rate),
            ("overrun_rate", self.overrun_rate),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return Err(Invalid::Rate { name, value });
            }
        }
        let sum = self.error_500_rate + self.error_503_rate;
        if sum > 1.0 {
            return Err(Invalid::Refusals { sum });
        }
        let tokens_min = u64::from(self.completion_tokens_min);
        for (name, value, min, max) in [
            ("models", self.models.len() as u64, 1, MODELS_MAX as u64),
            ("ttft_p50_ms", self.ttft_p50_ms, 0, PAUSE_MS_MAX),
            ("ttft_p90_ms", self.ttft_p90_ms, 0, PAUSE_MS_MAX),
            ("ttft_p99_ms", self.ttft_p99_ms, 0, PAUSE_MS_MAX),
            ("tokens_per_second", self.tokens_per_second.into(), 0, TOKENS_PER_SECOND_MAX.into()),
            ("completion_tokens_min", tokens_min, 1, COMPLETION_TOKENS_MAX.into()),
            ("completion_tokens_max", self.completion_tokens_max.into(), tokens_min, COMPLETION_TOKENS_MAX.into()),
            ("stall_ms", self.stall_ms, 0, PAUSE_MS_MAX),
            ("rate_limit_every_ms", self.rate_limit_every_ms, 0, PAUSE_MS_MAX),
            ("rate_limit_for_ms", self.rate_limit_for_ms, 0, self.rate_limit_every_ms),
            ("records_max", self.records_max as u64, 1, RECORDS_MAX as u64),
        ] {
            if !(min..=max).contains(&value) {
                return Err(Invalid::Range { name, value, min, max });
            }
        }
        match self.models.iter().find(|name| name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic())) {
            Some(name) => Err(Invalid::Model { name: name.clone() }),
            None => Ok(()),
        }
    }
}
