//! What a port session does for its users, on good links and bad ones.

use proptest::prelude::*;

use super::*;

#[test]
fn bytes_arrive_once_and_in_order_on_a_bad_link() {
    for seed in 1..6 {
        let mut pair = Pair::opened(20, LOSSY, seed);
        let (up, down) = (bytes(200_000, 1), bytes(30_000, 2));
        let stream = pair.client.open(pair.now).unwrap();
        pair.client.write(stream, up.clone().into());
        pair.run_until("the agent sees the stream", |pair| pair.agent.received.contains_key(&stream));
        for part in down.chunks(5000) {
            pair.agent.write(Command::Psh, stream, part);
        }
        pair.run_until("both have all", |pair| {
            pair.agent.received[&stream].len() >= up.len()
                && pair.got.get(&stream).is_some_and(|got| got.len() >= down.len())
        });
        assert!(pair.agent.received[&stream] == up && pair.got[&stream] == down, "seed {seed}");
    }
}

#[test]
fn the_queue_of_the_agent_never_jams_because_duplicates_are_acknowledged_again() {
    let mut pair = Pair::opened(5, Faults::default(), 1);
    // Every acknowledgement of ours is lost for a while.
    pair.up.faults.drop = 100;
    let stream = pair.client.open(pair.now).unwrap();
    pair.agent.write(Command::Psh, stream, &bytes(20_000, 3));
    pair.run(500);
    assert!(pair.agent.unacked.len() > 10);
    pair.up.faults.drop = 0;
    pair.run_until("the queue is empty", |pair| pair.agent.unacked.is_empty());
    assert!(pair.client.counts().duplicates > 10);
}

#[test]
fn a_session_survives_cuts_with_everything_under_way_lost() {
    let mut pair = Pair::opened(20, Faults::default(), 1);
    let up = bytes(3_000_000, 5);
    let stream = pair.client.open(pair.now).unwrap();
    pair.client.write(stream, up.clone().into());
    pair.agent.write(Command::Psh, stream, &bytes(30_000, 6));
    for _ in 0..5 {
        pair.run(70);
        pair.cut();
        pair.run(500);
        pair.reconnect();
    }
    pair.run_until("all is there", |pair| {
        pair.agent.received.get(&stream).is_some_and(|got| got.len() >= up.len())
            && pair.got.get(&stream).is_some_and(|got| got.len() >= 30_000)
    });
    assert_eq!(pair.agent.received[&stream], up);
    assert_eq!(pair.got[&stream], bytes(30_000, 6));
}

#[test]
fn after_a_cut_everything_open_goes_out_at_once() {
    let mut pair = Pair::opened(20, Faults::default(), 1);
    let stream = pair.client.open(pair.now).unwrap();
    pair.client.write(stream, bytes(100_000, 1).into());
    pair.run(10);
    pair.cut();
    let open = pair.client.channel.open_messages();
    assert!(open > 3);
    pair.reconnect();
    let before = pair.sent_frames;
    pair.step();
    assert!(pair.sent_frames - before >= open, "{open} open, {} sent", pair.sent_frames - before);
}

#[test]
fn messages_grow_to_32_kib_and_uploads_become_fast() {
    for (latency, wanted) in [(0, 20_000_000), (20, 10_000_000)] {
        let mut pair = Pair::opened(latency, Faults::default(), 1);
        let stream = pair.client.open(pair.now).unwrap();
        let feed = |pair: &mut Pair| {
            while pair.client.waiting(stream) < 1 << 20 {
                pair.client.write(stream, vec![7; 1 << 20].into());
            }
        };
        for _ in 0..1500 {
            feed(&mut pair);
            pair.step();
        }
        let before = pair.agent.received[&stream].len();
        for _ in 0..300 {
            feed(&mut pair);
            pair.step();
        }
        // Simulated seconds: what the protocol allows, not how fast this machine is.
        let rate = (pair.agent.received[&stream].len() - before) * 10 / 3;
        assert!(rate >= wanted, "{rate} bytes/s at {latency} ms one way");
        assert_eq!(pair.largest, 32 * 1024 + 120);
    }
}

#[test]
fn a_gateway_that_closes_on_large_messages_gets_smaller_ones_and_no_byte_is_lost() {
    let mut pair = Pair::opened(5, Faults::default(), 1);
    pair.limit = 5000;
    let up = bytes(2_000_000, 9);
    let stream = pair.client.open(pair.now).unwrap();
    pair.client.write(stream, up.clone().into());
    pair.run_until("all is there", |pair| pair.agent.received.get(&stream).is_some_and(|got| got.len() >= up.len()));
    assert_eq!(pair.agent.received[&stream], up);
    assert_eq!(pair.closes, 1);
}

#[test]
fn no_byte_before_the_handshake_is_complete_and_early_refusals_are_repeated_soon() {
    let mut pair = Pair::new(0, Faults::default(), 1);
    assert_eq!(pair.client.open(pair.now), None);
    pair.run_until("the session opens", |pair| !pair.events.is_empty());
    let opened = pair.now;
    let stream = pair.client.open(pair.now).unwrap();
    pair.client.write(stream, Bytes::from_static(b"\n"));
    pair.run_until("the byte is there", |pair| pair.agent.received.get(&stream).is_some_and(|got| got == b"\n"));
    // The first repeat comes after 20 ms, not after a timeout made for long ways.
    assert!(pair.now - opened < Duration::from_millis(40), "{:?}", pair.now - opened);
}

#[test]
fn an_answer_after_half_close_is_kept_until_it_is_in() {
    let mut pair = Pair::opened(5, Faults::default(), 1);
    let stream = pair.client.open(pair.now).unwrap();
    pair.client.write(stream, Bytes::from_static(b"question"));
    pair.client.close_write(pair.now, stream, Duration::from_secs(10));
    pair.run(5000);
    assert!(pair.agent.finished.is_empty(), "FIN closes both directions, so it must wait");
    pair.agent.write(Command::Psh, stream, b"answer");
    pair.run(8000);
    pair.agent.write(Command::Psh, stream, b", more");
    pair.agent.write(Command::Fin, stream, b"");
    pair.run_until("the end is there", |pair| pair.events.contains(&Event::Fin { stream, refused: false }));
    assert_eq!(pair.got[&stream], b"answer, more");
}

#[test]
fn a_half_closed_stream_without_an_answer_is_closed_at_last() {
    let mut pair = Pair::opened(5, Faults::default(), 1);
    let stream = pair.client.open(pair.now).unwrap();
    pair.client.close_write(pair.now, stream, Duration::from_secs(2));
    pair.run_until("the agent has the FIN", |pair| pair.agent.finished == [stream]);
}

#[test]
fn a_new_connection_is_not_starved_by_a_bulk_upload() {
    let mut pair = Pair::opened(20, Faults::default(), 1);
    // One window is under way before it; it does not wait for the 50 MB.
    let took = pair.small_beside(vec![1; 50 << 20], 700);
    assert!(took < Duration::from_millis(150), "{took:?}");
}

#[test]
fn a_refused_port_is_told_apart_from_a_clean_end() {
    let mut pair = Pair::opened(5, Faults::default(), 1);
    let refused = pair.client.open(pair.now).unwrap();
    pair.run_until("the agent sees it", |pair| pair.agent.received.contains_key(&refused));
    let flag = Flag::ConnectToPortError.encode().to_vec();
    let (now, mut agent) = (pair.now, std::mem::replace(&mut pair.agent, Agent::new(pair.now)));
    agent.send(now, &mut pair.down, PayloadType::FLAG, flag);
    agent.write(Command::Fin, refused, b"");
    pair.agent = agent;
    pair.run_until("the refusal is there", |pair| pair.events.contains(&Event::Fin { stream: refused, refused: true }));
    let clean = pair.client.open(pair.now).unwrap();
    assert!(clean > refused, "ids are not used again");
    pair.run_until("the agent sees it", |pair| pair.agent.received.contains_key(&clean));
    pair.agent.write(Command::Fin, clean, b"");
    pair.run_until("the end is there", |pair| pair.events.contains(&Event::Fin { stream: clean, refused: false }));
}

#[test]
fn one_corrupt_frame_is_dropped_and_comes_again() {
    let mut pair = Pair::opened(5, Faults::default(), 1);
    let stream = pair.client.open(pair.now).unwrap();
    pair.down.faults.corrupt = 100;
    pair.agent.write(Command::Psh, stream, b"precious");
    pair.run(20);
    pair.down.faults.corrupt = 0;
    pair.run_until("it is there", |pair| pair.got.get(&stream).is_some_and(|got| got == b"precious"));
    assert!(pair.client.counts().bad_frames > 0);
}

#[test]
fn junk_never_ends_the_session() {
    let mut pair = Pair::opened(5, Faults::default(), 1);
    let now = pair.now;
    for junk in [&b""[..], b"x", &[0; 119], &[0xff; 400]] {
        pair.client.handle_frame(now, Bytes::copy_from_slice(junk));
    }
    assert_eq!(pair.client.poll_event(), None);
    assert!(pair.client.open(now).is_some());
}

#[test]
fn the_end_of_the_session_is_told_with_its_reason() {
    let mut pair = Pair::opened(5, Faults::default(), 1);
    let closed = br#"{"Output":"Forwarding to IP address x is forbidden."}"#.to_vec();
    let frame = pair.agent.message(MessageType::ChannelClosed, 0, PayloadType::NONE, closed);
    pair.client.handle_frame(pair.now, frame.into());
    let Some(Event::Ended(ended)) = pair.client.poll_event() else { panic!("not ended") };
    assert_eq!(ended.to_string(), "Session Manager ended the session: Forwarding to IP address x is forbidden.");
    assert_eq!(pair.client.open(pair.now), None);
}

#[test]
fn the_end_is_asked_for_after_what_was_written_unless_that_cannot_leave() {
    let mut pair = Pair::opened(5, Faults::default(), 1);
    let up = bytes(300_000, 4);
    let stream = pair.client.open(pair.now).unwrap();
    pair.client.write(stream, up.clone().into());
    pair.client.terminate(pair.now + Duration::from_secs(60));
    pair.run_until("the agent is told", |pair| pair.agent.terminated);
    assert!(pair.agent.received[&stream] == up);

    let mut pair = Pair::opened(5, Faults::default(), 1);
    let stream = pair.client.open(pair.now).unwrap();
    pair.run(50);
    let mut pause = vec![0; 4];
    pause.extend_from_slice(format!("{:<32}", "pause_publication").as_bytes());
    pair.client.handle_frame(pair.now, pause.into());
    pair.client.write(stream, up.into());
    let latest = pair.now + Duration::from_millis(500);
    pair.client.terminate(latest);
    pair.run_until("the agent is told", |pair| pair.agent.terminated);
    assert!(pair.now >= latest && pair.agent.received[&stream].is_empty());
}

#[test]
fn a_keepalive_goes_out_only_while_a_stream_is_open() {
    let mut pair = Pair::opened(5, Faults::default(), 1);
    pair.run(200_000);
    let quiet = pair.sent_frames;
    let stream = pair.client.open(pair.now).unwrap();
    pair.run(125_000);
    let kept = pair.sent_frames - quiet;
    assert!((3..10).contains(&kept), "{kept}");
    // A lane is always open; it counts only while somebody uses it.
    pair.client.keep_alive(false);
    pair.run(70_000);
    let quiet = pair.sent_frames;
    pair.run(200_000);
    assert_eq!(pair.sent_frames, quiet);
    pair.client.keep_alive(true);
    pair.run(125_000);
    assert!(pair.sent_frames > quiet);
    pair.client.reset(stream);
    pair.run(70_000);
    let after = pair.sent_frames;
    pair.run(200_000);
    assert_eq!(pair.sent_frames, after);
}

#[test]
fn a_pause_of_the_gateway_holds_data_until_something_comes() {
    let mut pair = Pair::opened(5, Faults::default(), 1);
    let stream = pair.client.open(pair.now).unwrap();
    pair.run(50);
    let mut pause = vec![0; 4];
    pause.extend_from_slice(format!("{:<32}", "pause_publication").as_bytes());
    pair.client.handle_frame(pair.now, pause.into());
    pair.client.write(stream, Bytes::from_static(b"later"));
    pair.run(300);
    assert_eq!(pair.agent.received[&stream], b"");
    let mut start = vec![0; 4];
    start.extend_from_slice(format!("{:<32}", "start_publication").as_bytes());
    pair.client.handle_frame(pair.now, start.into());
    pair.run_until("it is there", |pair| pair.agent.received[&stream] == b"later");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Any faults, any cuts, any sizes: once, in order, both ways, and both ends finish.
    #[test]
    fn any_schedule_delivers(
        seed in any::<u64>(),
        latency in 0_u64..60,
        drop in 0_u64..15,
        duplicate in 0_u64..15,
        reorder in 0_u64..30,
        corrupt in 0_u64..10,
        cuts in proptest::collection::vec(1_u64..400, 0..4),
        writes in proptest::collection::vec(0_usize..40_000, 1..6),
    ) {
        let mut pair = Pair::opened(latency, Faults { drop, duplicate, reorder, corrupt }, seed);
        let streams: Vec<u32> = writes.iter().map(|length| {
            let stream = pair.client.open(pair.now).unwrap();
            pair.client.write(stream, bytes(*length, seed_of(stream)).into());
            pair.client.close_write(pair.now, stream, Duration::from_secs(3600));
            stream
        }).collect();
        for after in cuts {
            pair.run(after);
            pair.cut();
            pair.run(20);
            pair.reconnect();
        }
        pair.run_until("the agent knows all", |pair| streams.iter().zip(&writes).all(|(stream, length)| {
            pair.agent.received.get(stream).is_some_and(|got| got.len() >= *length)
        }));
        for (stream, length) in streams.iter().zip(&writes) {
            prop_assert!(pair.agent.received[stream] == bytes(*length, seed_of(*stream)));
            pair.agent.write(Command::Psh, *stream, &bytes(length / 4, 1));
            pair.agent.write(Command::Fin, *stream, b"");
        }
        pair.run_until("every stream ends", |pair| streams.iter().all(|stream| {
            pair.events.contains(&Event::Fin { stream: *stream, refused: false })
        }));
        for (stream, length) in streams.iter().zip(&writes) {
            prop_assert!(pair.got.get(stream).cloned().unwrap_or_default() == bytes(length / 4, 1));
        }
        prop_assert_eq!(pair.client.open_streams(), 0);
    }
}
