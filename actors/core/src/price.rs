//! What tokens cost: integer nano-USD, one rounding (upwards) per line of a bill.

use events_model::{
    NanoUsd, Tokens,
    tenant::{Price, Usage},
};

/// Tokens that a price is for.
pub const TOKENS_PER_PRICE: i128 = 1_000_000;

/// Prices some tokens; a fraction of a nano-dollar counts as a whole one.
pub fn line(tokens: Tokens, per_mtok: NanoUsd) -> NanoUsd {
    let product = i128::from(tokens.0).saturating_mul(i128::from(per_mtok.0.max(0)));
    let rounded = product.saturating_add(TOKENS_PER_PRICE.saturating_sub(1)).checked_div(TOKENS_PER_PRICE);
    NanoUsd(rounded.and_then(|nano| i64::try_from(nano).ok()).unwrap_or(i64::MAX))
}

/// Prices a prompt and an answer, two lines.
pub fn cost(price: &Price, prompt: Tokens, completion: Tokens) -> NanoUsd {
    line(prompt, price.input_per_mtok).plus(line(completion, price.output_per_mtok))
}

/// Prices what a request used.
pub fn usage_cost(price: &Price, usage: &Usage) -> NanoUsd {
    cost(price, usage.prompt_tokens, usage.completion_tokens)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_fraction_of_a_nano_dollar_rounds_up_once_per_line() {
        let price = Price { price_book_version: 1, input_per_mtok: NanoUsd(1), output_per_mtok: NanoUsd(1) };
        assert_eq!(cost(&price, Tokens(1), Tokens(1)), NanoUsd(2));
        assert_eq!(cost(&price, Tokens(1_000_000), Tokens(0)), NanoUsd(1));
        let dear = Price { output_per_mtok: NanoUsd::from_usd(15), ..price };
        assert_eq!(cost(&dear, Tokens(0), Tokens(7)), NanoUsd(105_000));
    }

    proptest! {
        #[test]
        fn more_tokens_never_cost_less(
            prompt in any::<u64>(), completion in any::<u64>(), more in any::<u64>(),
            input in 0..i64::MAX, output in 0..i64::MAX,
        ) {
            let price = Price {
                price_book_version: 1, input_per_mtok: NanoUsd(input), output_per_mtok: NanoUsd(output),
            };
            let less = cost(&price, Tokens(prompt), Tokens(completion));
            prop_assert!(less <= cost(&price, Tokens(prompt).plus(Tokens(more)), Tokens(completion)));
            prop_assert!(less <= cost(&price, Tokens(prompt), Tokens(completion).plus(Tokens(more))));
        }
    }
}
