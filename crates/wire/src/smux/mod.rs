//! smux version 1: many streams over the one byte stream of a port session.
//!
//! Follows xtaci/smux 1.5 as the agent and the plugin vendor it. Left out: version 2 (windows per stream) and accepting
//! streams; only the client opens them.

pub mod frame;
pub mod mux;
