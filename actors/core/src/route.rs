//! Which upstream serves a model: a pure choice from a table, a seed making ties fair.

use events_model::tenant::Price;

/// One way to serve a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Model as clients name it.
    pub model: String,
    /// Name of the upstream.
    pub upstream: String,
    /// Name of the model there.
    pub upstream_model: String,
    /// Bound on the answer when the client sets none, tokens.
    pub completion_tokens_default: u64,
    /// Bound on the answer whatever the client sets, tokens.
    pub completion_tokens_max: u64,
    /// The price in force.
    pub price: Price,
}

/// Chooses among the routes of a model: the cheapest output price wins, the seed decides between equals.
pub fn choose<'a>(routes: &'a [Route], model: &str, seed: u64) -> Option<&'a Route> {
    let serving = || routes.iter().filter(|route| route.model == model);
    let cheapest = serving().map(|route| route.price.output_per_mtok).min()?;
    let equals = || serving().filter(move |route| route.price.output_per_mtok == cheapest);
    let count = u64::try_from(equals().count()).unwrap_or(u64::MAX);
    let index = seed.checked_rem(count)?;
    equals().nth(usize::try_from(index).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use events_model::NanoUsd;

    use super::*;

    fn route(model: &str, upstream: &str, output: i64) -> Route {
        Route {
            model: model.to_owned(),
            upstream: upstream.to_owned(),
            upstream_model: model.to_owned(),
            completion_tokens_default: 16,
            completion_tokens_max: 16,
            price: Price { output_per_mtok: NanoUsd(output), ..Price::default() },
        }
    }

    #[test]
    fn the_cheapest_upstream_wins_and_the_seed_decides_between_equals() {
        let routes = [route("a", "dear", 9), route("a", "x", 5), route("a", "y", 5), route("b", "z", 1)];
        assert_eq!(choose(&routes, "a", 0).unwrap().upstream, "x");
        assert_eq!(choose(&routes, "a", 1).unwrap().upstream, "y");
        assert_eq!(choose(&routes, "none", 1), None);
    }
}
