//! What people see in psql and mariadb when their database user from Vault ends, or their task: a notice, then why.

use mysql_async::ChangeUserOpts;
use mysql_async::prelude::Queryable as _;
use serde_json::json;

use crate::support::{Relay, World, logged, mysql_options};
use crate::terminal::Terminal;
use crate::up::Up;
use crate::vault::{Lives, relay_of_events, relay_of_orders, target, vault};
use crate::vault_caller::people;

/// Long enough to be warned, short enough to be waited for.
const SHORT: Lives = Lives { lease: 8, lease_max: 10, token: 600 };

/// psql at the relay itself.
fn psql(relay: &Relay<'_>) -> Terminal {
    Terminal::psql(&relay.address.to_string(), 5432)
}

fn mariadb(relay: &Relay<'_>) -> Terminal {
    Terminal::mariadb(&relay.address.to_string(), 3306)
}

#[tokio::test]
async fn psql_is_warned_and_told_why_its_connection_was_closed() {
    let world = World::start().await;
    let vault = vault(&world, SHORT).await;
    let mut definition = world.definition(|config| {
        config["identity"] = json!("optional");
        config["audit"] = json!("statements");
        config["target"] = json!({"orders": target(&world, &vault, "bastion", "database/creds/read")});
    });
    definition.environment.insert("BASTION_LOG".to_owned(), "trace".to_owned());
    let relay = world.relay_of(&definition).await;
    let (mut idle, mut busy, mut streaming) = (psql(&relay), psql(&relay), psql(&relay));
    let user = idle.ask("select current_user;").await;
    assert_eq!(
        (busy.ask("select current_user;").await, streaming.ask("select current_user;").await),
        (user.clone(), user.clone())
    );
    busy.write("select pg_sleep(60);").await;
    // The server sends what its buffer holds, in the middle of a row.
    streaming.write("copy (select repeat('x', 900), pg_sleep(0.01) from generate_series(1, 10000)) to stdout;").await;
    relay.wait_for("the database user will end").await;
    assert_eq!(idle.ask("select 'still here';").await, "still here");
    relay.wait_for("the lease of the database user has ended").await;
    relay.wait_for("\"ended_by\":\"lease\"").await;
    idle.write("select 'too late';").await;
    for (terminal, name) in [(idle, "idle"), (busy, "busy"), (streaming, "streaming")] {
        let (_, said) = terminal.end().await;
        for part in [
            &format!("WARNING:  bastion: the database user {user} of target orders ends at 20"),
            " UTC, and this connection with it\nHINT:  Finish what is open and connect again",
            &format!(
                "FATAL:  terminating connection due to administrator command\nDETAIL:  bastion: this connection is closed \
                 because the database user {user} of target orders has ended at 20"
            ),
            " UTC\nHINT:  Connect again: a new connection gets a new user. (bastion connection ",
        ] {
            assert!(said.contains(part), "{part:?} is not in what the {name} psql says:\n{said}");
        }
        assert!(!said.contains("lost synchronization") && !said.contains("invalid"), "{said}");
    }
    // Its own words are no bytes of the database; the audit log goes on reading those.
    let log = relay.log();
    assert!(log.contains("select 'still here';") && !log.contains("protocol_violation"), "{log}");
    drop((relay, vault));
    world.stop().await;
}

#[tokio::test]
async fn the_launcher_carries_the_notice_and_the_end() {
    let (world, vault) = people(SHORT).await;
    let up = Up::start(&world, &[]).await;
    let task = up.ready["task"].as_str().unwrap().to_owned();
    let mut idle = Terminal::psql("127.0.0.1", up.port("orders"));
    let user = idle.ask("select current_user;").await;
    logged(&world.sandbox, &task, "the database user will end").await;
    assert_eq!(idle.ask("select 'still here';").await, "still here");
    logged(&world.sandbox, &task, "\"ended_by\":\"lease\"").await;
    idle.write("select 'too late';").await;
    let (_, said) = idle.end().await;
    for part in [
        &format!("WARNING:  bastion: the database user {user} of target orders ends at 20"),
        &format!("DETAIL:  bastion: this connection is closed because the database user {user} of target orders has"),
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    assert_eq!(up.end().await.0, Some(0));
    drop(vault);
    world.stop().await;
}

#[tokio::test]
async fn mariadb_is_told_why_its_connection_was_closed() {
    let world = World::start().await;
    let (events, vault, relay) = relay_of_events(&world, SHORT).await;
    let (mut idle, mut busy) = (mariadb(&relay), mariadb(&relay));
    let user = idle.ask("select substring_index(user(), '@', 1);").await;
    assert_eq!(busy.ask("select substring_index(user(), '@', 1);").await, user);
    busy.write("select sleep(60);").await;
    // A driver that refuses packets out of their order: behind a statement, a change of the user, a prepared statement.
    let mut strict = Vec::new();
    for number in 0..4 {
        let mut conn = mysql_async::Conn::new(mysql_options(relay.address, 3306)).await.unwrap();
        let name: Option<String> = conn.query_first("select substring_index(user(), '@', 1)").await.unwrap();
        assert_eq!(name.as_deref(), Some(user.as_str()));
        match number {
            0 => {}
            1 => conn.change_user(ChangeUserOpts::default()).await.unwrap(),
            2 => conn.change_user(ChangeUserOpts::default().with_pass(Some("any".to_owned()))).await.unwrap(),
            _ => assert_eq!(conn.prep("select ?, 2").await.unwrap().num_columns(), 2),
        }
        strict.push(conn);
    }
    relay.wait_for("the lease of the database user has ended").await;
    relay.wait_for("\"ended_by\":\"lease\"").await;
    let told = format!(
        "Server shutdown in progress. bastion: this connection is closed because the database user {user} of target events has \
         ended at 20"
    );
    for mut conn in strict {
        let error = conn.query_first::<u8, _>("select 1").await.unwrap_err();
        assert!(
            matches!(&error, mysql_async::Error::Server(said) if said.code == 1053 && said.message.starts_with(&told)),
            "{error:?}"
        );
    }
    idle.write("select 'too late';").await;
    for terminal in [idle, busy] {
        let (_, said) = terminal.end().await;
        assert!(said.contains("ERROR 1053 (08S01)") && said.contains(&told), "{said}");
    }
    drop((relay, vault));
    events.stop().await;
    world.stop().await;
}

#[tokio::test]
async fn a_task_that_is_stopped_says_so_to_those_whose_user_ends_with_it() {
    let world = World::start().await;
    let (vault, relay) = relay_of_orders(&world, Lives::default()).await;
    let mut idle = psql(&relay);
    assert!(idle.ask("select current_user;").await.starts_with("v-"));
    let pid = world.sandbox.task_pid(&relay.id).and_then(|pid| i32::try_from(pid).ok()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    // The second signal ends the grace of the first.
    for log in ["draining", "\"ended_by\":\"shutdown\""] {
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        relay.wait_for(log).await;
    }
    idle.write("select 'too late';").await;
    let (_, said) = idle.end().await;
    let told = "FATAL:  terminating connection due to administrator command\nDETAIL:  bastion: this connection to target orders is \
                closed because the bastion task is being stopped\nHINT:  Connect again: bastion up";
    assert!(said.contains(told), "{said}");
    drop((relay, vault));
    world.stop().await;
}
