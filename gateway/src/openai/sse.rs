//! Server-sent events: an incremental reader of the data of events, and the writer of one event.
//!
//! A pure state machine: bytes in, in pieces cut anywhere; whole events out. It follows the WHATWG event-stream rules:
//! lines end with LF, CR or CRLF, a leading byte-order mark is skipped, comments are skipped, several `data` lines are
//! joined by LF, an event without data is none. Deliberately absent: `event`, `id` and `retry`, which no
//! OpenAI-compatible stream needs. Texts are not decoded here, so a cut inside a character is no special case.

use bytes::Bytes;

/// Largest event, and largest line, bytes.
pub const EVENT_BYTES_MAX: usize = 1024 * 1024;
/// Data of the event that ends a stream.
pub const DONE: &[u8] = b"[DONE]";

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// An event is larger than `EVENT_BYTES_MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream is larger than {EVENT_BYTES_MAX} bytes")]
pub struct EventTooLarge;

/// Reads events from bytes as they arrive.
#[derive(Debug, Default)]
pub struct Reader {
    /// The beginning of a line whose end has not arrived.
    line: Vec<u8>,
    /// The data of the event so far, each line followed by LF.
    data: Vec<u8>,
    /// The last byte was CR, so an LF that follows belongs to it.
    after_cr: bool,
    /// The first line has been read, so a byte-order mark is no longer one.
    begun: bool,
}

impl Reader {
    /// Takes the next bytes and appends the data of each event they complete.
    ///
    /// # Errors
    /// The event is too large; the reader must not be used again.
    pub fn push(&mut self, mut bytes: &[u8], events: &mut impl Extend<Bytes>) -> Result<(), EventTooLarge> {
        if self.after_cr && !bytes.is_empty() {
            self.after_cr = false;
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            let (line, rest) = bytes.split_at(end);
            let is_cr = rest.first() == Some(&b'\r');
            bytes = rest.get(1..).unwrap_or_default();
            if is_cr {
                self.after_cr = bytes.is_empty();
                bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
            }
            let event = if self.line.is_empty() {
                self.end_line(line)?
            } else {
                self.begin_line(line)?;
                let whole = std::mem::take(&mut self.line);
                self.end_line(&whole)?
            };
            events.extend(event);
        }
        self.begin_line(bytes)
    }

    /// Ends the stream: the data of an event whose empty last line never came, unless nothing is pending.
    ///
    /// By the rules such an event is dropped; some servers omit the last empty line after `[DONE]`, so the caller may
    /// look whether it is that.
    pub fn finish(mut self) -> Option<Bytes> {
        let line = std::mem::take(&mut self.line);
        self.end_line(&line).ok().flatten().or_else(|| self.take_event())
    }

    fn begin_line(&mut self, piece: &[u8]) -> Result<(), EventTooLarge> {
        self.check_size(self.line.len() + piece.len())?;
        self.line.extend_from_slice(piece);
        Ok(())
    }

    fn end_line(&mut self, line: &[u8]) -> Result<Option<Bytes>, EventTooLarge> {
        let line = match line.strip_prefix(BYTE_ORDER_MARK) {
            Some(rest) if !self.begun => rest,
            _ => line,
        };
        self.begun = true;
        if line.is_empty() {
            return Ok(self.take_event());
        }
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(colon);
        if name == b"data" {
            let value = value.strip_prefix(b":").unwrap_or(value);
            let value = value.strip_prefix(b" ").unwrap_or(value);
            self.check_size(self.data.len() + value.len())?;
            self.data.extend_from_slice(value);
            self.data.push(b'\n');
        }
        Ok(None)
    }

    fn take_event(&mut self) -> Option<Bytes> {
        let mut data = std::mem::take(&mut self.data);
        data.pop().map(|_| data.into())
    }

    const fn check_size(&self, bytes: usize) -> Result<(), EventTooLarge> {
        if bytes > EVENT_BYTES_MAX { Err(EventTooLarge) } else { Ok(()) }
    }
}

/// Writes one event; the data must hold no line break, as compact JSON does not.
pub fn frame(data: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(data.len() + 8);
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\n\n");
    out.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(pieces: &[&[u8]]) -> Vec<Bytes> {
        let mut reader = Reader::default();
        let mut events = Vec::new();
        for piece in pieces {
            reader.push(piece, &mut events).unwrap();
        }
        events
    }

    #[test]
    fn every_kind_of_line_is_read_as_the_standard_says() {
        let stream = "\u{feff}data: one\n\n: comment\r\n\r\ndata:two\r\rdata: a\r\ndata\r\ndata:  b\r\n\r\n\
                      event: x\nid: 1\n\ndatum: no\n\ndata: last";
        assert_eq!(read(&[stream.as_bytes()]), ["one", "two", "a\n\n b"]);
        let second = "\u{feff}data: one\n\n\u{feff}data: two\n\n";
        assert_eq!(read(&[second.as_bytes()]), ["one"], "a mark is one only at the beginning");
    }

    #[test]
    fn a_carriage_return_at_the_end_of_a_piece_ends_the_line_at_once() {
        assert_eq!(read(&[b"data: a\r\n\r"]), ["a"]);
        assert_eq!(read(&[b"data: a\r", b"\n\r", b"\ndata: b\r", b"\n\r\n"]), ["a", "b"]);
    }

    #[test]
    fn an_event_over_the_limit_is_refused_however_it_arrives() {
        let mut reader = Reader::default();
        let mut events = Vec::new();
        let piece = [b'x'; 1_000];
        reader.push(b"data: ", &mut events).unwrap();
        let refused = (0..2_000).find(|_| reader.push(&piece, &mut events).is_err());
        assert_eq!(refused, Some(EVENT_BYTES_MAX / 1_000));

        let mut reader = Reader::default();
        let line = b"data: 0123456789\n";
        let refused = (0..EVENT_BYTES_MAX).find(|_| reader.push(line, &mut events).is_err());
        assert_eq!(refused, Some((EVENT_BYTES_MAX - 10).div_ceil(11)));
        assert!(events.is_empty());
    }

    #[test]
    fn what_is_left_at_the_end_is_told_once_asked_for() {
        for (stream, left) in [("data: [DONE]", Some("[DONE]")), ("data: [DONE]\n", Some("[DONE]")), (": x", None)] {
            let mut reader = Reader::default();
            reader.push(stream.as_bytes(), &mut Vec::new()).unwrap();
            assert_eq!(reader.finish().as_deref(), left.map(str::as_bytes), "{stream}");
        }
    }

    fn line_end() -> impl Strategy<Value = &'static str> {
        prop_oneof![Just("\n"), Just("\r\n"), Just("\r")]
    }

    proptest! {
        #[test]
        fn any_split_of_any_events_gives_the_same_events(
            events in prop::collection::vec(
                (prop::collection::vec("[^\r\n]{0,12}", 1..3), line_end(), any::<bool>(), any::<bool>()),
                0..6,
            ),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let mut stream = String::new();
            let mut expected = Vec::new();
            for (lines, end, comment, space) in &events {
                if *comment {
                    stream.push_str(&format!(": note{end}event: e{end}"));
                }
                for line in lines {
                    // Without the optional space a line that begins with one would lose it.
                    let space = if *space || line.starts_with(' ') { " " } else { "" };
                    stream.push_str(&format!("data:{space}{line}{end}"));
                }
                stream.push_str(end);
                expected.push(Bytes::from(lines.join("\n")));
            }
            let bytes = stream.as_bytes();
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(read(&pieces), expected);
        }

        #[test]
        fn any_bytes_one_at_a_time_give_what_they_give_at_once(
            bytes in prop::collection::vec(
                prop_oneof![Just(b'\n'), Just(b'\r'), Just(b':'), Just(b' '), Just(b'd'), any::<u8>()],
                0..200,
            ),
        ) {
            let text = [b"data: x\ndata".as_slice(), &bytes].concat();
            let singles: Vec<_> = text.chunks(1).collect();
            prop_assert_eq!(read(&singles), read(&[&text]));
        }
    }
}
