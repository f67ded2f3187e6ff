//! Counting what was delivered when the upstream reports no usage.
//!
//! Tokens cannot be counted exactly without the model's tokenizer, so there are two counts with two uses:
//! - `tokens_at_least` is a lower bound: every piece of text in a chunk is one token or more (servers send a chunk
//!   per token or batch several), and no token of the known vocabularies is longer than `TOKEN_BYTES_MAX`. It cuts a
//!   stream at its reservation, so an upstream that keeps to its bound is never cut. A server that splits one token
//!   over several chunks would break it.
//! - `tokens_estimate` is the usual guess of `TOKEN_BYTES_TYPICAL` bytes a token, and never below the lower bound. It
//!   is the last resort for settling, when the upstream neither reported usage nor answers a lookup. It cannot see
//!   hidden reasoning tokens.

use events_model::Tokens;

/// Longest token, bytes: 128 spaces, in the vocabularies cl100k and o200k.
pub const TOKEN_BYTES_MAX: u64 = 128;
/// Bytes of an average English token.
pub const TOKEN_BYTES_TYPICAL: u64 = 4;

/// What a stream has delivered so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Non-empty pieces of text, one per choice and chunk.
    pub pieces: u64,
    /// UTF-8 bytes of text: contents, refusals, reasoning and tool calls.
    pub bytes: u64,
}

impl Delivered {
    /// Counts the text one choice received in one chunk.
    pub const fn add_piece(&mut self, bytes: usize) {
        if bytes > 0 {
            self.pieces = self.pieces.saturating_add(1);
            self.bytes = self.bytes.saturating_add(bytes as u64);
        }
    }

    /// Adds another count.
    pub const fn add(&mut self, other: Self) {
        self.pieces = self.pieces.saturating_add(other.pieces);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    /// The tokens that were certainly delivered.
    pub fn tokens_at_least(self) -> Tokens {
        Tokens(self.pieces.max(self.bytes.div_ceil(TOKEN_BYTES_MAX)))
    }

    /// The tokens that were probably delivered.
    pub fn tokens_estimate(self) -> Tokens {
        Tokens(self.pieces.max(self.bytes.div_ceil(TOKEN_BYTES_TYPICAL)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_of_single_tokens_is_counted_exactly_at_least_and_generously_by_estimate() {
        let mut delivered = Delivered::default();
        for piece in ["", " international", " words", " go"] {
            delivered.add_piece(piece.len());
        }
        assert_eq!(delivered.tokens_at_least(), Tokens(3));
        assert_eq!(delivered.tokens_estimate(), Tokens(6));
    }

    #[test]
    fn one_large_piece_is_more_than_one_token() {
        let delivered = Delivered { pieces: 1, bytes: 1_000 };
        assert_eq!(delivered.tokens_at_least(), Tokens(8));
        assert_eq!(delivered.tokens_estimate(), Tokens(250));
    }
}
