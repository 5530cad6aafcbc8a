//! What the example app of `cdk/` deploys, run: its parameter, task definition and database user in the sandbox. And what
//! its alarms and its dashboard look for, in what a relay writes.

use std::collections::{BTreeMap, BTreeSet};

use bastion_sandbox::postgres::Flaws;
use bastion_sandbox::{CLUSTER, Config, TaskDefinition};
use serde_json::{Value, json};

use crate::identity::Proof;
use crate::support::{World, logged};
use crate::template;
use crate::up::{Up, bastion, ports};

/// The database users that a task role of the template may be.
fn db_users(role: &str) -> Vec<String> {
    let mut users = Vec::new();
    for (_, policy) in template::resources("AWS::IAM::Policy") {
        if policy["Roles"] == json!([role]) {
            for statement in policy["PolicyDocument"]["Statement"].as_array().unwrap() {
                if statement["Action"] == "rds-db:connect" {
                    users.extend(
                        statement["Resource"].as_str().unwrap().rsplit_once('/').map(|(_, user)| user.to_owned()),
                    );
                }
            }
        }
    }
    users
}

/// Puts the template's environment into the sandbox, its orders at the sandbox's database.
fn deploy(config: &mut Config) {
    let example = config.task_definitions[0].clone();
    let relay: Value = serde_json::from_str(&example.environment["BASTION_CONFIG"]).unwrap();
    let here = |targets: &mut Value| {
        for key in ["host", "hostaddr", "port"] {
            targets["orders"][key] = relay["target"]["orders"][key].clone();
        }
    };
    let (_, parameter) = template::resources("AWS::SSM::Parameter").remove(0);
    let mut environment: Value = serde_json::from_str(parameter["Value"].as_str().unwrap()).unwrap();
    environment["cluster"] = json!(CLUSTER);
    for access in environment["access"].as_object_mut().unwrap().values_mut() {
        here(&mut access["target"]);
    }
    config.parameters = BTreeMap::from([(parameter["Name"].as_str().unwrap().to_owned(), environment.to_string())]);
    config.task_definitions = template::resources("AWS::ECS::TaskDefinition")
        .into_iter()
        .map(|(_, definition)| {
            let mut relay: Value = serde_json::from_str(&template::relay_config(&definition)).unwrap();
            here(&mut relay["target"]);
            let mut environment = example.environment.clone();
            environment.insert("BASTION_CONFIG".to_owned(), relay.to_string());
            let family = definition["Family"].as_str().unwrap().to_owned();
            let role = definition["TaskRoleArn"].as_str().unwrap().trim_end_matches(".Arn");
            TaskDefinition { role: family.clone(), family, db_users: db_users(role), environment, ..example.clone() }
        })
        .collect();
}

#[tokio::test]
async fn up_works_with_what_cdk_deploys() {
    let world = World::start_with(Flaws::default(), deploy).await;
    let [option, port, ..] = ports();
    let up = Up::of(bastion(&world, "alice", &["up", "prod", "--json", &option, &port])).await;
    let (code, out, err) = up.psql("orders", "select current_user, 'S3CRET'").await;
    assert_eq!((code, out.as_str()), (0, "db_read|S3CRET"), "{err}");
    let log = logged(&world.sandbox, &world.sandbox.tasks()[0].0, "select current_user, ?").await;
    assert!(!log.contains("S3CRET"), "{log}");
    assert_eq!(up.end().await.0, Some(0));
    world.stop().await;
}

/// CloudWatch's filter pattern `{ ($.a = "b") && ($.c.d = "e") }` (CloudWatch Logs User Guide, filter pattern syntax).
fn matches(pattern: &str, record: &Value) -> bool {
    let terms = pattern.strip_prefix("{ ").and_then(|rest| rest.strip_suffix(" }")).expect("a pattern of JSON fields");
    terms.split(" && ").all(|term| {
        let (field, value) = term.trim_matches(['(', ')']).split_once(" = ").expect("field = value");
        let pointer = field.strip_prefix('$').expect("a field").replace('.', "/");
        record.pointer(&pointer) == Some(&serde_json::from_str(value).expect("a text"))
    })
}

/// A relay that writes all that it can, for somebody who may, somebody who may not, and a database that refuses.
async fn records() -> Vec<Value> {
    let world = World::start().await;
    let relay = world
        .task_of_alice(|config| {
            config["identity"] = json!("optional");
            config["metrics"] = json!("emf");
        })
        .await;
    for name in ["alice", "bob"] {
        let claim = Proof::new(&world, &relay, name, &relay.challenge().await).claim();
        relay.authorize(&claim).await;
    }
    relay.authorize_with("{}").await;
    for (port, expected) in [(5432, 0), (5433, 2)] {
        let (code, _, err) = relay.psql(port, &[], "select 1").await;
        assert_eq!(code, expected, "{err}");
    }
    world.sandbox.stop_directly(&relay.id);
    relay.wait_for("\"message\":\"stopped\"").await;
    let records = relay.log().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    world.stop().await;
    records
}

#[tokio::test]
async fn alarms_and_dashboard_of_cdk_find_what_the_relay_writes() {
    let records = records().await;

    let mut counted = BTreeMap::new();
    for (_, filter) in template::resources("AWS::Logs::MetricFilter") {
        let name = filter["MetricTransformations"][0]["MetricName"].as_str().unwrap().to_owned();
        let pattern = filter["FilterPattern"].as_str().unwrap();
        counted.insert(name, records.iter().filter(|record| matches(pattern, record)).count());
    }
    // Bob at Alice's task, and db_admin. The guard's log is not the relay's.
    let expected = [("prod-AuthenticationFailures", 1), ("prod-RefusedIdentities", 1), ("prod-TasksStopped", 0)];
    assert_eq!(counted, expected.map(|(name, count)| (name.to_owned(), count)).into());

    let (_, dashboard) = template::resources("AWS::CloudWatch::Dashboard").remove(0);
    let body: Value = serde_json::from_str(dashboard["DashboardBody"].as_str().unwrap()).unwrap();
    let widgets: Vec<&Value> = body["widgets"].as_array().unwrap().iter().map(|widget| &widget["properties"]).collect();
    let shown = widgets.iter().filter_map(|widget| widget["metrics"].as_array()).flatten();
    let mut metrics = BTreeSet::new();
    for metric in shown.map(|metric| metric.as_array().unwrap()).filter(|metric| metric.len() > 3) {
        let texts: Vec<&str> = metric.iter().filter_map(Value::as_str).collect();
        let dimensions: BTreeSet<&str> = texts[2..].iter().step_by(2).copied().collect();
        metrics.insert((texts[0], texts[1], dimensions));
    }
    let mut written = BTreeSet::new();
    for told in records.iter().filter_map(|record| record["_aws"]["CloudWatchMetrics"][0].as_object()) {
        let dimensions: BTreeSet<&str> =
            told["Dimensions"][0].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        for metric in told["Metrics"].as_array().unwrap() {
            let namespace = told["Namespace"].as_str().unwrap();
            written.insert((namespace, metric["Name"].as_str().unwrap(), dimensions.clone()));
        }
    }
    assert_eq!(metrics, written);

    let query = widgets.iter().find_map(|widget| widget["query"].as_str()).unwrap();
    let command = |name: &str| {
        query
            .split(" | ")
            .flat_map(|part| part.lines())
            .find_map(|line| line.trim_start_matches(['|', ' ']).strip_prefix(name))
    };
    let events: Vec<String> = serde_json::from_str(command("filter event in ").unwrap()).unwrap();
    let found: Vec<&Value> =
        records.iter().filter(|record| events.iter().any(|event| record["event"] == event.as_str())).collect();
    for event in &events {
        assert!(found.iter().any(|record| record["event"] == event.as_str()), "{event} is never written");
    }
    for field in command("fields ").unwrap().split(", ").map(|field| field.trim_matches('`')) {
        assert!(found.iter().any(|record| record.get(field).is_some()), "no record has {field}");
    }
}
