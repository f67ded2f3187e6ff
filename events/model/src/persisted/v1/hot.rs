//! The two events that make up nearly all of a log, read from their fields straight into domain values: no
//! intermediate message, no allocation that the domain value does not keep. Tests hold them against prost's reading.

use super::tenant_parts::{key_from, outcome_from, request_from, source_from};
use crate::{
    tenant::{AdmitRequest, Event, Price, SettleRequest, Usage},
    unit::{DurationUs, NanoUsd, TimestampUs, Tokens},
    wire::{DecodeError, Fields},
};

fn price(bytes: &[u8], price: &mut Price) -> Result<(), DecodeError> {
    let mut fields = Fields::new(bytes);
    while let Some((field, value)) = fields.next_field()? {
        match field {
            1 => price.price_book_version = value.u32(field)?,
            2 => price.input_per_mtok = NanoUsd(value.u64(field)?.cast_signed()),
            3 => price.output_per_mtok = NanoUsd(value.u64(field)?.cast_signed()),
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn admitted(bytes: &[u8]) -> Result<Event, DecodeError> {
    let (mut request_id, mut key_id, mut model): (&[u8], _, _) = (&[], "", "");
    let (mut upstream, mut upstream_model, mut served_by) = ("", "", "");
    let (mut prompt, mut completion, mut deadline, mut at, mut reserved) = (0, 0, 0, 0, 0_u64);
    let (mut streaming, mut found) = (false, None);
    let mut fields = Fields::new(bytes);
    while let Some((field, value)) = fields.next_field()? {
        match field {
            1 => request_id = value.bytes(field)?,
            2 => key_id = value.text(field)?,
            3 => model = value.text(field)?,
            4 => upstream = value.text(field)?,
            5 => upstream_model = value.text(field)?,
            6 => prompt = value.u64(field)?,
            7 => completion = value.u64(field)?,
            8 => price(value.bytes(field)?, found.get_or_insert_default())?,
            9 => reserved = value.u64(field)?,
            10 => deadline = value.u64(field)?,
            11 => streaming = value.u64(field)? != 0,
            12 => at = value.u64(field)?,
            13 => served_by = value.text(field)?,
            _ => {}
        }
    }
    let request = AdmitRequest {
        request_id: request_from(request_id)?,
        key_id: key_from(key_id)?,
        model: model.to_owned(),
        upstream: upstream.to_owned(),
        upstream_model: upstream_model.to_owned(),
        prompt_tokens_max: Tokens(prompt),
        completion_tokens_max: Tokens(completion),
        price: super::required("a price", found)?,
        deadline: TimestampUs(deadline),
        streaming,
        served_by: served_by.to_owned(),
    };
    Ok(Event::RequestAdmitted { request, reserved: NanoUsd(reserved.cast_signed()), at: TimestampUs(at) })
}

fn usage(bytes: &[u8], usage: &mut (u64, u64, u32)) -> Result<(), DecodeError> {
    let mut fields = Fields::new(bytes);
    while let Some((field, value)) = fields.next_field()? {
        match field {
            1 => usage.0 = value.u64(field)?,
            2 => usage.1 = value.u64(field)?,
            3 => usage.2 = value.u32(field)?,
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn settled(bytes: &[u8]) -> Result<Event, DecodeError> {
    let (mut request_id, mut detail): (&[u8], _) = (&[], "");
    let (mut outcome, mut status, mut found) = (0, 0, None);
    let (mut cost, mut released, mut overrun) = (0_u64, 0_u64, 0_u64);
    let (mut first_token, mut duration, mut at) = (0, 0, 0);
    let mut fields = Fields::new(bytes);
    while let Some((field, value)) = fields.next_field()? {
        match field {
            1 => request_id = value.bytes(field)?,
            2 => outcome = value.u32(field)?,
            3 => usage(value.bytes(field)?, found.get_or_insert_default())?,
            4 => cost = value.u64(field)?,
            5 => released = value.u64(field)?,
            6 => overrun = value.u64(field)?,
            7 => status = value.u32(field)?,
            8 => first_token = value.u64(field)?,
            9 => duration = value.u64(field)?,
            10 => detail = value.text(field)?,
            11 => at = value.u64(field)?,
            _ => {}
        }
    }
    let (prompt, completion, source) = super::required("a usage", found)?;
    let settlement = SettleRequest {
        request_id: request_from(request_id)?,
        outcome: outcome_from(outcome.cast_signed())?,
        usage: Usage {
            prompt_tokens: Tokens(prompt),
            completion_tokens: Tokens(completion),
            source: source_from(source.cast_signed())?,
        },
        upstream_status: status,
        first_token: DurationUs(first_token),
        duration: DurationUs(duration),
        detail: detail.to_owned(),
    };
    Ok(Event::RequestSettled {
        settlement,
        cost: NanoUsd(cost.cast_signed()),
        released: NanoUsd(released.cast_signed()),
        overrun: NanoUsd(overrun.cast_signed()),
        at: TimestampUs(at),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        envelope::{PayloadView, Stored},
        id::{KeyId, RequestId},
        tenant::{Outcome, UsageSource},
    };

    fn text() -> impl Strategy<Value = String> {
        "[a-zA-Z0-9 ü]{0,200}"
    }

    fn admissions() -> impl Strategy<Value = Event> {
        let numbers = any::<(u64, u64, u64, u64, i64, i64, i64, u32, bool)>();
        let texts = (text(), text(), text(), text());
        (any::<[u8; 16]>(), texts, numbers).prop_map(|(id, (model, upstream, upstream_model, served_by), n)| {
            let price = Price { price_book_version: n.7, input_per_mtok: NanoUsd(n.4), output_per_mtok: NanoUsd(n.5) };
            let request = AdmitRequest {
                request_id: RequestId::from_bytes(id),
                key_id: KeyId::new("main").unwrap(),
                model,
                upstream,
                upstream_model,
                prompt_tokens_max: Tokens(n.0),
                completion_tokens_max: Tokens(n.1),
                price,
                deadline: TimestampUs(n.2),
                streaming: n.8,
                served_by,
            };
            Event::RequestAdmitted { request, reserved: NanoUsd(n.6), at: TimestampUs(n.3) }
        })
    }

    fn settlements() -> impl Strategy<Value = Event> {
        let numbers = any::<(u64, u64, u64, u64, u64, i64, i64, i64, u32)>();
        (any::<[u8; 16]>(), text(), numbers).prop_map(|(id, detail, n)| {
            let (prompt_tokens, completion_tokens) = (Tokens(n.0), Tokens(n.1));
            let settlement = SettleRequest {
                request_id: RequestId::from_bytes(id),
                outcome: Outcome::UpstreamCut,
                usage: Usage { prompt_tokens, completion_tokens, source: UsageSource::Counted },
                upstream_status: n.8,
                first_token: DurationUs(n.2),
                duration: DurationUs(n.3),
                detail,
            };
            let [cost, released, overrun] = [n.5, n.6, n.7].map(NanoUsd);
            Event::RequestSettled { settlement, cost, released, overrun, at: TimestampUs(n.4) }
        })
    }

    proptest! {
        #[test]
        fn what_prost_writes_is_read_and_no_prefix_panics(event in prop_oneof![admissions(), settlements()]) {
            let payload = event.to_payload();
            prop_assert_eq!(Event::from_payload(payload.view()), Ok(event));
            for end in 0..payload.bytes.len() {
                let cut = PayloadView { bytes: &payload.bytes[..end], ..payload.view() };
                drop(Event::from_payload(cut));
            }
        }
    }
}
