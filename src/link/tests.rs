//! Two ends of a link over pipes in memory.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::task::JoinSet;

use super::*;

struct World {
    opener: Link,
    acceptor: Link,
    tasks: JoinSet<()>,
    /// One task a lane; ending it cuts the lane at both ends.
    lanes: Vec<tokio::task::AbortHandle>,
}

impl World {
    fn new(lanes: usize) -> Self {
        let (opener, acceptor) = (Link::opener(), Link::acceptor(Memory::relay()));
        let mut world = Self { opener, acceptor, tasks: JoinSet::new(), lanes: Vec::new() };
        for link in [world.opener.clone(), world.acceptor.clone()] {
            world.tasks.spawn(async move { link.keep_time().await });
        }
        (0..lanes).for_each(|_| world.add_lane());
        world
    }

    fn add_lane(&mut self) {
        let (near, far): (DuplexStream, DuplexStream) = duplex(4096);
        let (opener, acceptor) = (self.opener.clone(), self.acceptor.clone());
        let lane = self.tasks.spawn(async move {
            let _ended = tokio::join!(opener.carry(near), acceptor.carry(far));
        });
        self.lanes.push(lane);
    }

    /// Answers every stream with what it sends.
    fn echo(&mut self) {
        let acceptor = self.acceptor.clone();
        self.tasks.spawn(async move {
            let mut streams = JoinSet::new();
            while let Some((stream, target)) = acceptor.accept().await {
                streams.spawn(async move {
                    if target != "echo" {
                        return stream.reset("there is no such target");
                    }
                    let (mut read, mut write) = tokio::io::split(stream);
                    let _gone = tokio::io::copy(&mut read, &mut write).await;
                    let _gone = write.shutdown().await;
                });
            }
        });
    }
}

fn bytes(length: u32) -> Vec<u8> {
    (0..length).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect()
}

/// Sends it all, half-closes, reads to the end.
async fn exchange(stream: Stream, sent: &[u8]) -> std::io::Result<Vec<u8>> {
    let (mut read, mut write) = tokio::io::split(stream);
    let mut answer = Vec::new();
    let (wrote, got) = tokio::join!(
        async {
            write.write_all(sent).await?;
            write.shutdown().await
        },
        read.read_to_end(&mut answer)
    );
    wrote?;
    got?;
    Ok(answer)
}

#[tokio::test(start_paused = true)]
async fn streams_come_back_whole_while_lanes_come_and_go() {
    let mut world = World::new(3);
    world.echo();
    let sent = bytes(3_000_000);
    let mut streams = JoinSet::new();
    for _ in 0..3 {
        let (stream, sent) = (world.opener.open("echo").unwrap(), sent.clone());
        streams.spawn(async move { assert!(exchange(stream, &sent).await.unwrap() == sent) });
    }
    let mut lanes = world.opener.lanes();
    for index in 0..3 {
        tokio::time::sleep(Duration::from_millis(3)).await;
        world.lanes[index].abort();
        world.add_lane();
        lanes.wait_for(|lanes| lanes.open == 3).await.unwrap();
    }
    while let Some(done) = streams.join_next().await {
        done.unwrap();
    }
    let stats = world.opener.stats();
    assert_eq!((stats.sent, stats.received, stats.streams), (9_000_000, 9_000_000, 0));
}

#[tokio::test(start_paused = true)]
async fn a_refused_target_and_a_dropped_stream_are_errors_not_ends() {
    let mut world = World::new(1);
    world.echo();
    let error = exchange(world.opener.open("other").unwrap(), b"hello").await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(error.to_string(), "there is no such target");
    drop(world.opener.open("echo").unwrap());
    assert_eq!(exchange(world.opener.open("echo").unwrap(), b"hello").await.unwrap(), b"hello");
}

#[tokio::test(start_paused = true)]
async fn without_a_lane_streams_fail_after_the_grace_and_the_link_is_over() {
    let mut world = World::new(1);
    world.echo();
    let mut stream = world.opener.open("echo").unwrap();
    stream.write_all(b"x").await.unwrap();
    stream.flush().await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    world.lanes[0].abort();
    let began = Instant::now();
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!((error.kind(), began.elapsed().as_secs()), (std::io::ErrorKind::ConnectionReset, 120));
    assert!(world.opener.open("echo").is_none());
    assert_eq!(world.opener.over().as_deref(), Some("no lane was open for 120 s"));
}

#[tokio::test(start_paused = true)]
async fn a_closed_link_ends_the_other_side_at_once() {
    let mut world = World::new(2);
    let mut stream = world.opener.open("echo").unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let (mut accepted, target) = world.acceptor.accept().await.unwrap();
    assert_eq!(target, "echo");
    world.opener.drained().await;
    world.opener.close();
    assert!(world.acceptor.accept().await.is_none());
    // What has come whole before stays whole.
    let mut said = Vec::new();
    accepted.read_to_end(&mut said).await.unwrap();
    assert_eq!(said, b"hello");
    assert!(accepted.write_all(b"x").await.is_err() && stream.read_u8().await.is_err());
    while world.tasks.join_next().await.is_some() {}
}
