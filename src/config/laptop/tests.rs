use std::collections::BTreeSet;
use std::path::PathBuf;

use super::*;
use crate::types::{CredentialConfig, Engine};

const PARAMETER: &str = r#"{"region":"eu-west-1","cluster":"platform","idle_stop":"30m","access":{"read":{
    "task_definition":"bastion-prod-read","subnets":["subnet-1"],"security_groups":["sg-1"],
    "target":{"orders":{"engine":"postgres","host":"orders.example.com","credential":{"rds_iam":{"user":"db_read"}}}}}}}"#;

const FULL: &str = r#"
[env.prod]
region = "ap-northeast-1"
cluster = "platform"
document = "bastion-port"
idle_stop = "30m"
max_age = "8h"
lanes = 4
[env.prod.access.read]
task_definition = "bastion-prod-read"
container = "relay"
subnets = ["subnet-1", "subnet-2"]
security_groups = ["sg-1"]
assign_public_ip = true
reason_required = true
[env.prod.access.read.target.orders]
engine = "postgres"
host = "orders.cluster-ro-abc.ap-northeast-1.rds.amazonaws.com"
port = 5433
database = "orders"
local_port = 15432
credential = { rds_iam = { user = "db_read" } }
[env.prod.access.write]
task_definition = "bastion-prod-write"
subnets = ["subnet-1"]
[env.staging]
region = "nowhere"
"#;

fn project(text: &str) -> Files {
    Files { project: Some((PathBuf::from("bastion.toml"), text.to_owned())), user: None }
}

fn both(project: &str, user: &str) -> Files {
    Files { project: Some(("p.toml".into(), project.to_owned())), user: Some(("u.toml".into(), user.to_owned())) }
}

fn no_env() -> BTreeMap<&'static str, &'static str> {
    BTreeMap::new()
}

fn good(files: &Files, parameter: Option<&str>) -> Resolved {
    resolve("prod", files, parameter, &Flags::default(), &no_env()).unwrap()
}

#[test]
fn a_full_file_is_resolved_whole() {
    let found = good(&project(FULL), None).environment;
    assert_eq!((found.name.as_str(), found.region.as_str()), ("prod", "ap-northeast-1"));
    assert_eq!((found.cluster.as_str(), found.document.as_str()), ("platform", "bastion-port"));
    assert_eq!(found.idle_stop.map(|d| d.as_secs()), Some(1800));
    assert_eq!(found.max_age.map(|d| d.as_secs()), Some(28_800));
    let read = &found.access["read"];
    assert_eq!((read.task_definition.as_str(), read.container.as_str()), ("bastion-prod-read", "relay"));
    assert_eq!((read.subnets.len(), read.security_groups.len()), (2, 1));
    assert!(read.assign_public_ip && read.reason_required);
    let orders = &read.targets["orders"];
    assert_eq!(
        (orders.engine, orders.endpoint.port(), orders.local_port),
        (Engine::Postgres, Some(5433), Some(15_432))
    );
    assert_eq!(orders.credential, CredentialConfig::RdsIam { user: "db_read".to_owned(), region: None });
    let write = &found.access["write"];
    assert_eq!((write.container.as_str(), write.targets.len()), ("bastion", 0));
    assert!(!write.assign_public_ip && !write.reason_required && write.security_groups.is_empty());
}

/// The key names of every table of `value`, at any depth.
fn keys(value: &toml::Value, into: &mut BTreeSet<String>) {
    for (key, value) in value.as_table().into_iter().flatten() {
        into.insert(key.clone());
        keys(value, into);
    }
}

#[test]
fn the_example_has_every_key_and_no_mistake() {
    const EXAMPLE: &str = include_str!("../../../docs/example-bastion.toml");
    const DOCUMENT: &str = include_str!("../../../docs/configuration.md");
    const CREDENTIALS: &str = include_str!("../../../docs/credentials.md");
    for name in known(&project(EXAMPLE)) {
        let found = resolve(&name, &project(EXAMPLE), None, &Flags::default(), &no_env()).unwrap();
        assert_eq!(found.environment.name, name);
    }
    let mut there = BTreeSet::new();
    keys(&toml::Value::Table(EXAMPLE.parse().unwrap()), &mut there);
    // The environment's keys, the targets' in the relay's table, and those of Vault.
    let section = |text: &'static str, from: &str, to: &str| text.split_once(from).unwrap().1.split_once(to).unwrap().0;
    let rows = section(DOCUMENT, "### Keys", "\n## ").lines();
    let rows =
        rows.chain(section(DOCUMENT, "## The relay", "\n### ").lines().filter(|row| row.starts_with("| `target.")));
    let rows = rows.chain(section(CREDENTIALS, "## `vault`", "\n- ").lines());
    let first = rows.filter(|row| row.starts_with("| `")).filter_map(|row| row.split(" | ").next());
    let named = first.flat_map(|cell| cell.split('`').skip(1).step_by(2)).filter_map(|key| key.rsplit('.').next());
    let named: Vec<&str> = named.filter(|key| *key != "…").collect();
    assert!(named.len() > 30, "{named:?}");
    let missing: Vec<&&str> = named.iter().filter(|key| !there.contains(**key)).collect();
    assert!(missing.is_empty(), "docs/example-bastion.toml has no {missing:?}");
}

#[test]
fn the_parameter_alone_is_enough() {
    let found = good(&Files::default(), Some(PARAMETER));
    assert_eq!(found.environment.cluster, "platform");
    assert_eq!(found.environment.document, "AWS-StartPortForwardingSession");
    assert_eq!(found.environment.access["read"].targets["orders"].endpoint.port(), Some(5432));
    assert!(found.origins.values().all(|source| source == "SSM parameter /bastion/prod"));
    assert!(found.origins.contains_key("access.read.target.orders.credential"));
    assert!(!found.origins.contains_key("document"), "a default has no origin");
}

#[test]
fn each_key_comes_from_the_highest_source_that_has_it() {
    let parameter = r#"{"region":"r5","cluster":"c5","document":"d5","idle_stop":"5m","max_age":"5h","access":{"read":{
        "task_definition":"t5","subnets":["s5","s6"]}}}"#;
    let files = both(
        "[env.prod]\nregion='r3'\ncluster='c3'\ndocument='d3'\n[env.prod.access.read]\nsubnets=['s3']\n",
        "[env.prod]\nregion='r4'\ncluster='c4'\ndocument='d4'\nidle_stop='4m'\n",
    );
    let flags = Flags { region: Some("r1".to_owned()), cluster: None };
    let env = BTreeMap::from([(vars::REGION, "r2"), (vars::CLUSTER, "c2")]);
    let Resolved { environment, origins, .. } = resolve("prod", &files, Some(parameter), &flags, &env).unwrap();
    let access = &environment.access["read"];
    assert_eq!(
        [&environment.region, &environment.cluster, &environment.document, &access.task_definition],
        ["r1", "c2", "d3", "t5"]
    );
    assert_eq!(environment.idle_stop.map(|d| d.as_secs()), Some(240));
    assert_eq!(access.subnets, ["s3"], "a list is replaced, not mixed");
    let origins: Vec<_> = origins.iter().map(|(key, source)| (key.as_str(), source.as_str())).collect();
    assert_eq!(
        origins,
        [
            ("access.read.subnets", "p.toml"),
            ("access.read.task_definition", "SSM parameter /bastion/prod"),
            ("cluster", "BASTION_CLUSTER"),
            ("document", "p.toml"),
            ("idle_stop", "u.toml"),
            ("max_age", "SSM parameter /bastion/prod"),
            ("region", "--region"),
        ]
    );
}

#[test]
fn a_credential_is_replaced_whole_and_other_tables_are_mixed() {
    let over = "[env.prod.access.read.target.orders]\nlocal_port = 15432\ncredential = 'client'\n";
    let orders = good(&project(over), Some(PARAMETER)).environment.access["read"].targets["orders"].clone();
    assert_eq!((orders.local_port, orders.endpoint.host()), (Some(15_432), Some("orders.example.com")));
    assert_eq!(orders.credential, CredentialConfig::Client);
    // A level and a target may have that name too; they are tables like others.
    let named = PARAMETER.replace("\"read\":", "\"credential\":").replace("\"orders\":", "\"credential\":");
    let over = "[env.prod.access.credential.target.credential]\nport = 6000\n";
    let found = good(&project(over), Some(&named)).environment;
    assert_eq!(found.access["credential"].targets["credential"].endpoint.port(), Some(6000));
}

#[test]
fn the_region_is_known_before_the_rest() {
    let files = both("[env.prod]\n", "[env.prod]\nregion = 'r4'\n");
    let none = Flags::default();
    assert_eq!(region_hint("prod", &files, &none, &no_env()).as_deref(), Some("r4"));
    assert_eq!(region_hint("other", &files, &none, &no_env()), None);
    let empty = BTreeMap::from([(vars::REGION, "")]);
    assert_eq!(region_hint("prod", &files, &none, &empty).as_deref(), Some("r4"));
    let env = BTreeMap::from([(vars::REGION, "r2")]);
    assert_eq!(region_hint("prod", &files, &none, &env).as_deref(), Some("r2"));
    let flags = Flags { region: Some("r1".to_owned()), cluster: None };
    assert_eq!(region_hint("prod", &files, &flags, &env).as_deref(), Some("r1"));
}

#[test]
fn a_projects_file_claims_everything_but_what_decides_nothing() {
    let claims = |text: &str| {
        let files = project(text);
        claims(Some("prod"), &files).into_iter().map(|(key, _)| key).collect::<Vec<_>>()
    };
    let keys = claims(FULL);
    for key in
        ["region", "cluster", "document", "access.read.container", "access.read.subnets", "access.read.security_groups"]
            .into_iter()
            .chain(["access.read.assign_public_ip", "access.read.reason_required", "access.write.task_definition"])
            .chain(["access.read.target.orders.credential", "access.read.target.orders.host"])
    {
        assert!(keys.contains(&format!("env.prod.{key}")), "{key} is not in {keys:?}");
    }
    assert!(keys.iter().all(|key| !key.contains("lanes") && !key.contains("idle_stop") && !key.contains("max_age")));
    assert!(keys.iter().all(|key| !key.contains("staging")), "{keys:?}");
    assert_eq!(claims("[env.prod]\nlanes = 2\nidle_stop = '1h'\nmax_age = '2h'\n"), [""; 0]);
    // What a later version knows, and what has the name of something harmless elsewhere.
    let odd = "[env.prod]\nnew = 1\naccess = 3\n[env.prod.x]\nlanes = 2\n[env.prod.empty]\n";
    assert_eq!(claims(odd), ["env.prod.access", "env.prod.empty", "env.prod.new", "env.prod.x.lanes"]);
    assert_eq!(claims("not toml"), [""; 0]);
    // The person's own file claims nothing.
    assert!(super::claims(None, &both("", FULL)).is_empty());
    assert_eq!(super::claims(None, &both(FULL, "")).len(), keys.len() + 1);
    let value = super::claims(Some("prod"), &project(FULL)).into_iter().find(|(key, _)| key.ends_with("credential"));
    assert_eq!(value.unwrap().1, r#"{"rds_iam":{"user":"db_read"}}"#);
}

#[test]
fn what_a_projects_file_changes_elsewhere_is_said_key_by_key() {
    let over = "[env.prod]\nregion = 'eu-west-1'\nlanes = 2\n[env.prod.access.read]\ntask_definition = 'other'\nassign_public_ip = true\n\
                [env.prod.access.read.target.orders]\ncredential = 'client'\n";
    assert_eq!(
        good(&both(over, "[env.prod.access.read]\nsubnets = ['s']\n"), Some(PARAMETER)).changes,
        [
            "p.toml adds access.read.assign_public_ip to u.toml and the deployed environment",
            "p.toml overrides access.read.target.orders.credential of the deployed environment",
            "p.toml overrides access.read.task_definition of the deployed environment",
            "p.toml adds lanes to u.toml and the deployed environment",
        ]
    );
    let user = "[env.prod]\ncluster = 'mine'\n";
    assert_eq!(
        good(&both("[env.prod]\ncluster = 'theirs'\n", user), Some(PARAMETER)).changes,
        ["p.toml overrides cluster of u.toml"]
    );
    // Nobody else knows it, or nobody says otherwise, or the command line says the last word.
    assert!(good(&project(FULL), None).changes.is_empty());
    assert!(good(&both("", user), Some(PARAMETER)).changes.is_empty());
    let flags = Flags { region: Some("us-east-1".into()), cluster: None };
    let found =
        resolve("prod", &project("[env.prod]\nregion = 'us-west-1'\n"), Some(PARAMETER), &flags, &no_env()).unwrap();
    assert!(found.changes.is_empty(), "{:?}", found.changes);
}
