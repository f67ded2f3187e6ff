//! Stored forms of the region actor.

use proto::log::v1 as pb;

use super::{
    SCHEMA_VERSION, decode, encode,
    group::{places_from, places_to},
    unknown,
};
use crate::{
    envelope::{Payload, PayloadView, Stored},
    region::{Command, Event, PriceBookEntry},
    unit::{NanoUsd, TimestampUs},
    wire::DecodeError,
};

const PUBLISH_PRICE_BOOK: &str = "freehold.log.v1.PublishPriceBook";
const PRICE_BOOK_PUBLISHED: &str = "freehold.log.v1.PriceBookPublished";
const DROP_FROM_READ_MODEL: &str = "freehold.log.v1.DropFromReadModel";
const DROPPED_FROM_READ_MODEL: &str = "freehold.log.v1.DroppedFromReadModel";
const REDRIVE_READ_MODEL: &str = "freehold.log.v1.RedriveReadModel";
const READ_MODEL_REDRIVEN: &str = "freehold.log.v1.ReadModelRedriven";

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
            Self::DropFromReadModel { read_model, places, reason } => {
                let (read_model, reason) = (read_model.clone(), reason.clone());
                let places = places_to(places);
                encode(DROP_FROM_READ_MODEL, &pb::DropFromReadModel { read_model, places, reason })
            }
            Self::RedriveReadModel { read_model } => {
                encode(REDRIVE_READ_MODEL, &pb::RedriveReadModel { read_model: read_model.clone() })
            }
        }
    }

    fn from_payload(payload: PayloadView<'_>) -> Result<Self, DecodeError> {
        match (payload.kind, payload.schema_version) {
            (PUBLISH_PRICE_BOOK, SCHEMA_VERSION) => {
                let message: pb::PublishPriceBook = decode(PUBLISH_PRICE_BOOK, payload.bytes)?;
                Ok(Self::PublishPriceBook { entries: entries_from(message.entries) })
            }
            (DROP_FROM_READ_MODEL, SCHEMA_VERSION) => {
                let message: pb::DropFromReadModel = decode(DROP_FROM_READ_MODEL, payload.bytes)?;
                let (read_model, reason) = (message.read_model, message.reason);
                Ok(Self::DropFromReadModel { read_model, places: places_from(message.places), reason })
            }
            (REDRIVE_READ_MODEL, SCHEMA_VERSION) => {
                let message: pb::RedriveReadModel = decode(REDRIVE_READ_MODEL, payload.bytes)?;
                Ok(Self::RedriveReadModel { read_model: message.read_model })
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
            Self::DroppedFromReadModel { read_model, places, reason, at } => {
                let (read_model, reason, at_us) = (read_model.clone(), reason.clone(), at.0);
                let places = places_to(places);
                encode(DROPPED_FROM_READ_MODEL, &pb::DroppedFromReadModel { read_model, places, reason, at_us })
            }
            Self::ReadModelRedriven { read_model, at } => {
                encode(READ_MODEL_REDRIVEN, &pb::ReadModelRedriven { read_model: read_model.clone(), at_us: at.0 })
            }
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
            (DROPPED_FROM_READ_MODEL, SCHEMA_VERSION) => {
                let message: pb::DroppedFromReadModel = decode(DROPPED_FROM_READ_MODEL, payload.bytes)?;
                let (read_model, reason, at) = (message.read_model, message.reason, TimestampUs(message.at_us));
                Ok(Self::DroppedFromReadModel { read_model, places: places_from(message.places), reason, at })
            }
            (READ_MODEL_REDRIVEN, SCHEMA_VERSION) => {
                let message: pb::ReadModelRedriven = decode(READ_MODEL_REDRIVEN, payload.bytes)?;
                Ok(Self::ReadModelRedriven { read_model: message.read_model, at: TimestampUs(message.at_us) })
            }
            (kind, version) => Err(unknown(kind, version)),
        }
    }
}
