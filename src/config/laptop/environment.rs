//! The merged document → [`Environment`].

use std::collections::BTreeMap;

use serde_json::Value;

use crate::config::problem::Problems;
use crate::config::schema;
use crate::config::table::Table;
use crate::types::{Access, Environment};

const CLUSTER: &str = "bastion";
const DOCUMENT: &str = "AWS-StartPortForwardingSession";
const CONTAINER: &str = "bastion";
/// Sessions for one link. More to one task only share its CPU.
const LANES: usize = 4;
const LANES_MAX: usize = 32;

pub(super) fn environment(name: &str, mut table: Table<'_>, problems: &mut Problems) -> Option<Environment> {
    let region = table.required("region", "eu-west-1", problems).map(str::to_owned);
    let cluster = table.string("cluster", problems).unwrap_or(CLUSTER).to_owned();
    let document = table.string("document", problems).unwrap_or(DOCUMENT).to_owned();
    let idle_stop = table.duration("idle_stop", problems);
    let max_age = table.duration("max_age", problems);
    let lanes = table.count("lanes", problems).unwrap_or(LANES);
    if lanes > LANES_MAX {
        table.problem(
            problems,
            "lanes",
            format!("is {lanes}, more than one task can serve"),
            format!("write a number from 1 to {LANES_MAX}"),
        );
    }
    let access = match table.value("access") {
        Some(_) => table.table("access", problems).map(|levels| access_levels(&levels, problems)),
        None => {
            table.problem(problems, "access", "is missing", format!("add an access level, {LEVEL_EXAMPLE}"));
            None
        }
    };
    let default_access = table.string("default_access", problems).map(str::to_owned);
    if let (Some(default), Some(Value::Object(levels))) = (&default_access, table.value("access"))
        && !levels.contains_key(default)
    {
        let names = levels.keys().cloned().collect::<Vec<_>>().join(", ");
        table.problem(
            problems,
            "default_access",
            format!("is {default:?}, which is no access level here"),
            format!("name one of {names}"),
        );
    }
    table.finish(problems);
    let (name, region, access) = (name.to_owned(), region?, access?);
    Some(Environment { name, region, cluster, document, idle_stop, max_age, lanes, default_access, access })
}

const LEVEL_EXAMPLE: &str = "for example access.read with task_definition and subnets";

/// Every access level of `levels` (`access.NAME`); a level with mistakes is left out, and they are in `problems`.
fn access_levels(levels: &Table<'_>, problems: &mut Problems) -> BTreeMap<String, Access> {
    if levels.entries().next().is_none() {
        problems.add(levels.source(), "access", "names no access level", format!("add one, {LEVEL_EXAMPLE}"));
    }
    let mut found = BTreeMap::new();
    for (level, value) in levels.entries() {
        if !schema::is_name(level) {
            levels.problem(problems, level, "is not a name", schema::NAME_FIX);
        }
        let entry = Table::new(levels.source(), &levels.key(level), value, problems);
        if let Some(access) = entry.and_then(|entry| access(level, entry, problems)) {
            found.insert(level.clone(), access);
        }
    }
    found
}

fn access(level: &str, mut table: Table<'_>, problems: &mut Problems) -> Option<Access> {
    let task_definition = table.required("task_definition", "bastion-prod-read", problems).map(str::to_owned);
    let container = table.string("container", problems).unwrap_or(CONTAINER).to_owned();
    let subnets = subnets(&mut table, problems);
    let security_groups = ids(&mut table, "security_groups", problems).unwrap_or_default();
    let assign_public_ip = table.boolean("assign_public_ip", problems).unwrap_or(false);
    let reason_required = table.boolean("reason_required", problems).unwrap_or(false);
    let targets =
        table.table("target", problems).map(|targets| schema::targets(&targets, level, problems)).unwrap_or_default();
    table.finish(problems);
    Some(Access {
        task_definition: task_definition?,
        container,
        subnets: subnets?,
        security_groups,
        assign_public_ip,
        reason_required,
        targets: targets.resolved,
        without_engine: targets.without_engine,
    })
}

fn subnets(table: &mut Table<'_>, problems: &mut Problems) -> Option<Vec<String>> {
    const FIX: &str = "list the private subnets of the task, for example [\"subnet-0a1b\"]";
    if table.value("subnets").is_none() {
        table.problem(problems, "subnets", "is missing", FIX);
        return None;
    }
    let subnets = ids(table, "subnets", problems)?;
    if subnets.is_empty() {
        table.problem(problems, "subnets", "names no subnet", FIX);
    }
    Some(subnets)
}

/// A list of ids, none of them empty.
fn ids(table: &mut Table<'_>, key: &'static str, problems: &mut Problems) -> Option<Vec<String>> {
    let ids = table.strings(key, problems)?;
    if ids.iter().any(String::is_empty) {
        table.problem(problems, key, "has an empty entry", "write an id or remove the entry");
    }
    Some(ids)
}
