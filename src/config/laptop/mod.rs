//! The launcher's environment: from `bastion.toml` files and the SSM parameter, key by key.
//!
//! Precedence: flag > `BASTION_*` variable > project file > user file > parameter. The project's file comes with a repository,
//! so whoever wrote that would decide where the person is sent: the person must trust it once ([`claims`]).

mod environment;
mod files;
mod merge;
mod project;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_mistakes;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::config::problem::Problems;
use crate::config::table::{Table, nearest};
use crate::config::{Env, schema, vars};
use crate::types::Environment;

use merge::{Layer, Merged};

pub(crate) use files::{Files, PROJECT_FILE, find_files, read_file};
use project::changes;
pub(crate) use project::claims;

/// What the command line says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flags {
    pub(crate) region: Option<String>,
    pub(crate) cluster: Option<String>,
}

/// An environment and where it was read.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) environment: Environment,
    /// Dotted key (`access.read.subnets`) → the flag, variable, file or parameter that set it. A key that is not here has
    /// its default.
    pub(crate) origins: BTreeMap<String, String>,
    /// What the project's file changes in an environment that another source knows, a sentence for each key.
    pub(crate) changes: Vec<String>,
}

/// Names of all environments in the files. A file with mistakes counts as empty here; `resolve` reports them.
pub(crate) fn known(files: &Files) -> Vec<String> {
    let mut names: Vec<String> = files
        .documents(&mut Problems::default())
        .iter()
        .filter_map(|(_, document)| document.get("env")?.as_object())
        .flat_map(|environments| environments.keys().cloned())
        .collect();
    names.sort();
    names.dedup();
    names
}

/// The region for the look-up of the parameter, which comes before everything else is known.
pub(crate) fn region_hint(name: &str, files: &Files, flags: &Flags, env: &impl Env) -> Option<String> {
    let from_files = || {
        let documents = files.documents(&mut Problems::default());
        let mut regions = documents
            .iter()
            .filter_map(|(_, document)| document.get("env")?.get(name)?.get("region")?.as_str().map(str::to_owned));
        regions.find(|region| !region.is_empty())
    };
    flags.region.clone().filter(|region| !region.is_empty()).or_else(|| variable(env, vars::REGION)).or_else(from_files)
}

/// The environment `name`. `parameter` is the text of the SSM parameter `/bastion/NAME`, if there is one.
///
/// # Errors
/// Every mistake at once, each with its own source; or that there is no such environment, with the nearest name.
pub(crate) fn resolve(
    name: &str,
    files: &Files,
    parameter: Option<&str>,
    flags: &Flags,
    env: &impl Env,
) -> Result<Resolved, Problems> {
    resolve_of(name, files, parameter, flags, env, true)
}

/// What is wrong already without the parameter, whatever it holds.
///
/// # Errors
/// A file that is not TOML, a flag or variable that cannot be a region or the name of a cluster.
pub(crate) fn certain(files: &Files, flags: &Flags, env: &impl Env) -> Result<(), Problems> {
    let mut problems = Problems::default();
    let _read = files.documents(&mut problems);
    for Layer { source, keys, .. } in settings(flags, env) {
        for (key, value) in &keys {
            let text = value.as_str().unwrap_or_default();
            let fix = match key.as_str() {
                "region" => "write its name alone, for example eu-west-1",
                _ => "write its name or ARN alone",
            };
            let legal =
                |c: char| c.is_ascii_alphanumeric() || if key == "region" { c == '-' } else { "-_:/".contains(c) };
            if !text.chars().all(legal) {
                problems.add(&source, "", format!("is {text:?}, which is no {key}"), fix);
            }
        }
    }
    problems.finish(Some(()))
}

/// What seems to be wrong, if it cannot be found out what the parameter holds: mistakes in what the files say of the
/// environment, or a name that is nearly one of theirs.
pub(crate) fn suspected(name: &str, files: &Files, flags: &Flags, env: &impl Env) -> Option<Problems> {
    let known = known(files);
    if known.iter().any(|known| known == name) {
        return resolve_of(name, files, None, flags, env, false).err().filter(|problems| !problems.is_empty());
    }
    let near = nearest(&name.to_ascii_lowercase(), known.iter().map(String::as_str))?;
    let mut problems = Problems::default();
    let fix = format!("did you mean {near:?}? The files know {}", known.join(", "));
    problems.add("bastion", "", format!("no {PROJECT_FILE} names an environment {name:?}"), fix);
    Some(problems)
}

/// `complete`: the parameter was asked for, so that what is nowhere is missing.
fn resolve_of(
    name: &str,
    files: &Files,
    parameter: Option<&str>,
    flags: &Flags,
    env: &impl Env,
    complete: bool,
) -> Result<Resolved, Problems> {
    let mut problems = Problems::default();
    let documents = files.documents(&mut problems);
    // A source that cannot be read might hold what seems to be missing.
    let mut complete = complete && problems.is_empty();
    let mut found = Vec::new();
    for (source, document) in &documents {
        let Some(mut root) = Table::new(source, "", document, &mut problems) else { continue };
        complete &= document.get("env").is_none_or(Value::is_object);
        if let Some(environment) = root.table("env", &mut problems).and_then(|all| all.entry(name)) {
            found.push((source.clone(), format!("env.{name}"), environment.clone()));
        }
        root.finish(&mut problems);
    }
    if let Some(text) = parameter {
        let source = format!("{}{name}", project::PARAMETER);
        match serde_json::from_str(text) {
            Ok(document) => found.push((source, String::new(), document)),
            Err(error) => {
                complete = false;
                problems.add(&source, "", format!("is not JSON: {error}"), "deploy the environment again");
            }
        }
    }
    if found.is_empty() {
        if complete {
            unknown(name, files, &mut problems);
        }
        return Err(problems);
    }
    if !schema::is_name(name) {
        problems.add(&format!("environment {name:?}"), "", "is not a name", schema::NAME_FIX);
    }

    let project = files.project.as_ref().map(|(path, _)| path.display().to_string());
    let mut layers = settings(flags, env);
    // Without the project's file.
    let mut others = Vec::new();
    for (source, prefix, value) in found {
        if let Value::Object(keys) = value {
            let layer = Layer { source, prefix: Some(prefix), keys };
            if project.as_ref() != Some(&layer.source) {
                others.push(layer.clone());
            }
            layers.push(layer);
        } else {
            complete = false;
            problems.add(&source, &prefix, "is not a table", "write a table of keys and values");
        }
    }
    let merged = Merged::new(layers);
    let mut mistakes = Problems::default();
    let environment = Table::new("", "", &merged.value, &mut mistakes)
        .and_then(|table| environment::environment(name, table, &mut mistakes));
    problems.append(mistakes, |key| {
        let blame = merged.blame(key);
        (complete || !blame.missing).then_some((blame.source, blame.key))
    });
    let origins = merged.origins();
    let changes = project.map(|project| changes(&project, &merged, &origins, others)).unwrap_or_default();
    problems.finish(environment.map(|environment| Resolved { environment, origins, changes }))
}

/// What flags and variables say, highest precedence first.
fn settings(flags: &Flags, env: &impl Env) -> Vec<Layer> {
    let settings = [
        ("--region", "region", flags.region.clone()),
        ("--cluster", "cluster", flags.cluster.clone()),
        (vars::REGION, "region", variable(env, vars::REGION)),
        (vars::CLUSTER, "cluster", variable(env, vars::CLUSTER)),
    ];
    let set = settings.into_iter().filter_map(|(source, key, value)| {
        let keys = Map::from_iter([(key.to_owned(), Value::String(value?))]);
        Some(Layer { source: source.to_owned(), prefix: None, keys })
    });
    set.collect()
}

/// The value of a variable; an empty one counts as not set, as shells and CI leave them behind.
fn variable(env: &impl Env, name: &str) -> Option<String> {
    env.get(name).filter(|value| !value.is_empty())
}

fn unknown(name: &str, files: &Files, problems: &mut Problems) {
    let known = known(files);
    let names = known.join(", ");
    let near = nearest(&name.to_ascii_lowercase(), known.iter().map(String::as_str));
    let fix = match near {
        Some(near) => format!("did you mean {near:?}? The files know {names}"),
        None if known.is_empty() => format!("deploy it, or write env.{name} into {PROJECT_FILE}"),
        None => format!("the files know {names}"),
    };
    let message = format!(
        "there is no environment {name:?}: no {PROJECT_FILE} names it and there is no SSM parameter /bastion/{name}"
    );
    problems.add("bastion", "", message, fix);
}
