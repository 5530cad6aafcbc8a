//! Access levels, and the person in what the database sees.

use bastion_sandbox::port;
use bastion_sandbox::postgres::{Flaws, READER_HOST};
use serde_json::{Value, json};

use crate::support::{World, finish};
use crate::up::{Up, bastion};

#[tokio::test]
async fn read_access_is_read_only_and_goes_to_the_reader() {
    let world = World::start_with(Flaws::default(), |config| {
        if let Some((_, endpoints)) = &mut config.rds_state {
            let reader = endpoints[0].replace("cluster-abc123", "cluster-ro-abc123");
            *endpoints = vec![reader];
        }
    })
    .await;
    let definition = world.definition(|config| {
        config["identity"] = json!("optional");
        config["target"]["orders"]["reader_host"] = json!(READER_HOST);
    });
    let relay = world.relay_of(&definition).await;
    let targets: Value = serde_json::from_str(&relay.get("/v1/targets").await.unwrap()).unwrap();
    let orders = &targets["targets"][0];
    assert_eq!((&orders["host"], &orders["read_only"]), (&json!(READER_HOST), &json!(true)));
    // Also where the client asks for the contrary before the relay's word.
    for options in ["options=-cgeqo=off", "options=-cdefault_transaction_read_only=off"] {
        let (code, out, err) = relay.psql(5432, &["-d", options], "show default_transaction_read_only").await;
        assert_eq!((code, out.as_str()), (0, "on"), "{err}");
    }
    let (code, _, err) = relay.psql(5432, &[], "create table t (x int)").await;
    assert!(code != 0 && err.contains("read-only transaction"), "{err}");
    world.stop().await;
}

#[tokio::test]
async fn write_access_is_another_task_role_and_user_with_a_reason() {
    let world = World::start_with(Flaws::default(), |config| {
        let environment = config.parameters.get_mut("/bastion/demo").unwrap();
        let mut document: Value = serde_json::from_str(environment).unwrap();
        document["access"]["write"]["reason_required"] = json!(true);
        *environment = document.to_string();
    })
    .await;
    let (code, _, err) = finish(bastion(&world, "alice", &["up", "demo", "--access", "write"])).await;
    assert!(code == 1 && err.contains("needs a reason") && err.contains("add --reason"), "{err}");
    let port = format!("orders={}", port::free().unwrap());
    let up = Up::start(&world, &["--access", "write", "--reason", "INC-123", "--local-port", &port]).await;
    let (code, out, err) = up.psql("orders", "update orders set total = 1 where id = 1 returning current_user").await;
    assert_eq!((code, out.as_str()), (0, "db_write"), "{err}");
    let (_, out, _) = up.psql("orders", "show application_name").await;
    assert_eq!(out, "bastion:alice psql");
    let task = world.sandbox.tasks()[0].0.clone();
    let log = world.sandbox.task_log(&task);
    assert!(log.contains("INC-123") && log.contains("assumed-role/Developer/alice"), "{log}");
    // AWS's own records have it too: of the task and of each of its sessions.
    assert_eq!(world.sandbox.task_tag(&task, "bastion:reason").as_deref(), Some("INC-123"));
    let reasons = world.sandbox.session_reasons();
    assert!(!reasons.is_empty() && reasons.iter().all(|reason| reason.as_deref() == Some("INC-123")), "{reasons:?}");
    assert_eq!(up.end().await.0, Some(0));
    world.stop().await;
}
