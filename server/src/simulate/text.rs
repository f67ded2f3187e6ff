//! Deterministic words.
//!
//! Invariants: a token is one word with its leading space; no word contains a space or a character that JSON escapes,
//! so tokens can be counted by splitting at spaces and bytes can be copied into JSON as they are. The text of a choice
//! depends only on the seed, the prompt and the number of the choice; its length is drawn elsewhere.

use super::dice::mix;

/// The vocabulary: a power of two, so that the top bits of a draw choose a word.
const WORDS: [&str; 64] = [
    " the",
    " of",
    " and",
    " to",
    " a",
    " in",
    " is",
    " it",
    " log",
    " fact",
    " river",
    " stone",
    " every",
    " one",
    " only",
    " after",
    " before",
    " once",
    " keeps",
    " holds",
    " writes",
    " reads",
    " finds",
    " counts",
    " small",
    " large",
    " quiet",
    " early",
    " late",
    " open",
    " closed",
    " exact",
    " order",
    " time",
    " place",
    " name",
    " page",
    " book",
    " key",
    " door",
    " wind",
    " field",
    " light",
    " winter",
    " summer",
    " morning",
    " evening",
    " answer",
    " question",
    " reason",
    " result",
    " record",
    " moves",
    " waits",
    " begins",
    " ends",
    " returns",
    " with",
    " without",
    " between",
    " under",
    " over",
    " again",
    " never",
];
/// Bits of a draw that remain after the index of a word is taken from the top.
const WORD_SHIFT: u32 = u64::BITS - WORDS.len().trailing_zeros();
const _: () = assert!(WORDS.len().is_power_of_two());

/// An endless sequence of tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words {
    key: u64,
    index: u64,
}

impl Words {
    /// The text of one choice (from 0) for a prompt.
    pub(super) fn new(seed: u64, prompt_hash: u64, choice: u32) -> Self {
        Self { key: mix(mix(seed) ^ prompt_hash).wrapping_add(mix(choice.into())), index: 0 }
    }

    /// The next token, with its leading space.
    pub(super) fn next_word(&mut self) -> &'static str {
        let drawn = mix(self.key ^ mix(self.index));
        self.index += 1;
        WORDS.get((drawn >> WORD_SHIFT) as usize).copied().unwrap_or(" the")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_word_with_a_leading_space() {
        for word in WORDS {
            let letters = word.strip_prefix(' ').unwrap();
            assert!(!letters.is_empty() && letters.bytes().all(|byte| byte.is_ascii_lowercase()), "{word:?}");
        }
    }

    #[test]
    fn the_same_prompt_gives_the_same_text_and_another_choice_another() {
        let text = |seed, prompt, choice| {
            let mut words = Words::new(seed, prompt, choice);
            (0..40).map(|_| words.next_word()).collect::<String>()
        };
        assert_eq!(text(1, 2, 0), text(1, 2, 0));
        for other in [text(2, 2, 0), text(1, 3, 0), text(1, 2, 1)] {
            assert_ne!(text(1, 2, 0), other);
        }
    }
}
