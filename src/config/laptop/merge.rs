//! Documents laid over each other key by key, with a memory of which source each key came from.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// One source of keys.
#[derive(Clone)]
pub(super) struct Layer {
    /// As messages name it: a file, the parameter, a flag or a variable.
    pub(super) source: String,
    /// Where the environment stands in the source, so that messages give keys as they are written there: `env.prod` in a
    /// file, nothing in the parameter. `None`: the source is a single value (a flag, a variable) and has no keys.
    pub(super) prefix: Option<String>,
    pub(super) keys: Map<String, Value>,
}

/// Where a key of the merged document came from, by index into the sources.
enum Origin {
    Value(usize),
    /// The documents that have this table.
    Table(BTreeSet<usize>),
}

/// Whose mistake it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Blame {
    pub(super) source: String,
    /// The key as it is written in that source.
    pub(super) key: String,
    /// No source has the key: the sources named are those that have the table it belongs to.
    pub(super) missing: bool,
}

/// The outcome of laying documents over each other.
pub(super) struct Merged {
    pub(super) value: Value,
    sources: Vec<(String, Option<String>)>,
    origins: BTreeMap<String, Origin>,
}

impl Merged {
    /// Lays `layers`, highest precedence first, over each other.
    pub(super) fn new(layers: Vec<Layer>) -> Self {
        let mut origins = BTreeMap::new();
        let mut all = Map::new();
        let mut sources = Vec::new();
        for (source, layer) in layers.into_iter().enumerate().rev() {
            let is_document = layer.prefix.is_some();
            sources.push((layer.source, layer.prefix));
            overlay(&mut all, layer.keys, &mut Vec::new(), source, is_document, &mut origins);
        }
        sources.reverse();
        Self { value: Value::Object(all), sources, origins }
    }

    /// The source of every value that is set, by dotted key (`access.read.task_definition`).
    pub(super) fn origins(&self) -> BTreeMap<String, String> {
        let values = self.origins.iter().filter_map(|(key, origin)| match origin {
            Origin::Value(source) => Some((key.clone(), self.sources.get(*source)?.0.clone())),
            Origin::Table(_) => None,
        });
        values.collect()
    }

    /// The source to name for a mistake at `key` of the merged document.
    pub(super) fn blame(&self, key: &str) -> Blame {
        let mut path = key;
        let (sources, missing) = loop {
            match self.origins.get(path) {
                Some(Origin::Value(source)) => break (BTreeSet::from([*source]), false),
                Some(Origin::Table(sources)) => break (sources.clone(), path != key),
                None if path.is_empty() => break (BTreeSet::new(), true),
                None => path = path.rsplit_once('.').map_or("", |(parent, _)| parent),
            }
        };
        let named: Vec<_> = sources.iter().filter_map(|source| self.sources.get(*source)).collect();
        let key = match named.as_slice() {
            [(_, None)] => String::new(),
            [(_, Some(prefix))] if !prefix.is_empty() => format!("{prefix}.{key}"),
            _ => key.to_owned(),
        };
        let source = named.iter().map(|(source, _)| source.as_str()).collect::<Vec<_>>().join(" + ");
        Blame { source, key, missing }
    }
}

fn overlay(
    base: &mut Map<String, Value>,
    over: Map<String, Value>,
    path: &mut Vec<String>,
    source: usize,
    is_document: bool,
    origins: &mut BTreeMap<String, Origin>,
) {
    if let Origin::Table(sources) = origins.entry(path.join(".")).or_insert_with(|| Origin::Table(BTreeSet::new()))
        && is_document
    {
        sources.insert(source);
    }
    for (key, value) in over {
        path.push(key.clone());
        match value {
            Value::Object(over) if !is_one_choice(path) => {
                let slot = base.entry(key).or_insert(Value::Null);
                if !slot.is_object() {
                    forget(origins, &path.join("."));
                    *slot = Value::Object(Map::new());
                }
                if let Value::Object(inner) = slot {
                    overlay(inner, over, path, source, is_document, origins);
                }
            }
            value => {
                forget(origins, &path.join("."));
                origins.insert(path.join("."), Origin::Value(source));
                base.insert(key, value);
            }
        }
        path.pop();
    }
}

/// A credential is one choice, not a table to mix: a file's `rds_iam` replaces the parameter's `client`, and the reverse.
pub(super) fn is_one_choice(path: &[String]) -> bool {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    matches!(path.as_slice(), ["access", _, "target", _, "credential"])
}

/// Forgets `path` and everything below it: another source has replaced it.
fn forget(origins: &mut BTreeMap<String, Origin>, path: &str) {
    origins.remove(path);
    let below = format!("{path}.");
    let gone = origins.range(below.clone()..).map(|(key, _)| key).take_while(|key| key.starts_with(&below));
    for key in gone.cloned().collect::<Vec<_>>() {
        origins.remove(&key);
    }
}
