//! A cursor over one table of a configuration document that collects mistakes instead of stopping at the first.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::config::problem::Problems;

/// One table (JSON object) and where it stands. Every key that is asked for is known; [`Table::finish`] reports the rest.
pub(super) struct Table<'a> {
    source: &'a str,
    path: String,
    map: &'a Map<String, Value>,
    known: BTreeSet<&'static str>,
}

impl<'a> Table<'a> {
    /// The table at `path`, or a problem if `value` is not one.
    pub(super) fn new(source: &'a str, path: &str, value: &'a Value, problems: &mut Problems) -> Option<Self> {
        match value {
            Value::Object(map) => Some(Self { source, path: path.to_owned(), map, known: BTreeSet::new() }),
            other => {
                problems.add(
                    source,
                    path,
                    format!("is {}, not a table", kind(other)),
                    "write a table of keys and values",
                );
                None
            }
        }
    }

    pub(super) fn source(&self) -> &'a str {
        self.source
    }

    /// The full name of `key`, as messages show it.
    pub(super) fn key(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }

    pub(super) fn value(&mut self, key: &'static str) -> Option<&'a Value> {
        self.known.insert(key);
        self.map.get(key)
    }

    /// The entries of the table, for tables whose keys are names.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
        self.map.iter()
    }

    /// The entry of this name, for tables whose keys are names.
    #[cfg(feature = "launcher")]
    pub(super) fn entry(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name)
    }

    pub(super) fn problem(
        &self,
        problems: &mut Problems,
        key: &str,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        problems.add(self.source, &self.key(key), message, fix);
    }

    pub(super) fn table(&mut self, key: &'static str, problems: &mut Problems) -> Option<Self> {
        let value = self.value(key)?;
        Self::new(self.source, &self.key(key), value, problems)
    }

    /// A string in one line.
    pub(super) fn string(&mut self, key: &'static str, problems: &mut Problems) -> Option<&'a str> {
        let text = self.text(key, problems)?;
        if text.chars().any(char::is_control) {
            let fix = "write it without control characters and line ends";
            self.problem(problems, key, format!("is {text:?}"), fix);
            return None;
        }
        Some(text)
    }

    /// A string that may have lines.
    pub(super) fn text(&mut self, key: &'static str, problems: &mut Problems) -> Option<&'a str> {
        match self.value(key)? {
            Value::String(text) if text.is_empty() => {
                self.problem(problems, key, "is empty", "give a value or leave the key out");
                None
            }
            Value::String(text) => Some(text),
            other => {
                self.problem(problems, key, format!("is {}, not text", kind(other)), "write it in quotes");
                None
            }
        }
    }

    /// A string that must be there; `example` shows what one looks like.
    pub(super) fn required(&mut self, key: &'static str, example: &str, problems: &mut Problems) -> Option<&'a str> {
        if !self.map.contains_key(key) {
            self.known.insert(key);
            self.problem(problems, key, "is missing", format!("add it, for example {key} = {example:?}"));
            return None;
        }
        self.string(key, problems)
    }

    pub(super) fn strings(&mut self, key: &'static str, problems: &mut Problems) -> Option<Vec<String>> {
        let value = self.value(key)?;
        let all = value
            .as_array()
            .and_then(|items| items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>());
        if all.is_none() {
            self.problem(
                problems,
                key,
                format!("is {}, not a list of texts", kind(value)),
                format!("write {key} = [\"…\"]"),
            );
        }
        all
    }

    pub(super) fn boolean(&mut self, key: &'static str, problems: &mut Problems) -> Option<bool> {
        let value = self.value(key)?;
        if value.as_bool().is_none() {
            self.problem(problems, key, format!("is {}, not true or false", kind(value)), "write true or false");
        }
        value.as_bool()
    }

    pub(super) fn port(&mut self, key: &'static str, problems: &mut Problems) -> Option<u16> {
        let value = self.value(key)?;
        let port = value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|port| *port > 0);
        if port.is_none() {
            self.problem(problems, key, format!("is {value}, not a port"), "write a number from 1 to 65535");
        }
        port
    }

    pub(super) fn count(&mut self, key: &'static str, problems: &mut Problems) -> Option<usize> {
        let value = self.value(key)?;
        let count = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|count| *count > 0);
        if count.is_none() {
            self.problem(problems, key, format!("is {value}, not a count"), "write a whole number of at least 1");
        }
        count
    }

    /// A duration with a unit, like `30m` or `8h`.
    pub(super) fn duration(&mut self, key: &'static str, problems: &mut Problems) -> Option<Duration> {
        let value = self.value(key)?;
        let parsed = value.as_str().and_then(|text| humantime::parse_duration(text).ok()).filter(|d| !d.is_zero());
        if parsed.is_none() {
            self.problem(
                problems,
                key,
                format!("is {value}, not a duration"),
                "write a number with a unit in quotes, for example \"30m\" or \"8h\"",
            );
        }
        parsed
    }

    pub(super) fn ip(&mut self, key: &'static str, problems: &mut Problems) -> Option<IpAddr> {
        let text = self.string(key, problems)?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.problem(
                problems,
                key,
                format!("is {text:?}, not an IP address"),
                "write an address like \"10.0.3.7\"",
            );
        }
        parsed
    }

    /// Reports every key that nobody asked for, with the nearest known one.
    pub(super) fn finish(self, problems: &mut Problems) {
        for key in self.map.keys().filter(|key| !self.known.contains(key.as_str())) {
            let known: Vec<&str> = self.known.iter().copied().collect();
            let fix = match nearest(key, known.iter().copied()) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("known keys here are {}", known.join(", ")),
            };
            self.problem(problems, key, "is not a known key", fix);
        }
    }
}

/// The name in `names` that `typed` was probably meant to be.
pub(crate) fn nearest<'n>(typed: &str, names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    names
        .into_iter()
        .map(|name| (strsim::jaro_winkler(typed, name), name))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Array(_) => "a list",
        Value::Bool(_) => "true or false",
        Value::Null => "null",
        Value::Number(_) => "a number",
        Value::Object(_) => "a table",
        Value::String(_) => "text",
    }
}
