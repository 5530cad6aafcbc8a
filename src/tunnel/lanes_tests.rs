//! Lanes come, go, are lost and end.

use std::sync::atomic::Ordering;

use bastion_sandbox::gateway::{Event, Knobs, Odds, Options, Path, WhenDown};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use super::client::CarryError;
use super::world::{PATIENCE, World, exchange, noise};
use super::*;
use crate::types::Engine;

#[tokio::test]
async fn four_sessions_carry_one_link_and_end_with_it() {
    let world = World::new(4).await;
    world.all_joined().await;
    assert_eq!(world.sessions.gateway.session_ids().len(), 4);
    let mut clients = JoinSet::new();
    for n in 0..20_u8 {
        let (client, carried) = world.client("echo").await;
        clients.spawn(async move {
            let sent = vec![n; 30_000];
            assert!(exchange(client, &sent).await == sent);
            carried.await.unwrap().unwrap();
        });
    }
    while let Some(done) = clients.join_next().await {
        done.unwrap();
    }
    let (_, link) = world.lanes.stats();
    assert_eq!((link.sent, link.received), (600_000, 600_000));
    assert!(link.received_packed < 100_000, "{link:?}");
    assert_eq!(world.lanes.clients(), 0);
    world.end().await;
}

#[tokio::test]
async fn bytes_are_the_same_under_every_fault_of_the_way() {
    let odds = Odds { drop: 0.01, duplicate: 0.02, reorder: 0.02, ..Odds::default() };
    let path = Path { data: odds, ack: odds, jitter_ms: 2, ..Path::default() };
    for knobs in [
        Knobs { up: path.clone(), down: path.clone(), ..Knobs::default() },
        Knobs { cut_client_every_ms: Some(700), when_down: WhenDown::Drop, ..Knobs::default() },
        Knobs { bye_after_ms: Some(600), cut_agent_every_ms: Some(900), ..Knobs::default() },
    ] {
        let world = World::new(3).await;
        world.all_joined().await;
        world.sessions.gateway.faults().set_all(knobs).unwrap();
        let sent = noise(1_500_000);
        let (client, carried) = world.client("echo").await;
        let answer = exchange(client, &sent).await;
        assert!(Sha256::digest(&answer) == Sha256::digest(&sent), "{} of {} bytes", answer.len(), sent.len());
        carried.await.unwrap().unwrap();
        world.end().await;
    }
}

#[tokio::test]
async fn a_session_that_ends_in_mid_transfer_costs_no_byte_and_is_replaced() {
    let world = World::new(3).await;
    world.all_joined().await;
    let sent = noise(3_000_000);
    let (client, carried) = world.client("echo").await;
    let breaking = async {
        for lane in [2, 0, 1] {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let mut ids = world.sessions.gateway.session_ids();
            ids.sort();
            assert!(world.sessions.gateway.terminate_session(&ids[lane.min(ids.len() - 1)]));
        }
    };
    let (answer, ()) = tokio::join!(exchange(client, &sent), breaking);
    assert!(answer == sent);
    carried.await.unwrap().unwrap();
    world.all_joined().await;
    world.end().await;
}

#[tokio::test]
async fn what_a_client_hashes_arrives_whole_while_a_lane_is_silent() {
    let world = World::new(2).await;
    world.all_joined().await;
    let mut ids = world.sessions.gateway.session_ids();
    ids.sort();
    let sent = noise(2_000_000);
    let (client, carried) = world.client("hash").await;
    world.sessions.gateway.faults().happen(Some(&ids[1]), Event::FreezeClient).unwrap();
    let answer = exchange(client, &sent).await;
    assert_eq!(answer, Sha256::digest(&sent).to_vec());
    carried.await.unwrap().unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_session_that_is_lost_has_the_others_looked_at() {
    // By themselves, those that carry nothing would not ask for an hour.
    let config = Config {
        ping_every: Duration::from_secs(3600),
        pong_timeout: Duration::from_millis(300),
        quiet: Duration::from_millis(100),
        ..Config::default()
    };
    let world = World::of(4, Options::default(), config).await;
    world.all_joined().await;
    // The network is another one.
    let gateway = &world.sessions.gateway;
    gateway.faults().happen(None, Event::FreezeClient).unwrap();
    let (client, carried) = world.client("echo").await;
    assert_eq!(exchange(client, b"hello").await, b"hello");
    carried.await.unwrap().unwrap();
    let all_resumed = async {
        let resumed = |id: &String| gateway.snapshot(id).is_some_and(|session| session.connections > 1);
        while !gateway.session_ids().iter().all(resumed) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all_resumed).await.expect("one is still dead");
    assert_eq!(gateway.session_ids().len(), 4);
    world.end().await;
}

/// As when the agent of one session hangs: pings of the socket are answered, and nothing else.
fn silent() -> Knobs {
    let nothing = Odds { drop: 1.0, ..Odds::default() };
    let path = Path { data: nothing, ack: nothing, ..Path::default() };
    Knobs { up: path.clone(), down: path, ..Knobs::default() }
}

#[tokio::test]
async fn a_lane_that_hangs_while_its_socket_lives_is_replaced() {
    let world = World::new(2).await;
    world.all_joined().await;
    let ids = world.sessions.gateway.session_ids();
    let further = ids.iter().max().unwrap();
    world.sessions.gateway.faults().set(further, silent()).unwrap();
    let sent = noise(300_000);
    let (client, carried) = world.client("echo").await;
    assert!(exchange(client, &sent).await == sent);
    carried.await.unwrap().unwrap();
    let mut lanes = world.lanes.lanes();
    let lost = lanes.wait_for(|lanes| lanes.open == 1);
    tokio::time::timeout(PATIENCE, lost).await.expect("it is still there").unwrap();
    world.all_joined().await;
    assert!(!world.sessions.gateway.session_ids().contains(further));
    world.end().await;
}

#[tokio::test]
async fn an_open_connection_outlives_the_only_session_whose_agent_hangs() {
    let world = World::new(1).await;
    world.all_joined().await;
    let (mut client, carried) = world.client("echo").await;
    client.write_all(b"hello").await.unwrap();
    client.read_exact(&mut [0; 5]).await.unwrap();
    let first = world.sessions.gateway.session_ids().remove(0);
    world.sessions.gateway.faults().set(&first, silent()).unwrap();
    assert_eq!(exchange(client, b"again").await, b"again");
    carried.await.unwrap().unwrap();
    assert!(!world.sessions.gateway.session_ids().contains(&first));
    world.end().await;
}

#[tokio::test]
async fn a_client_that_waits_for_the_only_lane_gets_it_as_soon_as_it_is_there() {
    let world = World::new(1).await;
    world.all_joined().await;
    world.relay.held.send_replace(true);
    assert!(world.sessions.gateway.terminate_session(&world.sessions.gateway.session_ids()[0]));
    // The session has its successor, the link its lane not yet.
    world.relay.waiting.subscribe().wait_for(|waiting| *waiting == 1).await.unwrap();
    world.lanes.state().wait_for(|state| *state == State::Connected).await.unwrap();
    let mut ready = Box::pin(world.lanes.ready());
    assert!(futures_util::poll!(&mut ready).is_pending());
    world.relay.held.send_replace(false);
    assert!(ready.await.unwrap().is_some());
    world.end().await;
}

#[tokio::test]
async fn the_relay_hears_of_the_end_at_once_also_while_lanes_are_opening() {
    // Several times: within a lane's task it is chance what is looked at first.
    for wanted in [1, 1, 1, 1, 1, 3, 3] {
        let world = World::new(wanted).await;
        let (mut client, carried) = world.client("echo").await;
        client.write_all(b"hello").await.unwrap();
        client.read_exact(&mut [0; 5]).await.unwrap();
        let link = world.relay.links.lock().unwrap().values().next().unwrap().clone();
        world.lanes.close().await;
        world.first.close().await;
        link.emptied().await;
        // Otherwise it would keep the link and its connections for somebody who comes back.
        assert_eq!(link.over().as_deref(), Some("the other side has closed the link"));
        carried.await.unwrap().unwrap_err();
        world.end().await;
    }
}

#[tokio::test]
async fn sessions_are_kept_alive_while_a_client_is_there_and_no_longer() {
    let world = World::new(2).await;
    world.all_joined().await;
    assert_eq!(world.lanes.kept_alive(), (0, 2));
    let (mut client, carried) = world.client("echo").await;
    client.write_all(b"hello").await.unwrap();
    client.read_exact(&mut [0; 5]).await.unwrap();
    assert_eq!(world.lanes.kept_alive(), (2, 0));
    // A session that comes while the client is there.
    let mut ids = world.sessions.gateway.session_ids();
    ids.sort();
    assert!(world.sessions.gateway.terminate_session(&ids[1]));
    world.lanes.lanes().wait_for(|lanes| lanes.open == 1).await.unwrap();
    world.all_joined().await;
    assert_eq!(world.lanes.kept_alive(), (2, 0));
    drop(client);
    drop(carried.await.unwrap());
    assert_eq!(world.lanes.kept_alive(), (0, 2));
    world.end().await;
}

#[tokio::test]
async fn a_target_that_reads_nothing_holds_up_nobody_else() {
    let world = World::new(2).await;
    world.all_joined().await;
    let (mut deaf, ignored) = world.client("deaf").await;
    let filling = async {
        let noise = noise(1 << 20);
        while deaf.write_all(&noise).await.is_ok() {}
    };
    let sent = noise(1_000_000);
    let others = async {
        for _ in 0..2 {
            let (client, carried) = world.client("echo").await;
            assert!(exchange(client, &sent).await == sent);
            carried.await.unwrap().unwrap();
        }
    };
    tokio::select! {
        () = filling => panic!("somebody took all of it"),
        () = others => {}
    }
    // As over TCP alone: what it has sent goes before its end, which the target would have to read first.
    ignored.abort();
    world.end().await;
}

#[tokio::test]
async fn a_database_that_drops_a_client_which_has_left_is_no_failure() {
    let world = World::new(1).await;
    for (engine, is_failure) in [(Engine::Mysql, false), (Engine::Tcp, true)] {
        let (mut client, carried) = world.client_of(engine, "rude").await;
        client.write_all(b"quit").await.unwrap();
        client.shutdown().await.unwrap();
        // Other protocols may still wait for an answer, and this is not one.
        assert_eq!(client.read_u8().await.unwrap_err().kind() != std::io::ErrorKind::UnexpectedEof, is_failure);
        assert_eq!(carried.await.unwrap().is_err(), is_failure);
    }
    world.end().await;
}

#[tokio::test]
async fn fewer_lanes_do_and_the_reason_is_known() {
    let world = World::new(4).await;
    world.all_joined().await;
    world.sessions.refuses.store(true, Ordering::SeqCst);
    let mut ids = world.sessions.gateway.session_ids();
    ids.sort();
    assert!(world.sessions.gateway.terminate_session(&ids[3]));
    let mut states = world.lanes.lanes();
    let told = states.wait_for(|state| state.open == 3 && state.problem.is_some());
    let problem = tokio::time::timeout(PATIENCE, told).await.expect("nobody noticed").unwrap().problem.clone();
    assert!(problem.as_ref().unwrap().ends_with("of 4 cannot be opened: too many sessions"), "{problem:?}");
    let (client, carried) = world.client("echo").await;
    assert_eq!(exchange(client, b"hello").await, b"hello");
    carried.await.unwrap().unwrap();
    world.sessions.refuses.store(false, Ordering::SeqCst);
    world.all_joined().await;
    assert_eq!(world.lanes.lanes().borrow().problem, None);
    world.end().await;
}

/// Loses the connections of clients between two messages and within one, and looks at what they hear.
async fn lost_clients_hear(world: &World, over: &str, lose: impl Fn()) {
    let postgres: &[u8] = b"NR\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
    let mysql: &[u8] = b"\x03\0\0\0\x0a8\0\x07\0\0\x02\0\0\0\x02\0\0\0";
    for (engine, heard) in [(Engine::Postgres, postgres), (Engine::Mysql, mysql)] {
        for cut in [0, 3] {
            let (mut client, carried) = world.client_of(engine, "echo").await;
            let heard = &heard[..heard.len() - cut];
            client.write_all(heard).await.unwrap();
            let mut echo = vec![0; heard.len()];
            client.read_exact(&mut echo).await.unwrap();
            lose();
            let over = format!("bastion: target echo: this connection has ended: {over}");
            let mut said = Vec::new();
            let read = client.read_to_end(&mut said).await;
            if cut > 0 {
                assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "{said:?}");
            } else if engine == Engine::Mysql {
                // The number that an idle client waits for.
                assert_eq!(said[3..13], *b"\x01\xff\x86\x04#08S01", "{said:?}");
                assert!(
                    String::from_utf8(said[13..].to_vec()).unwrap().starts_with(&format!("{over}. Connect again: "))
                );
            } else {
                assert_eq!(said[0], b'E');
                let said = String::from_utf8(said[5..].to_vec()).unwrap();
                assert!(said.contains(&format!("C08006\0M{over}\0HConnect again: ")), "{said:?}");
            }
            drop(client);
            carried.await.unwrap().unwrap_err();
        }
    }
}

#[tokio::test]
async fn a_lost_session_is_told_between_two_messages_and_reset_within_one() {
    let world = World::new(1).await;
    lost_clients_hear(&world, "the other side has closed the link", || {
        world.relay.links.lock().unwrap().drain().for_each(|(_, link)| link.close());
    })
    .await;
    world.end().await;
}

#[tokio::test]
async fn a_lost_session_is_told_the_same_the_plain_way() {
    let world = World::new(0).await;
    let gateway = &world.sessions.gateway;
    lost_clients_hear(&world, "the tunnel was cut: Session Manager ended the session", || {
        assert!(gateway.session_ids().iter().all(|id| gateway.terminate_session(id)));
    })
    .await;
    world.end().await;
}

#[tokio::test]
async fn a_relay_that_has_lost_the_link_ends_its_streams_and_gets_a_new_one() {
    let world = World::new(2).await;
    world.all_joined().await;
    let (mut client, carried) = world.client("echo").await;
    client.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    client.read_exact(&mut answer).await.unwrap();
    // As after a restart: nobody says goodbye.
    world.relay.links.lock().unwrap().drain().for_each(|(_, link)| link.close());
    let error = tokio::time::timeout(PATIENCE, carried).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, CarryError::Tunnel(_)), "{error}");
    // Not an end: a reset.
    assert!(client.read(&mut answer).await.is_err());
    let (client, carried) = world.client("echo").await;
    assert_eq!(exchange(client, b"again").await, b"again");
    carried.await.unwrap().unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_stream_that_waits_for_another_proof_opens_after_one_and_is_not_tried_for_ever() {
    let world = World::new(2).await;
    let proofs = || world.proofs.0.load(Ordering::Relaxed);
    world.relay.wanted.store(1, Ordering::Relaxed);
    let (client, carried) = world.client_of(Engine::Postgres, "shy").await;
    assert_eq!(exchange(client, b"what the client says first").await, b"what the client says first");
    carried.await.unwrap().unwrap();
    assert_eq!(proofs(), 1);
    // A relay that is never content: its sentence is for the client.
    world.relay.wanted.store(9, Ordering::Relaxed);
    let (client, carried) = world.client_of(Engine::Postgres, "shy").await;
    let told = exchange(client, b"\0\0\0\x15\0\x03\0\0user\0anyone\0\0").await;
    let told = String::from_utf8_lossy(&told).into_owned();
    assert!(told.contains("bastion: target shy: no connection: sign another login\0"), "{told}");
    let ended = carried.await.unwrap();
    assert!(matches!(ended, Err(CarryError::Unauthorized(_))), "{ended:?}");
    assert_eq!((proofs(), world.relay.wanted.load(Ordering::Relaxed)), (2, 7));
    world.end().await;
}
