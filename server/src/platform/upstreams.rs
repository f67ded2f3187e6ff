//! From the configuration's upstreams to clients, the price book and the routing table.

use std::fs;

use actors_core::route::Route;
use events_model::{region::PriceBookEntry, tenant::Price};
use gateway::{
    openai::MaxTokensParameter,
    upstream::{Secret, Timeouts, Upstream, UpstreamSettings},
};

use super::StartError;
use crate::config;

/// Makes a client of each upstream; nothing is connected.
pub(super) fn clients(upstreams: &[config::Upstream], in_flight_max: usize) -> Result<Vec<Upstream>, StartError> {
    upstreams.iter().map(|upstream| client(upstream, in_flight_max)).collect()
}

fn client(upstream: &config::Upstream, in_flight_max: usize) -> Result<Upstream, StartError> {
    let mut settings = UpstreamSettings::new(&upstream.name, &upstream.base_url);
    let key = upstream.read_api_key().map_err(StartError::UpstreamKey)?;
    settings.api_key = key.map(|key| Secret::new(key.expose()));
    settings.timeouts = Timeouts {
        connect: upstream.connect_timeout,
        first_byte: upstream.first_byte_timeout,
        idle: upstream.idle_timeout,
        total: upstream.total_timeout,
    };
    if upstream.max_tokens_parameter == MaxTokensParameter::MaxCompletionTokens.as_str() {
        settings.max_tokens_parameter = MaxTokensParameter::MaxCompletionTokens;
    }
    settings.usage_lookup_path.clone_from(&upstream.usage_lookup_path);
    if let Some(path) = &upstream.ca_file {
        let certificates = fs::read(path).map_err(|source| StartError::Certificates {
            upstream: upstream.name.clone(),
            path: path.clone(),
            source,
        })?;
        settings.ca_file = Some(certificates);
    }
    // The whole server may call one upstream; its own limit of requests in flight is the one that holds.
    settings.connections_max = in_flight_max.clamp(1, gateway::upstream::CONNECTIONS_MAX);
    Upstream::new(settings).map_err(StartError::Upstream)
}

/// The prices, in order of model and upstream.
pub(super) fn price_book(upstreams: &[config::Upstream]) -> Vec<PriceBookEntry> {
    let of = |upstream: &config::Upstream, model: &config::Model| PriceBookEntry {
        model: model.name.clone(),
        upstream: upstream.name.clone(),
        input_per_mtok: model.input_usd_per_mtok,
        output_per_mtok: model.output_usd_per_mtok,
    };
    let mut entries: Vec<_> =
        upstreams.iter().flat_map(|upstream| upstream.models.iter().map(move |model| of(upstream, model))).collect();
    entries.sort_unstable();
    entries
}

/// The routing table under a price book.
pub(super) fn routes(upstreams: &[config::Upstream], price_book_version: u32) -> Vec<Route> {
    let of = |upstream: &config::Upstream, model: &config::Model| Route {
        model: model.name.clone(),
        upstream: upstream.name.clone(),
        upstream_model: model.upstream_model().to_owned(),
        completion_tokens_default: model.completion_tokens_default,
        completion_tokens_max: model.completion_tokens_max,
        price: Price {
            price_book_version,
            input_per_mtok: model.input_usd_per_mtok,
            output_per_mtok: model.output_usd_per_mtok,
        },
    };
    upstreams.iter().flat_map(|upstream| upstream.models.iter().map(move |model| of(upstream, model))).collect()
}
