//! One logical link over several byte pipes, the lanes: streams with credit, packed, spread over the lanes by how fast
//! each drains, and put in order at the other end. The protocol is described in `docs/lane-protocol.md`.
//!
//! `link` is the state machine; `frame` the format; `codec` packs a stream's bytes; `stream` is what a stream still has
//! to send and has received; `pipe` is what one lane has under way, and `budget` how much that may be.
//!
//! No multiplexer crate is below it: yamux and its like take one reliable pipe and order all of their bytes in it, so
//! that what somebody types would wait for bulk data on the slowest lane.

pub mod budget;
pub mod codec;
pub mod frame;
pub mod link;
mod pipe;
pub mod stream;

use std::time::{Duration, Instant};

fn later(at: Instant, by: Duration) -> Instant {
    at.checked_add(by).unwrap_or(at)
}

#[cfg(test)]
mod tests;
