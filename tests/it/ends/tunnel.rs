//! The rows of the table that are the tunnel's, each for every engine and number of lanes.

use super::Hears::{self, Error, Reset};
use super::{Ends, LANES, TARGETS, assert_hears, assert_turned_away, client, said, warned};

const GRACE: (&str, &str) = ("BASTION_TEST_GRACE", "4000");
const OUTAGE_PATIENCE: (&str, &str) = ("BASTION_TEST_OUTAGE_PATIENCE", "1000");
const LOST: [Hears; 3] = [Error(b"08006"), Error(&[0xff, 0x86, 0x04]), Reset];

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_that_is_gone_is_told_to_those_in_it_and_to_those_who_come() {
    let ends = Ends::start_with(|config| {
        for definition in &mut config.task_definitions {
            definition.environment.insert(GRACE.0.to_owned(), GRACE.1.to_owned());
        }
    })
    .await;
    let ups = ends.ups(&[GRACE, OUTAGE_PATIENCE]).await;
    let mut clients = Vec::new();
    for (lanes, up) in LANES.into_iter().zip(&ups) {
        for (engine, target) in TARGETS.into_iter().enumerate() {
            clients.push((engine, format!("{lanes} lanes, {target}"), client(up, engine).await));
        }
    }
    ends.world.sandbox.end_agent(&ends.task());
    // Without lanes at once; with lanes after a while without any.
    for (engine, row, client) in &mut clients {
        let heard = assert_hears(client, LOST[*engine], row).await;
        let why = if row.starts_with('0') { "" } else { "no lane was open for 4 s" };
        let text = String::from_utf8_lossy(&heard);
        assert!(*engine == 2 || text.contains("this connection has ended: ") && text.contains(why), "{row}: {text}");
    }
    for target in TARGETS {
        for _ in LANES {
            let found = ends.record(target).await;
            assert_eq!(said(&found), ("tunnel", true), "{found}");
        }
    }
    for (lanes, up) in LANES.into_iter().zip(&ups) {
        for (engine, target) in TARGETS.into_iter().enumerate() {
            let row = format!("{lanes} lanes, {target}: tunnel, refused");
            let heard = assert_turned_away(up, "", engine, LOST[engine], &row).await;
            let text = String::from_utf8_lossy(&heard);
            assert!(engine == 2 || text.contains("it cannot be reached now: "), "{row}: {text}");
        }
    }
    ends.world.sandbox.start_agent(&ends.task());
    for (lanes, up) in LANES.into_iter().zip(ups) {
        let (code, events) = up.end().await;
        assert_eq!(code, Some(0), "{lanes} lanes");
        for target in TARGETS {
            assert_eq!(warned(&events, target).len(), 2, "{lanes} lanes, {target}: {events:?}");
        }
    }
    ends.stop().await;
}
