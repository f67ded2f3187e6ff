//! Stored forms of consumer groups.

use proto::log::v1 as pb;

use super::{SCHEMA_VERSION, decode, encode, required, unknown};
use crate::{
    envelope::{Payload, PayloadView, Stored},
    group::{Command, Event, Numbered, ParkedDelivery, Place, Settings},
    unit::{DurationUs, Position, TimestampUs},
    wire::DecodeError,
};

const CREATE: &str = "freehold.log.v1.CreateConsumerGroup";
const RECORD: &str = "freehold.log.v1.RecordConsumption";
const REDRIVE: &str = "freehold.log.v1.RedriveParkedEvents";
const DROP: &str = "freehold.log.v1.DropParkedEvents";
const CREATED: &str = "freehold.log.v1.ConsumerGroupCreated";
const RECORDED: &str = "freehold.log.v1.ConsumptionRecorded";
const PARKED: &str = "freehold.log.v1.EventParked";
const REDRIVEN: &str = "freehold.log.v1.ParkedEventsRedriven";
const DROPPED: &str = "freehold.log.v1.ParkedEventsDropped";

fn settings_to(settings: &Settings) -> pb::ConsumerGroupSettings {
    pb::ConsumerGroupSettings {
        types: settings.types.clone(),
        after_position: settings.after.0,
        attempts_max: settings.attempts_max,
        backoff_first_us: settings.backoff_first.0,
        backoff_max_us: settings.backoff_max.0,
        answer_timeout_us: settings.answer_timeout.0,
        in_flight_max: settings.in_flight_max,
    }
}

fn settings_from(settings: Option<pb::ConsumerGroupSettings>) -> Result<Settings, DecodeError> {
    let settings = required("a group's settings", settings)?;
    Ok(Settings {
        types: settings.types,
        after: Position(settings.after_position),
        attempts_max: settings.attempts_max,
        backoff_first: DurationUs(settings.backoff_first_us),
        backoff_max: DurationUs(settings.backoff_max_us),
        answer_timeout: DurationUs(settings.answer_timeout_us),
        in_flight_max: settings.in_flight_max,
    })
}

const fn place_to(place: Place) -> pb::EventPlace {
    pb::EventPlace { position: place.position.0, index: place.index }
}

const fn place_from(place: pb::EventPlace) -> Place {
    Place { position: Position(place.position), index: place.index }
}

pub(super) fn places_to(places: &[Place]) -> Vec<pb::EventPlace> {
    places.iter().map(|place| place_to(*place)).collect()
}

pub(super) fn places_from(places: Vec<pb::EventPlace>) -> Vec<Place> {
    places.into_iter().map(place_from).collect()
}

fn delivery_to(delivery: &ParkedDelivery) -> pb::ParkedDelivery {
    pb::ParkedDelivery {
        place: Some(place_to(delivery.place)),
        stream: delivery.stream.clone(),
        r#type: delivery.kind.clone(),
        error: delivery.error.clone(),
        attempts: delivery.attempts,
        consumer_version: delivery.consumer_version.clone(),
    }
}

fn delivery_from(delivery: pb::ParkedDelivery) -> Result<ParkedDelivery, DecodeError> {
    Ok(ParkedDelivery {
        place: place_from(required("a parked event's place", delivery.place)?),
        stream: delivery.stream,
        kind: delivery.r#type,
        error: delivery.error,
        attempts: delivery.attempts,
        consumer_version: delivery.consumer_version,
    })
}

fn numbered_to(parked: &[Numbered]) -> Vec<pb::ParkedNumber> {
    let one = |one: &Numbered| pb::ParkedNumber { number: one.number, place: Some(place_to(one.place)) };
    parked.iter().map(one).collect()
}

fn numbered_from(parked: Vec<pb::ParkedNumber>) -> Result<Vec<Numbered>, DecodeError> {
    let one = |one: pb::ParkedNumber| {
        Ok(Numbered { number: one.number, place: place_from(required("a parked event's place", one.place)?) })
    };
    parked.into_iter().map(one).collect()
}

impl Stored for Command {
    fn to_payload(&self) -> Payload {
        match self {
            Self::Create { settings } => {
                encode(CREATE, &pb::CreateConsumerGroup { settings: Some(settings_to(settings)) })
            }
            Self::Record { checkpoint, settled, parked } => {
                let message = pb::RecordConsumption {
                    checkpoint: checkpoint.0,
                    settled: places_to(settled),
                    parked: parked.iter().map(delivery_to).collect(),
                };
                encode(RECORD, &message)
            }
            Self::Redrive { numbers, limit } => {
                encode(REDRIVE, &pb::RedriveParkedEvents { numbers: numbers.clone(), limit: *limit })
            }
            Self::Drop { numbers, limit, reason } => {
                let message = pb::DropParkedEvents { numbers: numbers.clone(), limit: *limit, reason: reason.clone() };
                encode(DROP, &message)
            }
        }
    }

    fn from_payload(payload: PayloadView<'_>) -> Result<Self, DecodeError> {
        match (payload.kind, payload.schema_version) {
            (CREATE, SCHEMA_VERSION) => {
                let message: pb::CreateConsumerGroup = decode(CREATE, payload.bytes)?;
                Ok(Self::Create { settings: settings_from(message.settings)? })
            }
            (RECORD, SCHEMA_VERSION) => {
                let message: pb::RecordConsumption = decode(RECORD, payload.bytes)?;
                Ok(Self::Record {
                    checkpoint: Position(message.checkpoint),
                    settled: places_from(message.settled),
                    parked: message.parked.into_iter().map(delivery_from).collect::<Result<_, _>>()?,
                })
            }
            (REDRIVE, SCHEMA_VERSION) => {
                let message: pb::RedriveParkedEvents = decode(REDRIVE, payload.bytes)?;
                Ok(Self::Redrive { numbers: message.numbers, limit: message.limit })
            }
            (DROP, SCHEMA_VERSION) => {
                let message: pb::DropParkedEvents = decode(DROP, payload.bytes)?;
                Ok(Self::Drop { numbers: message.numbers, limit: message.limit, reason: message.reason })
            }
            (kind, version) => Err(unknown(kind, version)),
        }
    }
}

impl Stored for Event {
    fn to_payload(&self) -> Payload {
        match self {
            Self::Created { settings, at } => {
                encode(CREATED, &pb::ConsumerGroupCreated { settings: Some(settings_to(settings)), at_us: at.0 })
            }
            Self::Recorded { checkpoint, settled } => {
                encode(RECORDED, &pb::ConsumptionRecorded { checkpoint: checkpoint.0, settled: places_to(settled) })
            }
            Self::Parked { delivery, at } => {
                encode(PARKED, &pb::EventParked { delivery: Some(delivery_to(delivery)), at_us: at.0 })
            }
            Self::Redriven { parked, at } => {
                encode(REDRIVEN, &pb::ParkedEventsRedriven { parked: numbered_to(parked), at_us: at.0 })
            }
            Self::Dropped { parked, reason, at } => {
                let message =
                    pb::ParkedEventsDropped { parked: numbered_to(parked), reason: reason.clone(), at_us: at.0 };
                encode(DROPPED, &message)
            }
        }
    }

    fn from_payload(payload: PayloadView<'_>) -> Result<Self, DecodeError> {
        match (payload.kind, payload.schema_version) {
            (CREATED, SCHEMA_VERSION) => {
                let message: pb::ConsumerGroupCreated = decode(CREATED, payload.bytes)?;
                Ok(Self::Created { settings: settings_from(message.settings)?, at: TimestampUs(message.at_us) })
            }
            (RECORDED, SCHEMA_VERSION) => {
                let message: pb::ConsumptionRecorded = decode(RECORDED, payload.bytes)?;
                Ok(Self::Recorded { checkpoint: Position(message.checkpoint), settled: places_from(message.settled) })
            }
            (PARKED, SCHEMA_VERSION) => {
                let message: pb::EventParked = decode(PARKED, payload.bytes)?;
                let delivery = delivery_from(required("a parked event", message.delivery)?)?;
                Ok(Self::Parked { delivery, at: TimestampUs(message.at_us) })
            }
            (REDRIVEN, SCHEMA_VERSION) => {
                let message: pb::ParkedEventsRedriven = decode(REDRIVEN, payload.bytes)?;
                Ok(Self::Redriven { parked: numbered_from(message.parked)?, at: TimestampUs(message.at_us) })
            }
            (DROPPED, SCHEMA_VERSION) => {
                let message: pb::ParkedEventsDropped = decode(DROPPED, payload.bytes)?;
                let (parked, reason) = (numbered_from(message.parked)?, message.reason);
                Ok(Self::Dropped { parked, reason, at: TimestampUs(message.at_us) })
            }
            (kind, version) => Err(unknown(kind, version)),
        }
    }
}
