//! Commands and events of the region actor: it keeps the price book, and what operators decide about read models.

use serde::{Deserialize, Serialize};

use crate::{
    group::Place,
    unit::{NanoUsd, TimestampUs},
};

/// Most entries in a price book.
pub const PRICE_BOOK_LEN_MAX: usize = 4_096;

/// What one model costs at one upstream.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PriceBookEntry {
    /// Model as clients name it.
    pub model: String,
    /// Upstream that serves it.
    pub upstream: String,
    /// Nano-USD per million prompt tokens.
    pub input_per_mtok: NanoUsd,
    /// Nano-USD per million completion tokens.
    pub output_per_mtok: NanoUsd,
}

/// A wish to the region actor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Command {
    /// Puts a price book in force.
    PublishPriceBook {
        /// All prices, in order of model and upstream.
        entries: Vec<PriceBookEntry>,
    },
    /// Gives up events that a read model parked.
    DropFromReadModel {
        /// Its name.
        read_model: String,
        /// Which events.
        places: Vec<Place>,
        /// Why.
        reason: String,
    },
    /// Has a read model try again what it parked.
    RedriveReadModel {
        /// Its name.
        read_model: String,
    },
}

/// A fact about a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Event {
    /// A price book is in force from here.
    PriceBookPublished {
        /// Its version, from 1.
        version: u32,
        /// All prices, in order of model and upstream.
        entries: Vec<PriceBookEntry>,
        /// When.
        at: TimestampUs,
    },
    /// A read model never contains these events, whatever code folds the log.
    DroppedFromReadModel {
        /// Its name.
        read_model: String,
        /// Which events.
        places: Vec<Place>,
        /// Why.
        reason: String,
        /// When.
        at: TimestampUs,
    },
    /// A read model folds the log anew, and so tries again what it parked.
    ReadModelRedriven {
        /// Its name.
        read_model: String,
        /// When.
        at: TimestampUs,
    },
}
