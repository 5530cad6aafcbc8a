//! What the `bastion.toml` of a project decides: for the person to trust or not, and to see.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::config::laptop::files::Files;
use crate::config::laptop::merge::{Layer, Merged, is_one_choice};
use crate::config::problem::Problems;

/// How the SSM parameter of an environment is called as a source.
pub(super) const PARAMETER: &str = "SSM parameter /bastion/";

/// The keys that decide nothing about where a person is sent, what is signed there and what an administrator is told to run:
/// everything else needs trust, also what later versions will know.
const HARMLESS: [&str; 3] = ["idle_stop", "lanes", "max_age"];

/// What the project's file decides about the environment `name`, or about every one: dotted key, as in the file, and value.
pub(crate) fn claims(name: Option<&str>, files: &Files) -> Vec<(String, String)> {
    let only_project = Files { project: files.project.clone(), user: None };
    let mut found = Vec::new();
    // A file with mistakes decides nothing: it is reported, and nothing goes on.
    for (_, document) in only_project.documents(&mut Problems::default()) {
        for (environment, value) in document.get("env").and_then(Value::as_object).into_iter().flatten() {
            if name.is_none_or(|name| name == environment) {
                leaves(value, &mut Vec::new(), &mut |path, value| {
                    if !matches!(path, [key] if HARMLESS.contains(&key.as_str())) {
                        found.push((format!("env.{environment}.{}", path.join(".")), value.to_string()));
                    }
                });
            }
        }
    }
    found
}

/// Every value of the project's file that is in effect and that `others`, which know the environment too, have otherwise.
pub(super) fn changes(
    project: &str,
    merged: &Merged,
    origins: &BTreeMap<String, String>,
    others: Vec<Layer>,
) -> Vec<String> {
    let places: Vec<String> = others.iter().map(|layer| place(&layer.source)).collect();
    if places.is_empty() {
        return Vec::new();
    }
    let others = Merged::new(others);
    let below = others.origins();
    let mut sentences = Vec::new();
    for key in origins.iter().filter(|(_, source)| source.as_str() == project).map(|(key, _)| key) {
        let pointer = format!("/{}", key.replace('.', "/"));
        match below.get(key) {
            Some(_) if merged.value.pointer(&pointer) == others.value.pointer(&pointer) => {}
            Some(source) => sentences.push(format!("{project} overrides {key} of {}", place(source))),
            None => sentences.push(format!("{project} adds {key} to {}", places.join(" and "))),
        }
    }
    sentences
}

fn place(source: &str) -> String {
    if source.starts_with(PARAMETER) { "the deployed environment".to_owned() } else { source.to_owned() }
}

/// Calls `found` for every value below `value` that is no table of others.
fn leaves(value: &Value, path: &mut Vec<String>, found: &mut impl FnMut(&[String], &Value)) {
    match value {
        Value::Object(entries) if !entries.is_empty() && !is_one_choice(path) => {
            for (key, value) in entries {
                path.push(key.clone());
                leaves(value, path, found);
                path.pop();
            }
        }
        value => found(path, value),
    }
}
