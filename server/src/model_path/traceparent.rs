//! The W3C trace context a caller brings: valid ones are kept with the commit and sent on, others are ignored, as the
//! recommendation demands.

/// Bytes of a `traceparent` of version 00.
const BYTES: usize = 55;

/// Reads a `traceparent` header; the result is of version 00.
///
/// A header of a later version counts as its first four fields, which every version shares.
pub fn parse(header: &str) -> Option<String> {
    let known = header.get(..BYTES)?;
    let rest = header.get(BYTES..)?;
    let mut fields = known.split('-');
    let (version, trace, parent, flags) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let hex = |text: &str, len: usize| {
        text.len() == len && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let is_set = |text: &str| text.bytes().any(|byte| byte != b'0');
    let is_whole = if version == "00" { rest.is_empty() } else { rest.is_empty() || rest.starts_with('-') };
    let is_valid = hex(version, 2) && hex(trace, 32) && hex(parent, 16) && hex(flags, 2) && fields.next().is_none();
    (is_valid && is_whole && version != "ff" && is_set(trace) && is_set(parent))
        .then(|| format!("00-{trace}-{parent}-{flags}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_valid_context_is_kept_and_a_later_version_is_read_as_the_first() {
        assert_eq!(parse(GOOD).as_deref(), Some(GOOD));
        let later = format!("cc{}-what-comes", &GOOD[2..]);
        assert_eq!(parse(&later).as_deref(), Some(GOOD));
    }

    #[test]
    fn anything_else_is_ignored() {
        let zero_trace = GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32));
        let zero_parent = GOOD.replace("00f067aa0ba902b7", &"0".repeat(16));
        for text in [
            "",
            "00-1-2-01",
            &GOOD.to_uppercase(),
            &format!("{GOOD}-x"),
            &format!("{GOOD} "),
            &GOOD.replacen("00", "ff", 1),
            &zero_trace,
            &zero_parent,
            &GOOD.replace("-01", "-0g"),
            &"é".repeat(40),
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
