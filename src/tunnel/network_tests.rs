//! Slow lines, gateways in trouble and agents with few workers: what is asked of the gateway, by counts.

use bastion_sandbox::gateway::{Knobs, Options, Path, Phase};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::world::{PATIENCE, World, exchange, noise};
use super::*;

/// A line of this rate towards the gateway, 40 ms there and back.
fn line(bytes_per_second: u64) -> Knobs {
    let mut knobs = Knobs::default().with_latency_ms(20);
    (knobs.up.bytes_per_second, knobs.up.queue_bytes) = (Some(bytes_per_second), Some(64 << 10));
    knobs
}

async fn says_hello(world: &World) {
    let (mut client, carried) = world.client("echo").await;
    client.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    tokio::time::timeout(PATIENCE, client.read_exact(&mut answer)).await.expect("no answer").unwrap();
    assert_eq!(&answer, b"hello");
    // The plain way cannot pass on the end of one direction only.
    carried.abort();
}

/// Sends so many bytes and reads them again.
async fn sums(world: &World, length: usize) {
    let (client, carried) = world.client("sums").await;
    let sent = noise(length);
    let (mut read, mut write) = client.into_split();
    let mut answer = vec![0; length];
    let both = async {
        tokio::join!(
            async {
                write.write_u64(u64::try_from(length).unwrap()).await.unwrap();
                write.write_all(&sent).await.unwrap();
            },
            async { read.read_exact(&mut answer).await.unwrap() }
        )
    };
    tokio::time::timeout(PATIENCE, both).await.expect("stuck");
    assert!(answer == sent);
    carried.abort();
}

/// Messages of ours that the gateway saw, and those that were sent more than once.
fn sent(world: &World) -> (u64, u64) {
    let snapshots = world.sessions.snapshots();
    (snapshots.iter().map(|session| session.up.data).sum(), world.first.stats().resent)
}

#[tokio::test]
async fn a_slow_line_with_nothing_lost_sees_hardly_any_repeats() {
    for lanes in [0, 1] {
        let world = World::with(lanes, Options { knobs: line(150_000), ..Options::default() }).await;
        sums(&world, 300_000).await;
        let (messages, repeats) = sent(&world);
        assert!(repeats * 20 <= messages, "{lanes} lanes: {repeats} repeats of {messages} messages");
        world.end().await;
    }
}

#[tokio::test]
async fn a_line_that_becomes_long_and_slow_in_mid_upload_sees_hardly_any_repeats() {
    let phase = |for_ms, bytes_per_second, latency_ms| Phase { for_ms, bytes_per_second, latency_ms };
    let up = Path { phases: vec![phase(1500, Some(2_000_000), 1), phase(4000, Some(300_000), 400)], ..Path::default() };
    let mut options = Options { knobs: Knobs { up, ..Knobs::default() }, ..Options::default() };
    options.agent.up_bytes_per_second = Some(9_000_000);
    let world = World::with(0, options).await;
    sums(&world, 2_000_000).await;
    let (messages, repeats) = sent(&world);
    assert!(repeats * 20 <= messages, "{repeats} repeats of {messages} messages");
    world.end().await;
}

#[tokio::test]
async fn a_gateway_that_lets_every_socket_in_and_closes_it_is_asked_seldom() {
    for lanes in [0, 4] {
        let world = World::new(lanes).await;
        if lanes > 0 {
            world.all_joined().await;
        }
        says_hello(&world).await;
        let sessions = world.sessions.snapshots().len();
        let asked = || world.sessions.snapshots().iter().map(|session| session.connections).sum::<u64>();
        let before = asked();
        let (mut states, mut told) = (world.lanes.state(), Vec::new());
        let closing = Knobs { cut_client_every_ms: Some(1), ..Knobs::default() };
        world.sessions.gateway.faults().set_all(closing).unwrap();
        let watching = async {
            while states.changed().await.is_ok() {
                let name = std::mem::discriminant(&*states.borrow_and_update());
                if told.last() != Some(&name) {
                    told.push(name);
                }
            }
        };
        let _five_seconds = tokio::time::timeout(Duration::from_secs(5), watching).await;
        let asked = usize::try_from(asked() - before).unwrap();
        // At once, then after 100, 200, 400, 800, 1600 and 3200 ms, by half at most; after 1 s where something came through.
        assert!(asked <= 14 * sessions, "{asked} sockets of {sessions} sessions");
        assert!(told.len() <= 4 * sessions + 1, "{} changes of the state", told.len());
        world.sessions.gateway.faults().set_all(Knobs::default()).unwrap();
        tokio::time::timeout(PATIENCE, states.wait_for(|state| *state == State::Connected)).await.unwrap().unwrap();
        says_hello(&world).await;
        world.end().await;
    }
}

#[tokio::test]
async fn a_gateway_that_begins_to_refuse_a_size_in_use_is_survived() {
    let world = World::new(2).await;
    world.all_joined().await;
    let bytes = noise(8_000_000);
    let (client, carried) = world.client("hash").await;
    let gateway = world.sessions.gateway.clone();
    let largest = || world.sessions.snapshots().iter().map(|session| session.up.largest).max().unwrap_or_default();
    let done = std::cell::Cell::new(false);
    let send = async {
        let answer = exchange(client, &bytes).await;
        done.set(true);
        answer
    };
    let refuse = async {
        while largest() < 10_000 && !done.get() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        gateway.faults().set_all(Knobs { max_frame: Some(9_000), ..Knobs::default() }).unwrap();
    };
    let (answer, ()) = tokio::join!(send, refuse);
    assert!(largest() >= 10_000, "{} bytes were the largest frame", largest());
    assert_eq!(answer.len(), 32);
    carried.await.unwrap().unwrap();
    let asked: u64 = world.sessions.snapshots().iter().map(|session| session.connections).sum();
    assert!(asked < 40, "{asked} sockets");
    world.end().await;
}

#[tokio::test]
async fn an_agent_with_two_workers_gives_two_lanes_and_is_not_asked_again_and_again() {
    let mut options = Options::default();
    options.agent.workers = Some(2);
    let world = World::of(8, options, Config { open_timeout: Duration::from_secs(8), ..Config::default() }).await;
    let mut states = world.lanes.lanes();
    let told = states.wait_for(|state| state.open == 2 && state.problem.is_some());
    let problem = tokio::time::timeout(PATIENCE, told).await.expect("nobody noticed").unwrap().problem.clone().unwrap();
    assert!(problem.starts_with("the agent in the task answers 2 sessions of 8 and no more: "), "{problem}");
    says_hello(&world).await;
    let only_two = async {
        while world.sessions.gateway.session_ids().len() > 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, only_two).await.expect("a session that nobody answers goes on");
    let once_more = async {
        while world.sessions.snapshots().len() < 9 || world.sessions.gateway.session_ids().len() > 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, once_more).await.expect("no lane is tried once more");
    // Longer than a lane waits after a failure.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(world.sessions.snapshots().len(), 9, "one try of each lane, and one more");
    assert_eq!(world.sessions.gateway.workers(), (2, 2));
    world.end().await;
}

#[tokio::test]
async fn the_plain_way_gives_new_clients_another_session_while_one_target_does_not_read() {
    let world = World::new(0).await;
    let (mut deaf, ignored) = world.client("deaf").await;
    let filling = async {
        let noise = noise(1 << 20);
        while deaf.write_all(&noise).await.is_ok() {}
    };
    let others = async {
        while !world.first.is_held_up(Duration::from_secs(6)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        says_hello(&world).await;
        says_hello(&world).await;
        assert_eq!(world.sessions.snapshots().len(), 2, "one further session is enough");
        let problem = world.lanes.lanes().borrow().problem.clone().unwrap();
        assert!(problem.ends_with("; new connections use another session"), "{problem}");
    };
    let both = async {
        tokio::select! {
            () = filling => panic!("somebody took all of it"),
            () = others => {}
        }
    };
    tokio::time::timeout(PATIENCE, both).await.expect("stuck");
    // The stream in it still waits: it was not cut for the others.
    let mut byte = [0];
    assert!(tokio::time::timeout(Duration::from_millis(100), deaf.read(&mut byte)).await.is_err());
    // Without it, nobody needs the session, and the next client gets a new first one.
    ignored.abort();
    let _cut = ignored.await;
    drop(deaf);
    says_hello(&world).await;
    assert!(!world.first.is_held_up(Duration::from_secs(6)));
    world.end().await;
}
