//! What goes wrong under open connections, with the real processes: the launcher, the relay in its task, psql and mariadb
//! in front, and real databases behind.

use std::time::Duration;

use bastion_sandbox::mariadb::MariaDb;
use bastion_sandbox::postgres::Flaws;
use rustix::process::Signal;

use crate::support::{PATIENCE, World, sandbox_program};
use crate::terminal::Terminal;
use crate::up::{Up, bastion, ports, running, up_with};

/// Where the launcher listens.
const HERE: &str = "127.0.0.1";

fn signal(pid: u32, signal: Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// The process of the relay that the launcher has started.
fn relay(world: &World, up: &Up) -> u32 {
    world.sandbox.task_pid(up.ready["task"].as_str().unwrap()).unwrap()
}

/// A world with a MariaDB too, whose target is `events`.
async fn world_of_both() -> (World, MariaDb) {
    let folder = World::folder();
    let events = MariaDb::start(folder.path(), &sandbox_program(), Flaws::default()).await.unwrap();
    (World::start_in(folder, Flaws::default(), Some(&events), |_| ()).await, events)
}

/// Three clients in the midst of something: in a transaction, and in a statement of each engine.
struct Clients {
    idle: Terminal,
    busy: Terminal,
    busy_too: Terminal,
}

impl Clients {
    async fn start(up: &Up) -> Self {
        let mut idle = Terminal::psql(HERE, up.port("orders"));
        assert_eq!(idle.ask("begin; select 1;").await, "1");
        let (mut busy, mut busy_too) =
            (Terminal::psql(HERE, up.port("orders")), Terminal::mariadb(HERE, up.port("events")));
        busy.write("select pg_sleep(600);").await;
        busy_too.write("select sleep(600);").await;
        let (mut orders, mut events) =
            (Terminal::psql(HERE, up.port("orders")), Terminal::mariadb(HERE, up.port("events")));
        let at_work = async {
            let asleep = "select count(*) from pg_stat_activity where wait_event = 'PgSleep';";
            while orders.ask(asleep).await != "1" {}
            let asleep = "select count(*) from information_schema.processlist where state = 'User sleep';";
            while events.ask(asleep).await != "1" {}
        };
        tokio::time::timeout(PATIENCE, at_work).await.expect("nobody is at work");
        Self { idle, busy, busy_too }
    }

    /// Each hears what has happened, in its protocol.
    async fn hear(self, why: &str) {
        let Self { mut idle, busy, busy_too } = self;
        idle.write("select 2;").await;
        for (client, code, start) in [
            (busy, 2, "FATAL:  bastion: target orders: this connection has ended: "),
            (busy_too, 1, "ERROR 1158 (08S01) at line 1: bastion: target events: this connection has ended: "),
            (idle, 2, "FATAL:  bastion: target orders: this connection has ended: "),
        ] {
            let (exit, said) = client.end().await;
            assert!(exit == Some(code) && said.contains(start) && said.contains(why), "{said}");
        }
    }
}

/// Of each engine one that has something to lose: an open transaction, a variable of its session.
async fn idle(up: &Up) -> [Terminal; 2] {
    let (mut orders, mut events) =
        (Terminal::psql(HERE, up.port("orders")), Terminal::mariadb(HERE, up.port("events")));
    assert_eq!(orders.ask("begin; select 1;").await, "1");
    assert_eq!(events.ask("set @here = 7; select @here;").await, "7");
    [orders, events]
}

/// As when the kernel has no memory left: no word to anybody, and ECS ends the task.
fn kill_relay(world: &World, up: &Up) -> String {
    signal(relay(world, up), Signal::KILL);
    let task = up.ready["task"].as_str().unwrap();
    format!("task {task} has stopped: Essential container in task exited; container bastion ended with exit 137")
}

#[tokio::test]
async fn a_relay_that_is_killed_is_told_to_clients_at_once_and_the_next_one_wakes_another() {
    let (world, events) = world_of_both().await;
    let mut up = up_with(&world, &["--wake"]).await;
    let clients = Clients::start(&up).await;
    let story = kill_relay(&world, &up);
    clients.hear(&story).await;
    let asleep = up.event(|event| event["state"] == "asleep").await;
    assert_eq!(asleep["message"], format!("asleep until the next connection: {story}"));
    assert_eq!(running(&world), 0);
    assert_eq!(up.psql("orders", "select current_user").await.1, "db_read");
    up.event(|event| event["state"] == "waking").await;
    up.event(|event| event["state"] == "connected").await;
    assert_eq!(up.end().await.0, Some(0));
    assert_eq!(running(&world), 0);
    world.stop().await;
    events.stop().await;
}

#[tokio::test]
async fn a_relay_that_is_killed_ends_a_launcher_that_may_not_start_another() {
    let (world, events) = world_of_both().await;
    let up = up_with(&world, &[]).await;
    let clients = Clients::start(&up).await;
    let story = kill_relay(&world, &up);
    clients.hear(&story).await;
    let (code, said) = up.ended().await;
    let wanted =
        format!("Error: {story}\nHint: the relay ended; the task's log says why\nHint: start again: bastion up");
    assert!(code == Some(1) && said.contains(&wanted), "{said}");
    world.stop().await;
    events.stop().await;
}

#[tokio::test]
async fn a_relay_that_is_killed_ends_connections_at_once_the_plain_way_too() {
    let (world, events) = world_of_both().await;
    let mut up = up_with(&world, &["--lanes", "0", "--wake"]).await;
    let Clients { mut idle, busy, busy_too } = Clients::start(&up).await;
    let story = kill_relay(&world, &up);
    // The agent may have said that the connection is closed before anybody knows of the task, as a server that dies does.
    let (code, said) = busy.end().await;
    assert!(code == Some(2) && said.contains("server closed the connection unexpectedly"), "{said}");
    let (code, said) = busy_too.end().await;
    assert!(code == Some(1) && (said.contains("ERROR 2013") || said.contains("ERROR 1158")), "{said}");
    idle.write("select 2;").await;
    assert_eq!(idle.end().await.0, Some(2));
    let asleep = up.event(|event| event["state"] == "asleep").await;
    assert_eq!(asleep["message"], format!("asleep until the next connection: {story}"));
    assert_eq!(up.psql("orders", "select current_user").await.1, "db_read");
    assert_eq!(up.end().await.0, Some(0));
    world.stop().await;
    events.stop().await;
}

#[tokio::test]
async fn connections_outlive_a_relay_that_hangs_for_a_while() {
    let (world, events) = world_of_both().await;
    let mut up = up_with(&world, &[]).await;
    let [mut idle, mut idle_too] = idle(&up).await;
    signal(relay(&world, &up), Signal::STOP);
    idle.write("select 2, txid_current_if_assigned() is null, now() < clock_timestamp();").await;
    idle_too.write("select @here + 1;").await;
    up.event(|event| event["state"] == "reconnecting").await;
    signal(relay(&world, &up), Signal::CONT);
    assert_eq!((idle.line().await.as_str(), idle_too.line().await.as_str()), ("2|t|t", "8"));
    up.event(|event| event["state"] == "connected").await;
    assert_eq!(idle.ask("commit; select 3;").await, "3");
    assert_eq!(up.psql("orders", "select 4").await.1, "4");
    drop((idle, idle_too));
    assert_eq!(up.end().await.0, Some(0));
    world.stop().await;
    events.stop().await;
}

#[tokio::test]
async fn connections_over_lanes_outlive_an_agent_that_is_restarted() {
    let (world, events) = world_of_both().await;
    let mut up = up_with(&world, &[]).await;
    let [mut idle, mut idle_too] = idle(&up).await;
    let task = up.ready["task"].as_str().unwrap().to_owned();
    world.sandbox.end_agent(&task);
    up.event(|event| event["message"].as_str().is_some_and(|text| text.contains("not connected"))).await;
    idle.write("select 2, now() < clock_timestamp();").await;
    idle_too.write("select @here + 1;").await;
    world.sandbox.start_agent(&task);
    assert_eq!((idle.line().await.as_str(), idle_too.line().await.as_str()), ("2|t", "8"));
    up.event(|event| event["state"] == "connected").await;
    assert_eq!(idle.ask("commit; select 3;").await, "3");
    assert_eq!(up.psql("orders", "select 4").await.1, "4");
    drop((idle, idle_too));
    assert_eq!(up.end().await.0, Some(0));
    world.stop().await;
    events.stop().await;
}

#[tokio::test]
async fn an_agent_that_is_restarted_is_told_to_clients_at_once_the_plain_way() {
    let (world, events) = world_of_both().await;
    let mut up = up_with(&world, &["--lanes", "0"]).await;
    let [idle, idle_too] = idle(&up).await;
    let task = up.ready["task"].as_str().unwrap().to_owned();
    world.sandbox.end_agent(&task);
    for (mut client, error) in [(idle, "FATAL:  bastion: target orders"), (idle_too, "ERROR 1158 (08S01)")] {
        client.write("select 2;").await;
        let (_, said) = client.end().await;
        assert!(said.contains(error) && said.contains("the tunnel was cut: Session Manager"), "{said}");
    }
    up.event(|event| event["message"].as_str().is_some_and(|text| text.contains("not connected"))).await;
    // One that comes meanwhile waits for it.
    let mut next = Terminal::psql(HERE, up.port("orders"));
    next.write("select 2;").await;
    world.sandbox.start_agent(&task);
    assert_eq!(next.line().await, "2");
    up.event(|event| event["state"] == "connected").await;
    drop(next);
    assert_eq!(up.end().await.0, Some(0));
    world.stop().await;
    events.stop().await;
}

#[tokio::test]
async fn a_task_that_somebody_replaces_is_joined_by_the_next_connection_and_left_running() {
    // ECS has no patience with open connections.
    let world = World::start_with(Flaws::default(), |config| {
        config.task_definitions[0].stop_timeout = Duration::from_millis(100);
    })
    .await;
    let first = up_with(&world, &[]).await;
    let mut connect = bastion(&world, "alice", &["connect", "demo", "--json", "--wake"]);
    connect.args(ports());
    let mut connected = Up::of(connect).await;
    let task = first.ready["task"].as_str().unwrap().to_owned();
    assert_eq!(connected.ready["task"], task);
    let mut clients = [Terminal::psql(HERE, first.port("orders")), Terminal::psql(HERE, connected.port("orders"))];
    for client in &mut clients {
        assert_eq!(client.ask("begin; select 1;").await, "1");
    }
    world.sandbox.stop_directly(&task);
    for mut client in clients {
        client.write("select pg_sleep(600);").await;
        let (code, said) = client.end().await;
        assert!(code == Some(2) && said.starts_with("FATAL:  bastion: "), "{said}");
    }
    let (code, said) = first.ended().await;
    assert!(code == Some(1) && said.contains(&format!("Error: task {task} has stopped")), "{said}");
    connected.event(|event| event["state"] == "asleep").await;
    assert_eq!(running(&world), 0);
    let second = up_with(&world, &[]).await;
    assert_ne!(second.ready["task"], task);
    assert_eq!(connected.psql("orders", "select current_user").await.1, "db_read");
    connected.event(|event| event["state"] == "connected").await;
    assert_eq!(running(&world), 1);
    // It belongs to who has started it.
    assert_eq!(connected.end().await.0, Some(0));
    assert_eq!(running(&world), 1);
    assert_eq!(second.psql("orders", "select 2").await.1, "2");
    assert_eq!(second.end().await.0, Some(0));
    assert_eq!(running(&world), 0);
    world.stop().await;
}
