//! The launcher's environment: from `bastion.toml` files and the SSM parameter, key by key.
//!
//! Precedence: flag > `BASTION_*` variable > project file > user file > parameter.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::config::problem::Problems;
use crate::config::table::{Table, nearest};
use crate::config::{Env, schema, vars};
use crate::types::{Access, Environment};

/// The file in a repository and in the user's configuration folder.
const FILE: &str = "bastion.toml";
const CLUSTER: &str = "bastion";
const DOCUMENT: &str = "AWS-StartPortForwardingSession";
const CONTAINER: &str = "bastion";
/// More sessions to one task only share its CPU.
const LANES_MAX: usize = 32;

/// The configuration files that apply: path and text.
#[derive(Debug, Default)]
pub(crate) struct Files {
    pub(crate) project: Option<(PathBuf, String)>,
    pub(crate) user: Option<(PathBuf, String)>,
}

/// What the command line says.
#[derive(Debug, Default)]
pub(crate) struct Flags {
    pub(crate) region: Option<String>,
    pub(crate) cluster: Option<String>,
}

/// Looks for `bastion.toml` from `start` upwards to the root of the repository or to `home`, and in the `bastion` folder
/// of `user_config`.
///
/// # Errors
/// A file that is there and cannot be read.
pub(crate) fn find_files(start: &Path, home: Option<&Path>, user_config: Option<&Path>) -> Result<Files, Problems> {
    let mut problems = Problems::default();
    let mut files = Files::default();
    for folder in start.ancestors() {
        files.project = read(&folder.join(FILE), &mut problems);
        if files.project.is_some() || folder.join(".git").exists() || Some(folder) == home {
            break;
        }
    }
    files.user = user_config.and_then(|folder| read(&folder.join("bastion").join(FILE), &mut problems));
    problems.finish(Some(files))
}

fn read(path: &Path, problems: &mut Problems) -> Option<(PathBuf, String)> {
    match std::fs::read_to_string(path) {
        Ok(text) => Some((path.to_owned(), text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            problems.add(
                &path.display().to_string(),
                "",
                format!("cannot be read: {error}"),
                "make it readable or move it away",
            );
            None
        }
    }
}

/// Names of all environments in the files. A file with mistakes counts as empty here; `resolve` reports them.
pub(crate) fn known(files: &Files) -> Vec<String> {
    let mut names: Vec<String> = layers(files, &mut Problems::default())
        .into_iter()
        .flat_map(|(_, document)| {
            let names =
                document.get("env").and_then(Value::as_object).map(|all| all.keys().cloned().collect::<Vec<_>>());
            names.unwrap_or_default()
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

/// The region for the look-up of the parameter, which comes before everything else is known.
pub(crate) fn region_hint(name: &str, files: &Files, flags: &Flags, env: &impl Env) -> Option<String> {
    let from_files = || {
        layers(files, &mut Problems::default())
            .into_iter()
            .find_map(|(_, document)| document.get("env")?.get(name)?.get("region")?.as_str().map(str::to_owned))
    };
    flags.region.clone().or_else(|| env.get(vars::REGION)).or_else(from_files)
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
) -> Result<Environment, Problems> {
    let mut problems = Problems::default();
    let mut found: Vec<(String, Value)> = Vec::new();
    for (source, document) in layers(files, &mut problems) {
        if let Some(mut root) = Table::new(&source, "", &document, &mut problems) {
            let environment = root.table("env", &mut problems).and_then(|environments| environments.entry(name));
            found.extend(environment.map(|environment| (format!("{source}: env.{name}"), environment.clone())));
            root.finish(&mut problems);
        }
    }
    let parameter_name = format!("SSM parameter /bastion/{name}");
    if let Some(text) = parameter {
        match serde_json::from_str(text) {
            Ok(document) => found.push((parameter_name, document)),
            Err(error) => {
                problems.add(&parameter_name, "", format!("is not JSON: {error}"), "deploy the environment again")
            }
        }
    }
    if found.is_empty() && problems.is_empty() {
        unknown(name, files, &mut problems);
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    // Key by key, the first source that names a key wins; a message names every source that took part.
    let sources = found.iter().map(|(source, _)| source.as_str()).collect::<Vec<_>>().join(" + ");
    let mut merged = Value::Object(Map::new());
    for (_, document) in found.into_iter().rev() {
        overlay(&mut merged, document);
    }
    for (key, value) in [
        ("region", flags.region.clone().or_else(|| env.get(vars::REGION))),
        ("cluster", flags.cluster.clone().or_else(|| env.get(vars::CLUSTER))),
    ] {
        if let (Some(value), Some(table)) = (value, merged.as_object_mut()) {
            table.insert(key.to_owned(), Value::String(value));
        }
    }
    let environment =
        Table::new(&sources, "", &merged, &mut problems).and_then(|table| environment(name, table, &mut problems));
    problems.finish(environment)
}

/// The files as documents, highest precedence first.
fn layers(files: &Files, problems: &mut Problems) -> Vec<(String, Value)> {
    let mut layers = Vec::new();
    for (path, text) in [&files.project, &files.user].into_iter().flatten() {
        let source = path.display().to_string();
        match toml::from_str::<Value>(text) {
            Ok(document) => layers.push((source, document)),
            Err(error) => {
                let line = error.span().map(|span| text.get(..span.start).unwrap_or_default().lines().count().max(1));
                let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
                problems.add(&source, "", format!("is not TOML: {place}{}", error.message()), "correct the syntax");
            }
        }
    }
    layers
}

fn unknown(name: &str, files: &Files, problems: &mut Problems) {
    let known = known(files);
    let fix = match (nearest(name, known.iter().map(String::as_str)), known.is_empty()) {
        (Some(near), _) => format!("did you mean {near:?}? The files know {}", known.join(", ")),
        (None, false) => format!("the files know {}", known.join(", ")),
        (None, true) => format!("deploy it with cdk/, or write env.{name} into {FILE}"),
    };
    let message =
        format!("there is no environment {name:?}: no {FILE} names it and there is no SSM parameter /bastion/{name}");
    problems.add("bastion", "", message, fix);
}

/// Puts `over` on top of `base`, table by table.
fn overlay(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                // A credential is one choice, not a table to mix.
                match base.get_mut(&key).filter(|_| key != "credential") {
                    Some(existing) => overlay(existing, value),
                    None => {
                        base.insert(key, value);
                    }
                }
            }
        }
        (base, over) => *base = over,
    }
}

fn environment(name: &str, mut table: Table<'_>, problems: &mut Problems) -> Option<Environment> {
    if !schema::is_name(name) {
        problems.add(table.source(), name, "is not a name", schema::NAME_FIX);
    }
    let region = table.required("region", "eu-west-1", problems).map(str::to_owned);
    let cluster = table.string("cluster", problems).unwrap_or(CLUSTER).to_owned();
    let document = table.string("document", problems).unwrap_or(DOCUMENT).to_owned();
    let idle_stop = table.duration("idle_stop", problems);
    let max_age = table.duration("max_age", problems);
    if table.count("lanes", problems).is_some_and(|lanes| lanes > LANES_MAX) {
        table.problem(problems, "lanes", "is too many", format!("use 1 to {LANES_MAX}"));
    }
    let mut access = BTreeMap::new();
    if let Some(levels) = table.table("access", problems) {
        for (level, value) in levels.entries() {
            if !schema::is_name(level) {
                levels.problem(problems, level, "is not a name", schema::NAME_FIX);
            }
            let entry = Table::new(levels.source(), &levels.key(level), value, problems);
            if let Some(found) = entry.and_then(|entry| self::access(entry, problems)) {
                access.insert(level.clone(), found);
            }
        }
    }
    if access.is_empty() && problems.is_empty() {
        table.problem(problems, "access", "names no access level", "add at least access.read");
    }
    table.finish(problems);
    Some(Environment { name: name.to_owned(), region: region?, cluster, document, idle_stop, max_age, access })
}

fn access(mut table: Table<'_>, problems: &mut Problems) -> Option<Access> {
    let task_definition = table.required("task_definition", "bastion-prod-read", problems).map(str::to_owned);
    let container = table.string("container", problems).unwrap_or(CONTAINER).to_owned();
    let subnets = match table.value("subnets") {
        Some(_) => table.strings("subnets", problems).unwrap_or_default(),
        None => Vec::new(),
    };
    if subnets.is_empty() {
        table.problem(
            problems,
            "subnets",
            "names no subnet",
            "list the private subnets of the task, for example [\"subnet-0a1b\"]",
        );
    }
    let security_groups = table.strings("security_groups", problems).unwrap_or_default();
    let assign_public_ip = table.boolean("assign_public_ip", problems).unwrap_or(false);
    let reason_required = table.boolean("reason_required", problems).unwrap_or(false);
    let targets =
        table.table("target", problems).map(|targets| schema::targets(&targets, problems)).unwrap_or_default();
    table.finish(problems);
    Some(Access {
        task_definition: task_definition?,
        container,
        subnets,
        security_groups,
        assign_public_ip,
        reason_required,
        targets,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMETER: &str = r#"{"region":"eu-west-1","cluster":"platform","idle_stop":"30m","access":{"read":{
        "task_definition":"bastion-prod-read","subnets":["subnet-1"],"security_groups":["sg-1"],
        "target":{"orders":{"engine":"postgres","host":"orders.example.com","credential":{"rds_iam":{"user":"db_read"}}}}}}}"#;

    fn project(text: &str) -> Files {
        Files { project: Some((PathBuf::from("bastion.toml"), text.to_owned())), user: None }
    }

    fn no_env() -> BTreeMap<&'static str, &'static str> {
        BTreeMap::new()
    }

    fn failed(name: &str, files: &Files, parameter: Option<&str>) -> String {
        resolve(name, files, parameter, &Flags::default(), &no_env()).unwrap_err().to_string()
    }

    #[test]
    fn the_parameter_alone_is_enough() {
        let found = resolve("prod", &Files::default(), Some(PARAMETER), &Flags::default(), &no_env()).unwrap();
        assert_eq!((found.region.as_str(), found.cluster.as_str()), ("eu-west-1", "platform"));
        assert_eq!(found.access["read"].container, "bastion");
        assert_eq!(found.access["read"].targets["orders"].port, 5432);
    }

    #[test]
    fn precedence_is_key_by_key() {
        let files = Files {
            project: Some((PathBuf::from("p.toml"), "[env.prod]\ncluster = 'project'\n".to_owned())),
            user: Some((
                PathBuf::from("u.toml"),
                "[env.prod]\ncluster = 'user'\ndocument = 'bastion-port'\n".to_owned(),
            )),
        };
        let flags = Flags { region: Some("us-east-1".to_owned()), cluster: None };
        let env = BTreeMap::from([(vars::REGION, "us-west-2")]);
        let found = resolve("prod", &files, Some(PARAMETER), &flags, &env).unwrap();
        assert_eq!(
            (found.region.as_str(), found.cluster.as_str(), found.document.as_str()),
            ("us-east-1", "project", "bastion-port")
        );
        assert_eq!(region_hint("prod", &files, &Flags::default(), &env).as_deref(), Some("us-west-2"));
        let cluster = BTreeMap::from([(vars::CLUSTER, "variable")]);
        let found = resolve("prod", &files, Some(PARAMETER), &Flags::default(), &cluster).unwrap();
        assert_eq!(found.cluster, "variable");
    }

    #[test]
    fn an_unknown_environment_gets_the_nearest_name() {
        let files = project("[env.prod]\nregion = 'eu-west-1'\n[env.staging]\nregion = 'eu-west-1'\n");
        let said = failed("prdo", &files, None);
        assert!(said.contains("did you mean \"prod\"?") && said.contains("prod, staging"), "{said}");
        let said = failed("x", &Files::default(), None);
        assert!(said.contains("/bastion/x"), "{said}");
    }

    #[test]
    fn every_mistake_is_reported_with_its_source() {
        let files = project(
            "[env.prod]\nregio = 'eu-west-1'\nidle_stop = 30\nlanes = 99\n[env.prod.access.Read]\nsubnets = 'subnet-1'\nassign_public_ip = 'no'\n",
        );
        let said = failed("prod", &files, None);
        for part in [
            "bastion.toml: env.prod: region: is missing",
            "regio: is not a known key; did you mean region?",
            "idle_stop: is 30, not a duration",
            "lanes: is too many",
            "access.Read: is not a name",
            "access.Read.task_definition: is missing",
            "access.Read.subnets: is text, not a list of texts",
            "access.Read.assign_public_ip: is text, not true or false",
        ] {
            assert!(said.contains(part), "{part} is not in\n{said}");
        }
    }

    #[test]
    fn a_syntax_error_names_its_line() {
        let said = failed("prod", &project("[env.prod]\nregion = \n"), None);
        assert!(said.starts_with("bastion.toml: is not TOML: line 2"), "{said}");
    }

    #[test]
    fn files_are_found_upwards_to_the_repository() {
        let folder = tempfile::tempdir().unwrap();
        let (inner, outer) = (folder.path().join("repo/sub"), folder.path().join("repo"));
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::create_dir(outer.join(".git")).unwrap();
        std::fs::write(folder.path().join(FILE), "").unwrap();
        assert!(find_files(&inner, None, None).unwrap().project.is_none());
        std::fs::write(outer.join(FILE), "[env.a]\n").unwrap();
        let files = find_files(&inner, None, None).unwrap();
        assert_eq!(known(&files), ["a"]);
    }
}
