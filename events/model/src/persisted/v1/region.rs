//! Stored forms of the region actor.

use proto::log::v1 as pb;

use super::{SCHEMA_VERSION, decode, encode, unknown};
use crate::{
    envelope::{Payload, PayloadView, Stored},
    region::{Command, Event, PriceBookEntry},
    unit::{NanoUsd, TimestampUs},
    wire::DecodeError,
};

const PUBLISH_PRICE_BOOK: &str = "freehold.log.v1.PublishPriceBook";
const PRICE_BOOK_PUBLISHED: &str = "freehold.log.v1.PriceBookPublished";

fn entries_to(entries: &[PriceBookEntry]) -> Vec<pb::PriceBookEntry> {
    entries
        .iter()
        .map(|entry| pb::PriceBookEntry {
            model: entry.model.clone(),
            upstream: entry.upstream.clone(),
            input_nano_usd_per_mtok: entry.input_per_mtok.0,
            output_nano_usd_per_mtok: entry.output_per_mtok.0,
        })
        .collect()
}

fn entries_from(entries: Vec<pb::PriceBookEntry>) -> Vec<PriceBookEntry> {
    entries
        .into_iter()
        .map(|entry| PriceBookEntry {
            model: entry.model,
            upstream: entry.upstream,
            input_per_mtok: NanoUsd(entry.input_nano_usd_per_mtok),
            output_per_mtok: NanoUsd(entry.output_nano_usd_per_mtok),
        })
        .collect()
}

impl Stored for Command {
    fn to_payload(&self) -> Payload {
        match self {
            Self::PublishPriceBook { entries } => {
                encode(PUBLISH_PRICE_BOOK, &pb::PublishPriceBook { entries: entries_to(entries) })
            }
        }
    }

    fn from_payload(payload: PayloadView<'_>) -> Result<Self, DecodeError> {
        match (payload.kind, payload.schema_version) {
            (PUBLISH_PRICE_BOOK, SCHEMA_VERSION) => {
                let message: pb::PublishPriceBook = decode(PUBLISH_PRICE_BOOK, payload.bytes)?;
                Ok(Self::PublishPriceBook { entries: entries_from(message.entries) })
            }
            (kind, version) => Err(unknown(kind, version)),
        }
    }
}

impl Stored for Event {
    fn to_payload(&self) -> Payload {
        match self {
            Self::PriceBookPublished { version, entries, at } => encode(
                PRICE_BOOK_PUBLISHED,
                &pb::PriceBookPublished { version: *version, entries: entries_to(entries), at_us: at.0 },
            ),
        }
    }

    fn from_payload(payload: PayloadView<'_>) -> Result<Self, DecodeError> {
        match (payload.kind, payload.schema_version) {
            (PRICE_BOOK_PUBLISHED, SCHEMA_VERSION) => {
                let message: pb::PriceBookPublished = decode(PRICE_BOOK_PUBLISHED, payload.bytes)?;
                Ok(Self::PriceBookPublished {
                    version: message.version,
                    entries: entries_from(message.entries),
                    at: TimestampUs(message.at_us),
                })
            }
            (kind, version) => Err(unknown(kind, version)),
        }
    }
}
