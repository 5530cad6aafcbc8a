//! A Secrets Manager that does not read the secret: a role without a permission, a key that may not be used, trouble of the
//! service. Clients are told the cause and the next step; those that need nothing of it go on.

use bastion_sandbox::mariadb::{Flaws, HOST, MariaDb};
use bastion_sandbox::postgres::PASSWORD;
use bastion_sandbox::secrets_manager::Answer;
use serde_json::json;
use tokio::process::Command;
use tokio_postgres::NoTls;

use crate::secrets::{SECRET, Secrets, login, target};
use crate::support::{Relay, World, finish, sandbox_program};

const CANNOT_CONNECT: &str = "08001";
/// The next step for a role that may not read the secret.
const ALLOW: &str = "Allow the task role secretsmanager:GetSecretValue on this secret";

/// What a client of the MySQL target is told.
async fn mariadb(relay: &Relay<'_>) -> String {
    let mut client = Command::new("mariadb");
    client.args(["--no-defaults", "--protocol=tcp", "--skip-ssl", "-u", "anyone", "-e", "select 1", "-h"]);
    client.arg(relay.address.to_string());
    let (code, _, err) = finish(client).await;
    assert_eq!(code, 1, "{err}");
    err
}

async fn sqlstate(relay: &Relay<'_>) -> Option<String> {
    let parameters = format!("host={} port=5432 user=anyone", relay.address);
    let error = tokio_postgres::connect(&parameters, NoTls).await.err()?;
    error.code().map(|code| code.code().to_owned())
}

fn nothing_secret(log: &str) {
    for secret in [PASSWORD, "R0TATED", "SecretString", "SecretAccessKey"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[tokio::test]
async fn clients_are_told_why_there_is_no_secret_and_what_to_do() {
    let world = World::start().await;
    let secrets = Secrets::start(world.folder.path()).await;
    secrets.create(SECRET, login("scram_user", PASSWORD).to_string()).await;
    let front = secrets.front(&world).await;
    let events = MariaDb::start(world.folder.path(), &sandbox_program(), Flaws::default()).await.unwrap();
    let mut mysql = target(events.port, SECRET);
    (mysql["engine"], mysql["host"]) = (json!("mysql"), json!(HOST));
    let targets = json!({"events": mysql, "orders": target(world.database.port, SECRET)});
    let relay = secrets.relay(&world, targets).await;
    for (answer, parts) in [
        (Answer::AccessDenied, ["the task role may not read it (secretsmanager:GetSecretValue)", ALLOW]),
        (Answer::KmsDenied, ["may not decrypt it (kms:Decrypt on its key)", "Allow the task role kms:Decrypt"]),
        (Answer::DecryptionFailure, ["or its key is disabled", "check that the key is enabled"]),
        (Answer::DefaultKey, ["encrypted with the default key", "Encrypt it with a KMS key of your own"]),
        (Answer::Throttled, ["Secrets Manager is slowing the task down", "Try again in a minute"]),
        (Answer::Failure(usize::MAX), ["Secrets Manager has failed: InternalServiceError", "AWS Health Dashboard"]),
        (
            Answer::Silence,
            ["cannot be reached: no answer in time", "secretsmanager) whose security group lets the task in"],
        ),
    ] {
        front.set(answer);
        let ((code, _, psql), mariadb) = tokio::join!(relay.psql(5432, &[], "select 1"), mariadb(&relay));
        assert_eq!(code, 2);
        assert!(mariadb.contains(&format!("ERROR 1429 ({CANNOT_CONNECT})")), "{answer:?}: {mariadb}");
        for (said, name) in [(psql, "orders"), (mariadb, "events")] {
            for part in [&format!("no login for target {name}: secret {SECRET}: "), parts[0], parts[1]] {
                assert!(said.contains(part), "{answer:?}: {part} is not in {said}");
            }
            // The role's name and the account are for those who look into CloudTrail.
            assert!(!said.contains("arn:aws") && !said.contains(PASSWORD), "{said}");
        }
        // Another silence would only take long.
        if answer != Answer::Silence {
            assert_eq!(sqlstate(&relay).await.as_deref(), Some(CANNOT_CONNECT), "{answer:?}");
        }
    }
    // A failure that passes is not noticed, nor does one of before stay.
    front.set(Answer::Failure(1));
    let (code, out, err) = relay.psql(5432, &[], "select current_user").await;
    assert_eq!((code, out.as_str()), (0, "scram_user"), "{err}");
    nothing_secret(&relay.log());
    drop(relay);
    events.stop().await;
    world.stop().await;
}

#[tokio::test]
async fn a_permission_that_is_taken_away_is_missed_when_the_password_changes() {
    let world = World::start().await;
    let secrets = Secrets::start(world.folder.path()).await;
    secrets.create(SECRET, login("scram_user", PASSWORD).to_string()).await;
    let front = secrets.front(&world).await;
    let relay = secrets.relay(&world, json!({"orders": target(world.database.port, SECRET)})).await;
    let open = relay.client().await;
    for answer in [Answer::AccessDenied, Answer::KmsDenied, Answer::Silence] {
        front.set(answer);
        let calls = front.calls();
        let (code, out, err) = relay.psql(5432, &[], "select current_user").await;
        assert_eq!((code, out.as_str(), front.calls()), (0, "scram_user", calls), "{answer:?}: {err}");
    }
    front.set(Answer::AccessDenied);
    let pending = secrets.put(&login("scram_user", "R0TATED")).await;
    world.database.sql("postgres", "alter role scram_user password 'R0TATED'").await.unwrap();
    secrets.finish(&pending).await;
    for _ in 0..2 {
        let (code, _, err) = relay.psql(5432, &[], "select 1").await;
        assert_eq!(code, 2);
        // Whether the secret has another password is not known: it is not said to be wrong.
        for part in ["password authentication failed", "the relay cannot look", "the task role may not read it", ALLOW]
        {
            assert!(err.contains(part), "{part} is not in {err}");
        }
        assert!(!err.contains("the password in the secret") && !err.contains("R0TATED"), "{err}");
    }
    assert_eq!(sqlstate(&relay).await.as_deref(), Some("28P01"));
    relay.wait_for("a newer one cannot be had").await;
    front.set(Answer::Value);
    let (code, out, err) = relay.psql(5432, &[], "select current_user").await;
    assert_eq!((code, out.as_str()), (0, "scram_user"), "{err}");
    // Nobody has touched this one.
    assert_eq!(open.query_one("select 1", &[]).await.unwrap().get::<_, i32>(0), 1);
    nothing_secret(&relay.log());
    drop(open);
    drop(relay);
    world.stop().await;
}
