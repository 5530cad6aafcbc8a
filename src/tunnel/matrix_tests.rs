//! Every fault of the way that `docs/session-manager-protocol.md` lists, under lanes and the plain way: all bytes both ways
//! arrive, by their SHA-256.
//!
//! `BASTION_FAULT_MB` says how many megabytes go each way: 50 in `make soak`; some suffice otherwise. The agent here does
//! not wait after each message unless a fault is about what is under way then: this is about right bytes, not about speed.

use bastion_sandbox::gateway::{Event, Knobs, Odds, Options, Path, Snapshot, WhenDown};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::world::{PATIENCE, World, noise};
use super::*;

mod sides;

/// Of one fault.
struct Fault {
    options: Options,
    /// Set once all lanes are there.
    then: Option<Knobs>,
    /// Happens in mid-transfer, and then so often.
    event: Option<(Event, Duration)>,
    begins: Begins,
    /// It has happened to a session that has seen this.
    shows: fn(&Snapshot) -> bool,
    /// The laptop must not take all frames.
    spoils: bool,
}

/// A session in which a fault is one of the transfer, and not only of how it began.
const CARRIED: u64 = 64 * 1024;

/// When an event happens for the first time.
enum Begins {
    /// A part of the bytes has left.
    OnTheWay,
    /// The first have come back.
    OnTheWayBack,
}

/// An agent without its pauses.
fn quick() -> Options {
    let mut options = Options::default();
    options.agent.pause = Duration::ZERO;
    options
}

/// These knobs from the first frame on.
fn always(knobs: Knobs, shows: fn(&Snapshot) -> bool) -> Fault {
    let options = Options { knobs, ..quick() };
    Fault { options, then: None, event: None, begins: Begins::OnTheWayBack, shows, spoils: false }
}

/// Nothing is wrong until all lanes are there.
fn later(knobs: Knobs, shows: fn(&Snapshot) -> bool) -> Fault {
    Fault { then: Some(knobs), ..always(Knobs::default(), shows) }
}

/// No faster than that, so that what happens at a time happens before the end on every machine.
fn paced() -> Knobs {
    let path = Path { bytes_per_second: Some(1_500_000), ..Path::default() };
    Knobs { up: path.clone(), down: path, ..Knobs::default() }
}

/// Damaged frames among those for the laptop.
fn spoiled(odds: Odds, shows: fn(&Snapshot) -> bool) -> Fault {
    let fault = always(Knobs { down: data(odds), ..Knobs::default() }, shows);
    throttled(Fault { spoils: true, ..fault })
}

/// With the pauses of a real agent: what is lost of it comes back at ten messages a second, which is too slow for one that
/// sends faster. And one direction after the other: while its target is busy writing, the agent's only reader waits, and
/// with it our acknowledgements, without which it does not repeat the next message.
fn throttled(fault: Fault) -> Fault {
    let mut options = fault.options;
    options.agent = Options::default().agent;
    Fault { options, ..fault }
}

fn data(path: Odds) -> Path {
    Path { data: path, ..Path::default() }
}

fn acks(path: Odds) -> Path {
    Path { ack: path, ..Path::default() }
}

fn dropped(drop: f64) -> Odds {
    Odds { drop, ..Odds::default() }
}

/// Megabytes each way, if somebody has wished for more than the tests need.
#[expect(clippy::disallowed_methods, reason = "a setting of this test alone")]
fn wished() -> Option<usize> {
    std::env::var("BASTION_FAULT_MB").ok().map(|text| text.parse().unwrap())
}

/// Bytes that cannot be packed and such that can, in turns.
fn bytes(length: usize) -> Vec<u8> {
    let rows = (0_u32..).flat_map(|n| format!("{n}\t2026-11-{:02}\tshipped\n", n % 30).into_bytes());
    let mut bytes = noise(length);
    let half = length / 2;
    bytes.truncate(half);
    bytes.extend(rows.take(length - half));
    bytes.truncate(length);
    let chunks: Vec<&[u8]> = bytes.chunks(64 * 1024).collect();
    let (first, second) = chunks.split_at(chunks.len() / 2);
    let turns = first.iter().zip(second).flat_map(|(a, b)| [*a, *b]).chain(second.iter().skip(first.len()).copied());
    turns.flatten().copied().collect()
}

/// Sends all and reads it back with the sum of what arrived, and says when the first of it has come; fails when nothing
/// moves.
async fn exchange(client: TcpStream, sent: &[u8], begun: &Notify) {
    let (mut read, mut write) = client.into_split();
    let up = async {
        write.write_u64(sent.len() as u64).await.unwrap();
        write.write_all(sent).await.unwrap();
    };
    let down = async {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 64 * 1024];
        let mut left = sent.len();
        while left > 0 {
            let room = buffer.len().min(left);
            let read = tokio::time::timeout(PATIENCE, read.read(&mut buffer[..room])).await;
            let length = read.expect("nothing moves").unwrap();
            assert!(length > 0, "{left} of {} bytes are missing", sent.len());
            hash.update(&buffer[..length]);
            left -= length;
            begun.notify_one();
        }
        let mut sum = Vec::new();
        tokio::time::timeout(PATIENCE, read.read_to_end(&mut sum)).await.expect("no end").unwrap();
        (hash.finalize().to_vec(), sum)
    };
    let ((), (came_back, arrived)) = tokio::join!(up, down);
    let right = Sha256::digest(sent).to_vec();
    assert!(arrived == right, "something else arrived");
    assert!(came_back == right, "something else came back");
}

/// One client through lanes, then one the plain way, while the fault happens.
async fn survives(fault: Fault) {
    for wanted in [3, 0] {
        survives_in(wanted, &fault).await;
    }
}

async fn survives_in(wanted: usize, fault: &Fault) {
    let megabytes = wished().unwrap_or_else(|| if fault.options.agent.pause.is_zero() { 4 } else { 1 });
    let sent = bytes(megabytes << 20);
    let world = World::with(wanted, fault.options.clone()).await;
    if wanted > 0 {
        world.all_joined().await;
    }
    let faults = world.sessions.gateway.faults();
    if let Some(knobs) = &fault.then {
        faults.set_all(knobs.clone()).unwrap();
    }
    let target = if fault.options.agent.pause.is_zero() { "sums" } else { "turns" };
    let (client, carried) = world.client(target).await;
    let begun = Notify::new();
    let happening = async {
        let Some((event, every)) = fault.event else { return std::future::pending().await };
        match fault.begins {
            Begins::OnTheWay => sent_up(&world, sent.len() / 8).await,
            Begins::OnTheWayBack => begun.notified().await,
        }
        loop {
            faults.happen(None, event).unwrap();
            tokio::time::sleep(every).await;
        }
    };
    tokio::select! {
        () = exchange(client, &sent, &begun) => {}
        () = happening => {}
    }
    carried.await.unwrap().unwrap();
    let sessions = world.sessions.snapshots();
    let is_hurt = |session: &Snapshot| session.up.bytes + session.down.bytes > CARRIED && (fault.shows)(session);
    assert!(sessions.iter().any(is_hurt), "nothing was wrong: {sessions:?}");
    // A digest can be wrong over the right payload, which would do no harm.
    assert!(!fault.spoils || wanted > 0 || world.first.bad_frames() > 0, "every frame was taken");
    faults.set_all(Knobs::default()).unwrap();
    world.end().await;
}

/// Waits until so many bytes have left.
async fn sent_up(world: &World, bytes: usize) {
    let sent = || world.sessions.snapshots().iter().map(|session| session.up.bytes).sum::<u64>();
    while sent() < bytes as u64 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn lost_acknowledgements_of_ours() {
    survives(always(Knobs { up: acks(dropped(0.02)), ..Knobs::default() }, |session| session.up.dropped > 0)).await;
}

#[tokio::test]
async fn lost_acknowledgements_of_the_agent() {
    survives(always(Knobs { down: acks(dropped(0.1)), ..Knobs::default() }, |session| session.down.dropped > 0)).await;
}

#[tokio::test]
async fn lost_data_of_ours() {
    survives(always(Knobs { up: data(dropped(0.05)), ..Knobs::default() }, |session| session.up.dropped > 0)).await;
}

#[tokio::test]
async fn lost_data_of_the_agent() {
    survives(throttled(always(Knobs { down: data(dropped(0.005)), ..Knobs::default() }, |session| {
        session.down.dropped > 0
    })))
    .await;
}

/// Where the official client stands still for ever.
#[tokio::test]
async fn lost_data_of_the_agent_after_a_lost_acknowledgement() {
    let knobs = Knobs { up: acks(dropped(0.005)), down: data(dropped(0.005)), ..Knobs::default() };
    survives(throttled(always(knobs, |session| session.up.dropped > 0 && session.down.dropped > 0))).await;
}

#[tokio::test]
async fn duplicates_of_everything_from_the_first_frame_on() {
    let path = Path { data: Odds { duplicate: 1.0, ..Odds::default() }, ..Path::default() };
    let path = Path { ack: path.data, ..path };
    survives(always(Knobs { up: path.clone(), down: path, ..Knobs::default() }, |session| {
        session.up.duplicated > 0 && session.down.duplicated > 0
    }))
    .await;
}

#[tokio::test]
async fn frames_in_another_order() {
    let path = Path { data: Odds { reorder: 0.1, ..Odds::default() }, ..Path::default() };
    let path = Path { ack: path.data, ..path };
    survives(always(Knobs { up: path.clone(), down: path, ..Knobs::default() }, |session| {
        session.up.reordered > 0 && session.down.reordered > 0
    }))
    .await;
}

#[tokio::test]
async fn damage_on_the_way_to_the_laptop() {
    let damaged = Odds { corrupt: 0.005, ..Odds::default() };
    survives(spoiled(damaged, |session| session.down.corrupted > 0)).await;
}

/// The payload is right, so it arrives: the agent does not look.
#[tokio::test]
async fn wrong_digests_on_the_way_to_the_agent() {
    let wrong = Odds { digest: 0.05, ..Odds::default() };
    survives(always(Knobs { up: data(wrong), ..Knobs::default() }, |session| session.up.misdigested > 0)).await;
}

#[tokio::test]
async fn wrong_digests_on_the_way_to_the_laptop() {
    let wrong = Odds { digest: 0.005, ..Odds::default() };
    survives(spoiled(wrong, |session| session.down.misdigested > 0)).await;
}

/// Nobody waits for anything while only the agent sends: then it takes half a minute until it is noticed.
#[tokio::test]
async fn a_socket_that_falls_silent_again_and_again() {
    let event = Some((Event::FreezeClient, Duration::from_secs(60)));
    let fault =
        throttled(Fault { event, begins: Begins::OnTheWay, ..later(Knobs::default(), |session| session.cuts > 0) });
    // Both at once: it is mostly waiting.
    tokio::join!(survives_in(3, &fault), survives_in(0, &fault));
}

#[tokio::test]
async fn a_socket_that_is_cut_again_and_again_with_its_frames_kept() {
    survives(later(Knobs { cut_client_every_ms: Some(400), ..paced() }, |session| session.cuts > 0)).await;
}

#[tokio::test]
async fn a_socket_that_is_cut_with_its_frames_lost() {
    let event = Some((Event::CutClient, Duration::from_secs(30)));
    let knobs = Knobs { when_down: WhenDown::Drop, ..Knobs::default() };
    survives(throttled(Fault { event, ..later(knobs, |session| session.cuts > 0) })).await;
}

#[tokio::test]
async fn a_gateway_that_says_bye() {
    survives(later(Knobs { bye_after_ms: Some(400), ..paced() }, |session| session.cuts > 0)).await;
}

#[tokio::test]
async fn an_agent_that_loses_its_socket() {
    // Each time what the agent sends in 100 ms is lost, and repaired in ten seconds.
    let event = Some((Event::CutAgent, Duration::from_secs(30)));
    survives(throttled(Fault { event, ..later(Knobs::default(), |session| session.agent_cuts > 0) })).await;
}

#[tokio::test]
async fn an_agent_that_refuses_the_first_data() {
    let mut fault = always(Knobs::default(), |session| session.refused > 0);
    fault.options.agent.refuse_for = Duration::from_millis(500);
    survives(fault).await;
}

#[tokio::test]
async fn frames_that_nobody_understands() {
    let event = Some((Event::Junk, Duration::from_millis(20)));
    survives(Fault { event, ..later(Knobs::default(), |session| session.junk > 0) }).await;
}

#[tokio::test]
async fn a_gateway_that_closes_on_large_frames() {
    survives(later(Knobs { max_frame: Some(3000), ..Knobs::default() }, |session| session.cuts > 0)).await;
}
