//! A parser of event streams (section 9.2.6 of the HTML standard, "Interpreting an event stream").
//!
//! Guarantees: the input may be split anywhere. A block without data is no event; its id counts.

/// One event as it was sent, of any server and with any text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Block {
    /// The `id:` field of this block. An empty one clears the last id.
    pub id: Option<String>,
    /// The `event:` field. A WebSocket message has none.
    pub name: Option<String>,
    /// The lines of the `data:` fields, joined with `\n`; or a WebSocket message.
    pub data: String,
}

/// What a stream has sent, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// An event.
    Event(Block),
    /// The id of a block without data. It is the last id of the stream from here on; an empty one clears it.
    Id(String),
}

/// A parser of one stream. It holds at most one block.
#[derive(Debug, Default)]
pub(super) struct Parser {
    /// The bytes of a line that is not complete.
    line: Vec<u8>,
    /// The last byte was a carriage return: a line feed that follows belongs to it.
    after_cr: bool,
    /// The stream has begun, so a byte order mark is no longer skipped.
    has_begun: bool,
    /// The last `id:` of the stream, also of a block without data.
    pub(super) last_id: Option<String>,
    id: Option<String>,
    name: Option<String>,
    data: Option<String>,
    /// The last `retry:`, in milliseconds.
    pub(super) retry_ms: Option<u64>,
}

impl Parser {
    /// Parses bytes and passes on each complete event, and each id of a block without data.
    pub(super) fn push(&mut self, bytes: &[u8], mut on_part: impl FnMut(Part)) {
        for byte in bytes {
            let after_cr = std::mem::replace(&mut self.after_cr, *byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => {
                    let line = std::mem::take(&mut self.line);
                    let mut line = String::from_utf8_lossy(&line);
                    if !std::mem::replace(&mut self.has_begun, true)
                        && let Some(rest) = line.strip_prefix('\u{feff}')
                    {
                        line = rest.to_owned().into();
                    }
                    self.on_line(&line, &mut on_part);
                }
                other => self.line.push(*other),
            }
        }
    }

    /// Returns the bytes that are held.
    pub(super) fn held_bytes(&self) -> usize {
        let fields = [&self.id, &self.name, &self.data];
        self.line.len() + fields.into_iter().flatten().map(String::len).sum::<usize>()
    }

    fn on_line(&mut self, line: &str, on_part: &mut impl FnMut(Part)) {
        if line.is_empty() {
            let (id, name) = (self.id.take(), self.name.take());
            if id.is_some() {
                self.last_id.clone_from(&id);
            }
            match self.data.take() {
                Some(data) => on_part(Part::Event(Block { id, name, data })),
                None => id.into_iter().for_each(|id| on_part(Part::Id(id))),
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.name = Some(value.to_owned()).filter(|name| !name.is_empty()),
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            "retry" if value.bytes().all(|byte| byte.is_ascii_digit()) => self.retry_ms = value.parse().ok(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(chunks: &[&[u8]]) -> (Vec<Part>, Option<u64>) {
        let (mut parser, mut parts) = (Parser::default(), Vec::new());
        for chunk in chunks {
            parser.push(chunk, |part| parts.push(part));
        }
        (parts, parser.retry_ms)
    }

    fn event(id: Option<&str>, name: Option<&str>, data: &str) -> Part {
        Part::Event(Block { id: id.map(str::to_owned), name: name.map(str::to_owned), data: data.to_owned() })
    }

    #[test]
    fn streams_are_parsed_as_the_standard_says() {
        let stream = "\u{feff}retry: 1500\nid: a\nevent: x\ndata: 1\n\n: comment\n\ndata\n\ndata:2\ndata: 3\r\n\r\nid\r\rdata:  4\n\nevent: y\n\nid: 6\nevent: z\n\ndata: 5\n\ndata: cut";
        let expected = vec![
            event(Some("a"), Some("x"), "1"),
            event(None, None, ""),
            event(None, None, "2\n3"),
            Part::Id(String::new()),
            event(None, None, " 4"),
            Part::Id("6".to_owned()),
            event(None, None, "5"),
        ];
        assert_eq!(parse(&[stream.as_bytes()]), (expected, Some(1500)));
    }

    proptest! {
        #[test]
        fn every_split_gives_the_same_events(
            parts in prop::collection::vec(prop::sample::select(vec!["data: 1", "id: 2", "event: é", "\n", "\r\n", "\r", "\n\n", ": c", "retry: 5"]), 0..30),
            cut in any::<prop::sample::Index>(),
        ) {
            let stream = parts.concat().into_bytes();
            let at = cut.index(stream.len() + 1);
            prop_assert_eq!(parse(&[&stream]), parse(&[&stream[..at], &stream[at..]]));
        }
    }
}
