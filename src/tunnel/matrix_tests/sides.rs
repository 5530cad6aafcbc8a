//! Agents that hang, sessions that end, dials that do not, targets that rest: in mid-transfer.

use std::sync::atomic::Ordering;

use super::client::CarryError;
use super::*;

/// Megabytes each way: so many as are wished for, or few.
fn sample() -> Vec<u8> {
    bytes(wished().unwrap_or(4) << 20)
}

/// As long as people see it, if somebody has time for that.
fn patient(seconds: u64, otherwise: u64) -> Duration {
    Duration::from_secs(if wished().is_some() { seconds } else { otherwise })
}

fn hangs() -> Knobs {
    Knobs { agent_hangs: true, ..Knobs::default() }
}

async fn three_lanes(options: Options, config: Config) -> World {
    let world = World::of(3, options, config).await;
    world.all_joined().await;
    world
}

/// One client of that target, in mid-transfer of which something happens; its bytes are right.
async fn transfer<T>(world: &World, target: &'static str, sent: &[u8], happening: impl Future<Output = T>) -> T {
    let (client, carried) = world.client(target).await;
    let begun = Notify::new();
    let happening = async {
        begun.notified().await;
        happening.await
    };
    let ((), seen) = tokio::join!(exchange(client, sent, &begun), happening);
    carried.await.unwrap().unwrap();
    seen
}

/// Waits for something that the gateway has seen of a session, also of one that is over.
async fn until(world: &World, session_id: &str, is_so: impl Fn(&Snapshot) -> bool) {
    let seen = async {
        while !world.sessions.gateway.snapshot(session_id).is_some_and(|session| is_so(&session)) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.expect("it does not happen");
}

fn newest(world: &World) -> String {
    world.sessions.gateway.session_ids().into_iter().max().unwrap()
}

/// All bytes arrive over the other lanes, while it still hangs.
#[tokio::test]
async fn an_agent_of_a_lane_that_hangs_while_its_socket_lives() {
    let world = three_lanes(quick(), Config::default()).await;
    let hung = newest(&world);
    let faults = world.sessions.gateway.faults();
    transfer(&world, "sums", &sample(), async { faults.set(&hung, hangs()).unwrap() }).await;
    until(&world, &hung, |session| session.hung > 0).await;
    world.end().await;
}

/// Nothing comes while it hangs; then everything goes on.
#[tokio::test]
async fn an_agent_of_the_plain_way_that_hangs_while_its_socket_lives() {
    let world = World::of(0, quick(), Config::default()).await;
    let faults = world.sessions.gateway.faults();
    transfer(&world, "sums", &sample(), async {
        faults.set_all(hangs()).unwrap();
        // It wanted to read and to send.
        until(&world, &newest(&world), |session| session.hung > 1).await;
        tokio::time::sleep(patient(8, 4)).await;
        faults.set_all(Knobs::default()).unwrap();
    })
    .await;
    assert_eq!(world.first.stats().reconnects, 0, "its socket lives");
    world.end().await;
}

#[tokio::test]
async fn a_target_that_rests() {
    let sent = sample();
    for wanted in [3, 0] {
        let world = World::of(wanted, quick(), Config::default()).await;
        let rest = &world.relay.rest;
        transfer(&world, "tired", &sent, async {
            rest.wished.send_replace(true);
            rest.now.subscribe().wait_for(|now| *now).await.unwrap();
            if wanted > 0 {
                // Beside it.
                transfer(&world, "sums", &sent, async {}).await;
            } else {
                // The agent takes it all, and then nothing any more.
                let enough = (sent.len() / 2).min(6 << 20) as u64;
                let under_way = || world.first.stats().up - rest.read.load(Ordering::Relaxed) as u64;
                let filling = async {
                    while under_way() < enough {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                tokio::time::timeout(PATIENCE, filling).await.expect("less is under way");
            }
            tokio::time::sleep(patient(8, 2)).await;
            assert!(*rest.now.borrow(), "it did not rest");
            rest.wished.send_replace(false);
        })
        .await;
        world.end().await;
    }
}

/// Sends the half, and reads what comes back of it until that ends before its end; never cleanly, and with nothing that is
/// not of it.
async fn fails(client: TcpStream, sent: &[u8], begun: &Notify) {
    let (mut read, mut write) = client.into_split();
    let up = async {
        write.write_u64(sent.len() as u64).await.unwrap();
        write.write_all(&sent[..sent.len() / 2]).await.unwrap();
        // Not before: a failing write would hear of the reset in place of the reader.
        begun.notify_one();
    };
    let down = async {
        let mut buffer = vec![0; 64 * 1024];
        let mut came = 0;
        loop {
            match tokio::time::timeout(PATIENCE, read.read(&mut buffer)).await.expect("nothing ends") {
                Ok(0) => panic!("a clean end after {came} of {} bytes", sent.len()),
                Ok(length) => {
                    assert!(buffer.get(..length) == sent.get(came..came + length), "something else came back");
                    came += length;
                }
                Err(error) => break error,
            }
        }
    };
    let ((), error) = tokio::join!(up, down);
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

/// A session ends, by what `ends` does to the one of that id: lanes lose no byte. The plain way cannot survive it: its
/// streams fail, and so says who carries them; a new client finds a new session, once `after` has made that possible.
async fn a_session_ends(
    options: Options,
    config: Config,
    ends: impl AsyncFn(&World, &str),
    after: impl AsyncFn(&World, &str),
) {
    let sent = sample();
    let world = three_lanes(options.clone(), config.clone()).await;
    let (victim, next) = (newest(&world), world.sessions.next_id());
    transfer(&world, "sums", &sent, async {
        ends(&world, &victim).await;
        after(&world, &next).await;
    })
    .await;
    world.all_joined().await;
    until(&world, &victim, |session| session.over).await;
    world.end().await;

    let world = World::of(0, options, config).await;
    let (victim, next) = (newest(&world), world.sessions.next_id());
    let (client, carried) = world.client("sums").await;
    let begun = Notify::new();
    let ending = async {
        begun.notified().await;
        ends(&world, &victim).await;
    };
    tokio::join!(fails(client, &sent, &begun), ending);
    let error = carried.await.unwrap().unwrap_err();
    assert!(matches!(error, CarryError::Tunnel(_)), "{error}");
    after(&world, &next).await;
    transfer(&world, "sums", &sent, async {}).await;
    until(&world, &victim, |session| session.over).await;
    world.end().await;
}

#[tokio::test]
async fn an_agent_that_speaks_another_version_of_smux() {
    let speaks = async |world: &World, victim: &str| {
        world.sessions.gateway.faults().happen(Some(victim), Event::SmuxVersion).unwrap();
        until(world, victim, |session| session.junk == 1).await;
    };
    a_session_ends(quick(), Config::default(), speaks, async |_, _| {}).await;
}

/// Ends a session; the next ones are made with these knobs.
fn successor_has(knobs: Knobs, world: &World, victim: &str) {
    let faults = world.sessions.gateway.faults();
    let others = world.sessions.gateway.session_ids();
    faults.set_all(knobs).unwrap();
    others.iter().for_each(|id| faults.set(id, Knobs::default()).unwrap());
    assert!(world.sessions.gateway.terminate_session(victim));
}

#[tokio::test]
async fn a_session_whose_agent_never_greets() {
    let config = Config { open_timeout: patient(30, 5), ..Config::default() };
    let ends = async |world: &World, victim: &str| successor_has(hangs(), world, victim);
    let given_up = async |world: &World, next: &str| {
        until(world, next, |session| session.hung > 0 && session.over).await;
        world.sessions.gateway.faults().set_all(Knobs::default()).unwrap();
    };
    a_session_ends(quick(), config, ends, given_up).await;
}

#[tokio::test]
async fn a_session_whose_handshake_is_not_answered() {
    let mut options = quick();
    options.agent.greeting = patient(15, 5);
    let unheard = Knobs { up: data(dropped(1.0)), ..Knobs::default() };
    let ends = async |world: &World, victim: &str| successor_has(unheard.clone(), world, victim);
    let given_up = async |world: &World, next: &str| {
        until(world, next, |session| session.up.dropped > 0 && session.over).await;
        world.sessions.gateway.faults().set_all(Knobs::default()).unwrap();
    };
    a_session_ends(options, Config::default(), ends, given_up).await;
}

/// Only lanes are dialled: the clients of others go on, and another session follows.
#[tokio::test]
async fn a_dial_of_a_lane_that_hangs() {
    let sent = sample();
    let world = three_lanes(quick(), Config::default()).await;
    let (victim, next) = (newest(&world), world.sessions.next_id());
    let faults = world.sessions.gateway.faults();
    transfer(&world, "sums", &sent, async {
        faults.set_all(Knobs { dials_hang: true, ..Knobs::default() }).unwrap();
        assert!(world.sessions.gateway.terminate_session(&victim));
        until(&world, &next, |session| session.hung > 0).await;
        transfer(&world, "sums", &sent, async {}).await;
    })
    .await;
    until(&world, &next, |session| session.over).await;
    faults.set_all(Knobs::default()).unwrap();
    world.all_joined().await;
    world.end().await;
}

/// Whoever waits for a dial hears of it in time; the others of the session go on, and so does the next one.
#[tokio::test]
async fn a_dial_of_the_plain_way_that_hangs() {
    let sent = sample();
    let world = World::of(0, quick(), Config::default()).await;
    let faults = world.sessions.gateway.faults();
    transfer(&world, "sums", &sent, async {
        faults.set_all(Knobs { dials_hang: true, ..Knobs::default() }).unwrap();
        let (mut waiting, carried) = world.client("echo").await;
        until(&world, &newest(&world), |session| session.hung > 0).await;
        let told = tokio::time::timeout(PATIENCE, carried).await.expect("it waits for the dial for ever");
        let error = told.unwrap().unwrap_err();
        assert_eq!(error.to_string(), "the relay did not answer within 15 s");
        assert_eq!(waiting.read_u8().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        faults.set_all(Knobs::default()).unwrap();
    })
    .await;
    transfer(&world, "sums", &sent, async {}).await;
    world.end().await;
}
