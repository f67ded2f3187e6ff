//! Counting tokens that nobody reports.
//!
//! Tokens cannot be counted exactly without the model's tokenizer, which only the upstream has, so there are several
//! counts, each with one use:
//! - `tokens_at_least` is a lower bound of an answer: every piece of text in a chunk is one token or more (servers send
//!   a chunk per token or batch several), and no token of the known vocabularies is longer than `TOKEN_BYTES_MAX`. It
//!   cuts a stream at its reservation, so an upstream that keeps to its bound is never cut. A server that splits one
//!   token over several chunks would break it.
//! - `tokens_estimate` of an answer is the usual guess of `TOKEN_BYTES_TYPICAL` bytes a token, and never below the
//!   lower bound. It cannot see hidden reasoning tokens.
//! - `text_tokens_estimate` is the guess for a prompt. A prompt is read as a whole, so its words can be told apart,
//!   which is nearer than bytes alone.
//!
//! The estimates are the last resort for settling, when the upstream neither reported usage nor answers a lookup. They
//! are pure: the same text gives the same number, and a longer text never a smaller one.

use events_model::Tokens;

/// Longest token, bytes: 128 spaces, in the vocabularies cl100k and o200k.
pub const TOKEN_BYTES_MAX: u64 = 128;
/// Bytes of an average English token.
pub const TOKEN_BYTES_TYPICAL: u64 = 4;
/// Longest piece of a word of Latin letters that is usually one token, bytes.
const LETTERS_TYPICAL: u64 = 7;
/// Decimal digits that are usually one token.
const DIGITS_TYPICAL: u64 = 3;
/// ASCII punctuation marks in a row that are usually one token.
const MARKS_TYPICAL: u64 = 2;

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

/// What a character usually forms tokens with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Latin letters: words.
    Letters,
    /// ASCII digits: numbers.
    Digits,
    /// ASCII punctuation and control characters.
    Marks,
    /// Every other script, emoji.
    Other,
    /// ASCII white space, which tokenizers join to the word it precedes.
    Space,
}

impl Class {
    const fn of(character: char) -> Self {
        match character {
            'a'..='z' | 'A'..='Z' | '\u{80}'..='\u{24f}' => Self::Letters,
            '0'..='9' => Self::Digits,
            ' ' | '\t' | '\n' | '\r' => Self::Space,
            '\0'..='\u{7f}' => Self::Marks,
            _ => Self::Other,
        }
    }

    /// Tokens of a run of this class; never more than its bytes.
    const fn tokens(self, bytes: u64) -> u64 {
        match self {
            Self::Letters => bytes.div_ceil(LETTERS_TYPICAL),
            Self::Digits => bytes.div_ceil(DIGITS_TYPICAL),
            Self::Marks => bytes.div_ceil(MARKS_TYPICAL),
            Self::Other => bytes.div_ceil(TOKEN_BYTES_TYPICAL),
            // The last byte is joined to what follows; a long run is cut in pieces like any other text.
            Self::Space => bytes.saturating_sub(1).div_ceil(TOKEN_BYTES_TYPICAL),
        }
    }
}

/// Estimates the tokens of a text as a byte-level BPE tokenizer would make them: word by word.
///
/// At least 1 for a text that is not empty, at most its bytes, and never less for a longer text. Against the
/// vocabularies cl100k and o200k it was mostly within a tenth for English and source code, a quarter for JSON, numbers
/// and other languages in Latin letters. For other scripts these two differ by up to three times, and the estimate lies
/// between them for most. Random text, such as base64, is about twice what is estimated.
pub fn text_tokens_estimate(text: &str) -> u64 {
    let (mut tokens, mut class, mut run_bytes) = (0_u64, Class::Space, 0_u64);
    for character in text.chars() {
        let next = Class::of(character);
        if next != class {
            tokens += class.tokens(run_bytes);
            (class, run_bytes) = (next, 0);
        }
        run_bytes += character.len_utf8() as u64;
    }
    (tokens + class.tokens(run_bytes)).max(u64::from(!text.is_empty()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Texts with their tokens in the vocabularies cl100k and o200k, as counted by tiktoken.
    const KNOWN: [(&str, u64, u64); 10] = [
        (
            "Please explain in simple words why the sky is blue at noon and red in the evening, \
             and answer in two paragraphs.",
            24,
            24,
        ),
        (
            "Bitte erkläre in einfachen Worten, warum der Himmel mittags blau und abends rot ist, \
             und antworte in zwei Absätzen.",
            35,
            28,
        ),
        (
            "Explique avec des mots simples pourquoi le ciel est bleu à midi et rouge le soir, en deux paragraphes.",
            25,
            23,
        ),
        (
            "fn main() {\n    let total: u64 = (1..=10).filter(|n| n % 2 == 0).sum();\n    println!(\"{total}\");\n}\n",
            37,
            37,
        ),
        (
            "{\"name\": \"get_weather\", \"parameters\": {\"city\": {\"type\": \"string\"}, \
             \"days\": {\"type\": \"integer\", \"maximum\": 14}}}",
            34,
            35,
        ),
        ("Invoice 2026-0817: 12 pieces at 149.95 EUR, due 2026-12-01, account 4408 1123 9050 7721.", 41, 41),
        ("Пожалуйста, объясни простыми словами, почему небо днём синее, а вечером красное.", 43, 24),
        ("请用简单的话解释为什么天空中午是蓝色的，傍晚是红色的，并用两段话回答。", 42, 28),
        ("昼の空が青く、夕方の空が赤い理由を、二つの段落でやさしく説明してください。", 39, 29),
        ("낮에는 하늘이 파랗고 저녁에는 빨간 이유를 두 문단으로 쉽게 설명해 주세요.", 41, 26),
    ];

    #[test]
    fn known_texts_are_estimated_within_a_third_of_what_tokenizers_count() {
        for (text, one, other) in KNOWN {
            let tokens = text_tokens_estimate(text);
            // Where the vocabularies differ, between them is all that can be asked.
            let (least, most) = (one.min(other) * 2 / 3, one.max(other) * 4 / 3);
            assert!((least..=most).contains(&tokens), "{tokens} for {one} or {other}: {text}");
        }
    }

    #[test]
    fn words_numbers_and_marks_are_counted_by_run() {
        for (text, tokens) in [
            ("", 0),
            (" ", 1),
            ("a", 1),
            ("one two\nthree", 3),
            ("freehold", 2),
            ("1234567", 3),
            ("a1b2", 4),
            ("(x);", 3),
            ("für", 1),
            ("слово", 3),
        ] {
            assert_eq!(text_tokens_estimate(text), tokens, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_long_text_is_nearly_free(class in "[ \\t\\n]{16,400}|[a-z]{16,400}|[0-9;:]{16,400}|[ \\n]{8,90}[a-z ]{8,90}") {
            prop_assert!(text_tokens_estimate(&class) >= class.len() as u64 / 8, "{class:?}");
        }

        #[test]
        fn a_text_is_at_least_one_token_and_at_most_its_bytes(text in any_text()) {
            let tokens = text_tokens_estimate(&text);
            prop_assert!(tokens <= text.len() as u64);
            prop_assert_eq!(tokens == 0, text.is_empty());
        }

        #[test]
        fn a_longer_text_is_never_fewer_tokens(text in any_text(), more in any_text()) {
            let longer = format!("{text}{more}");
            prop_assert!(text_tokens_estimate(&text) <= text_tokens_estimate(&longer));
        }
    }

    /// Runs of every class, and anything else.
    fn any_text() -> impl Strategy<Value = String> {
        prop_oneof!["[a-zäß]{0,30}[0-9 ]{0,9}[!-/\n ]{0,9}[一-龥а-я ]{0,9}", "\\PC{0,40}", any::<String>()]
    }

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
