//! Free ports for programs that can only be told a number.
//!
//! Between the choice of a port and the moment when a program listens at it, somebody else may get it. So tests that run at the
//! same time choose from ranges that do not overlap: nextest numbers its slots (`NEXTEST_TEST_GLOBAL_SLOT`), and a slot has
//! one test at a time. The ranges lie below those that Linux itself takes ports from (`ip_local_port_range`, 32768 and up).

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// First port of the first slot.
const FIRST: u16 = 20_000;
/// Ports of a slot.
const RANGE: u16 = 500;
const SLOTS: u16 = 24;

/// A port of the loopback address at which nobody listens. It is not given twice in a row.
///
/// # Errors
/// If there is none.
#[expect(clippy::disallowed_methods, reason = "of a test, and not of a relay")]
pub fn free() -> anyhow::Result<u16> {
    let slot = std::env::var("NEXTEST_TEST_GLOBAL_SLOT").ok().and_then(|slot| slot.parse::<u16>().ok());
    let Some(slot) = slot.filter(|slot| *slot < SLOTS) else {
        // Nothing else is started beside this one.
        return Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port());
    };
    // Clients of the test before this one may still try the ports that it had.
    static CHOSEN: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % u32::from(RANGE))?;
    for _ in 0..RANGE {
        let at = start.wrapping_add(CHOSEN.fetch_add(1, Ordering::Relaxed)) % RANGE;
        let port = FIRST + slot * RANGE + at;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no port from {} on is free, of {RANGE}", FIRST + slot * RANGE)
}
