//! The syntax of the profile files, as Python's `configparser` reads it, which AWS's own tools use.
//!
//! Where that refuses a whole file for one line, this keeps what can be read and remembers the line.

use std::collections::BTreeMap;

/// Keys in lower case and their values; lines of a value are separated by `\n`.
pub(super) type Values = BTreeMap<String, String>;

/// `[header]` and what stands below it. The same header twice is one section.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) header: String,
    pub(super) line: usize,
    pub(super) values: Values,
    /// Lines that are no keys and values.
    pub(super) broken: Vec<Broken>,
}

/// A line that cannot be read. Its text may be a secret and is not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) line: usize,
    pub(super) why: &'static str,
}

/// A file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Document {
    pub(super) sections: Vec<Section>,
    /// Lines outside of all sections, and headers that are none.
    pub(super) broken: Vec<Broken>,
}

const NO_HEADER: &str = "stands before the first [section]";
const OPEN_HEADER: &str = "begins with [ and has no ]";
const NO_EQUALS: &str = "has no =";
const NO_KEY: &str = "has nothing before the =";

/// Where the parser is.
enum At {
    Start,
    /// Below a header that cannot be read: nobody knows whose keys these are.
    Nowhere,
    Section(usize),
}

/// Reads a file. A byte order mark at its start does not count.
pub(super) fn parse(text: &str) -> Document {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n").replace('\r', "\n");
    let mut document = Document::default();
    let mut at = At::Start;
    // The key whose value goes on where a line is indented more than the key.
    let mut key: Option<String> = None;
    let mut key_indent = 0;
    for (line, number) in text.split('\n').zip(1..) {
        let value = line.trim();
        if value.starts_with(['#', ';']) {
            continue;
        }
        let current = match at {
            At::Section(index) => document.sections.get_mut(index),
            At::Start | At::Nowhere => None,
        };
        if value.is_empty() {
            // A value may have empty lines in it; those at its end go away below.
            if let (Some(section), Some(key)) = (current, &key) {
                section.extend(key, "");
            }
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        if let Some(key) = &key
            && indent > key_indent
        {
            if let Some(section) = current {
                section.extend(key, value);
            }
            continue;
        }
        key_indent = indent;
        if value.starts_with('[') {
            key = None;
            // As greedy as configparser: up to the last bracket of the line.
            let header = value.rfind(']').and_then(|end| value.get(1..end)).filter(|header| !header.is_empty());
            at = match header {
                Some(header) => At::Section(document.section(header, number)),
                None => {
                    document.broken.push(Broken { line: number, why: OPEN_HEADER });
                    At::Nowhere
                }
            };
            continue;
        }
        match (at_section(&at), value.split_once(['=', ':'])) {
            (Some(index), Some((name, text))) if !name.trim().is_empty() => {
                let name = name.trim().to_lowercase();
                if let Some(section) = document.sections.get_mut(index) {
                    section.values.insert(name.clone(), text.trim().to_owned());
                }
                key = Some(name);
            }
            (Some(index), pair) => {
                let why = if pair.is_some() { NO_KEY } else { NO_EQUALS };
                if let Some(section) = document.sections.get_mut(index) {
                    section.broken.push(Broken { line: number, why });
                }
                key = None;
            }
            (None, _) if matches!(at, At::Start) => document.broken.push(Broken { line: number, why: NO_HEADER }),
            (None, _) => {}
        }
    }
    for section in &mut document.sections {
        for value in section.values.values_mut() {
            value.truncate(value.trim_end().len());
        }
    }
    document
}

fn at_section(at: &At) -> Option<usize> {
    match at {
        At::Section(index) => Some(*index),
        At::Start | At::Nowhere => None,
    }
}

impl Section {
    fn extend(&mut self, key: &str, line: &str) {
        if let Some(value) = self.values.get_mut(key) {
            value.push('\n');
            value.push_str(line);
        }
    }
}

impl Document {
    fn section(&mut self, header: &str, line: usize) -> usize {
        if let Some(index) = self.sections.iter().position(|section| section.header == header) {
            return index;
        }
        self.sections.push(Section { header: header.to_owned(), line, ..Section::default() });
        self.sections.len() - 1
    }
}

/// The words of a header, with quotes as in a shell (Python's `shlex.split`); `None` if a quote is not closed.
pub(super) fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('"'), '\\') => {
                let escaped = characters.next()?;
                let word = word.get_or_insert_default();
                if !matches!(escaped, '"' | '\\') {
                    word.push('\\');
                }
                word.push(escaped);
            }
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '\\') => word.get_or_insert_default().push(characters.next()?),
            (None, ' ' | '\t' | '\r' | '\n') => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pairs: &[(&str, &str)]) -> Values {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_people_write_is_read() {
        let text = "\u{feff}[default]\r\nRegion = eu-west-1\r\n\r\n# a comment\r\n[profile \"x y\"] ; a comment\r\n region=r # b\r\n \
                    output : json\r\n\r\n[profile nested]\ns3 =\n  max = 1\n\n  ; no\n  min=2\n\nregion = z\n";
        let document = parse(text);
        assert_eq!(document.broken, []);
        let read: Vec<(&str, Values)> =
            document.sections.iter().map(|section| (section.header.as_str(), section.values.clone())).collect();
        assert_eq!(
            read,
            [
                ("default", values(&[("region", "eu-west-1")])),
                ("profile \"x y\"", values(&[("region", "r # b"), ("output", "json")])),
                ("profile nested", values(&[("s3", "\nmax = 1\n\nmin=2"), ("region", "z")])),
            ]
        );
    }

    #[test]
    fn a_line_that_is_none_costs_itself_and_is_remembered() {
        let document =
            parse("stray = 1\n[a]\nregion eu-west-1\n= x\nkey = 1\n[profile b\nkey = lost\n[a]\nother = 2\n[]\n");
        let broken = |line, why| Broken { line, why };
        assert_eq!(document.broken, [broken(1, NO_HEADER), broken(6, OPEN_HEADER), broken(10, OPEN_HEADER)]);
        assert_eq!(document.sections.len(), 1);
        assert_eq!(document.sections[0].broken, [broken(3, NO_EQUALS), broken(4, NO_KEY)]);
        assert_eq!(document.sections[0].values, values(&[("key", "1"), ("other", "2")]));
    }

    #[test]
    fn headers_have_words_as_in_a_shell() {
        for (text, expected) in [
            ("profile dev", Some(vec!["profile", "dev"])),
            ("profile \"o'brien x\"", Some(vec!["profile", "o'brien x"])),
            ("profile 'a \"b\" \\'", Some(vec!["profile", "a \"b\" \\"])),
            ("profile  a#b", Some(vec!["profile", "a#b"])),
            ("profile a\\ b", Some(vec!["profile", "a b"])),
            (r#"profile "a\"b\\c\d""#, Some(vec!["profile", r#"a"b\c\d"#])),
            ("profile ''", Some(vec!["profile", ""])),
            ("profile o'brien", None),
            ("profile a\\", None),
            ("", Some(vec![])),
        ] {
            let expected = expected.map(|words| words.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(words(text), expected, "{text}");
        }
    }
}
