//! Which upstreams there are, which models they serve at which price, and how long their calls may hold money.

use std::{collections::BTreeMap, time::Duration};

use actors_core::route::{self, Route};
use events_model::DurationUs;
use gateway::upstream::Upstream;
use sha2::{Digest as _, Sha256};

/// Longest time an upstream is asked what it billed, before what was delivered is counted instead.
pub const USAGE_LOOKUP_MAX: Duration = Duration::from_secs(15);

/// How long what fell due while nobody could act waits: a question to the upstream, and a grace for recording the
/// answer.
pub fn overdue_grace(reservation_grace: Duration) -> Duration {
    USAGE_LOOKUP_MAX.saturating_add(reservation_grace)
}

/// The routing table in force and the upstreams behind it.
#[derive(Debug)]
pub struct Routing {
    routes: Vec<Route>,
    upstreams: BTreeMap<String, Upstream>,
    version: u32,
    reservation_grace: Duration,
}

impl Routing {
    /// Takes a table and the upstreams it names.
    pub fn new(routes: Vec<Route>, upstreams: Vec<Upstream>, reservation_grace: Duration) -> Self {
        let version = fingerprint(&routes);
        let upstreams = upstreams.into_iter().map(|upstream| (upstream.settings().name.clone(), upstream)).collect();
        Self { routes, upstreams, version, reservation_grace }
    }

    /// The version that is recorded with decisions: the first 32 bits of the table's SHA-256, so that two decisions
    /// made under the same table say so, on whatever machine.
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// Chooses the way of a request.
    pub fn choose(&self, model: &str, seed: u64) -> Option<&Route> {
        route::choose(&self.routes, model, seed)
    }

    /// An upstream by name.
    pub fn upstream(&self, name: &str) -> Option<&Upstream> {
        self.upstreams.get(name)
    }

    /// The models clients may name, in order, each once.
    pub fn models(&self) -> Vec<&str> {
        let mut models: Vec<_> = self.routes.iter().map(|route| route.model.as_str()).collect();
        models.sort_unstable();
        models.dedup();
        models
    }

    /// How long after a start an overdue reservation is still kept, so that its upstream can be asked.
    pub fn overdue_grace(&self) -> DurationUs {
        micros(overdue_grace(self.reservation_grace))
    }

    /// How long a reservation for a call lasts: the call, the question what it was billed (if it can be asked), and a
    /// grace for recording that.
    pub fn reservation_span(&self, upstream: &Upstream) -> DurationUs {
        let settings = upstream.settings();
        let lookup = if settings.usage_lookup_path.is_some() { USAGE_LOOKUP_MAX } else { Duration::ZERO };
        micros(settings.timeouts.total.saturating_add(lookup).saturating_add(self.reservation_grace))
    }
}

/// A span in microseconds.
pub fn micros(span: Duration) -> DurationUs {
    DurationUs(u64::try_from(span.as_micros()).unwrap_or(u64::MAX))
}

fn fingerprint(routes: &[Route]) -> u32 {
    let mut hash = Sha256::new();
    for route in routes {
        for text in [&route.model, &route.upstream, &route.upstream_model] {
            hash.update(text.as_bytes());
            hash.update([0]);
        }
        for number in [route.completion_tokens_default, route.completion_tokens_max] {
            hash.update(number.to_le_bytes());
        }
        for price in [route.price.input_per_mtok, route.price.output_per_mtok] {
            hash.update(price.0.to_le_bytes());
        }
    }
    let digest = hash.finalize();
    digest.iter().take(4).fold(0, |version, byte| (version << 8) | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use events_model::tenant::Price;

    use super::*;

    fn route(model: &str) -> Route {
        Route {
            model: model.to_owned(),
            upstream: "sim".to_owned(),
            upstream_model: model.to_owned(),
            completion_tokens_default: 16,
            completion_tokens_max: 64,
            price: Price::default(),
        }
    }

    #[test]
    fn the_version_follows_the_table_and_models_are_listed_once() {
        let table = |models: &[&str]| Routing::new(models.iter().copied().map(route).collect(), vec![], Duration::ZERO);
        assert_eq!(table(&["b", "a", "b"]).models(), ["a", "b"]);
        assert_eq!(table(&["a"]).version(), table(&["a"]).version());
        assert_ne!(table(&["a"]).version(), table(&["b"]).version());
    }
}
