//! What a client says before its startup packet: requests for encryption, TLS without asking, a cancel request.
//!
//! As `ProcessSSLStartup` and `ProcessStartupPacket` in `src/backend/tcop/backend_startup.c` have it: each request is good
//! once, in either order, and what is no opening packet at all gets no answer.

use bytes::{Bytes, BytesMut};

use super::startup::{self, GSSENC_REQUEST, Opening, SSL_REQUEST, Startup};
use crate::Malformed;
use crate::login::{Action, Peer, Refusal};

/// Where the client stands.
#[derive(Debug)]
pub(super) struct Negotiation {
    /// Whether the relay has a certificate.
    offer_tls: bool,
    /// Nothing has come yet: only now may TLS start without a request.
    untouched: bool,
    /// TLS was started without a request.
    direct: bool,
    /// The client was promised TLS.
    promised: bool,
    ssl_done: bool,
    gss_done: bool,
    tls: bool,
    /// Why the client cannot go on after its TLS handshake.
    refused: Option<Refusal>,
}

/// What comes next.
#[derive(Debug)]
pub(super) enum Step {
    Do(Action),
    Refuse(Refusal),
    Startup(Startup),
}

impl Negotiation {
    pub(super) fn new(offer_tls: bool) -> Self {
        Self {
            offer_tls,
            untouched: true,
            direct: false,
            promised: false,
            ssl_done: false,
            gss_done: false,
            tls: false,
            refused: None,
        }
    }

    /// TLS with the client is there; `alpn`: it has named the protocol `postgresql`.
    pub(super) fn handle_tls(&mut self, alpn: bool) {
        self.tls = true;
        if self.direct && !alpn {
            // Against clients of other protocols that are led here (ALPACA); required of clients since PostgreSQL 17.
            let what = "TLS was started without asking and without the ALPN protocol postgresql";
            self.refused = Some(Refusal::NoStartup(Malformed(what)));
        }
        if !self.direct {
            // A request for the other encryption has no meaning inside this one.
            (self.ssl_done, self.gss_done) = (true, true);
        }
    }

    /// Takes what is at the front of `input`.
    pub(super) fn poll(&mut self, input: &mut BytesMut) -> Step {
        if let Some(refusal) = self.refused.take() {
            return Step::Refuse(refusal);
        }
        if std::mem::take(&mut self.promised) {
            return Step::Do(Action::StartTls { peer: Peer::Client, already_read: Bytes::new() });
        }
        let opening = match startup::decode(input) {
            Ok(None) => return Step::Do(Action::Read(Peer::Client)),
            Ok(Some(opening)) => opening,
            Err(error) => return Step::Refuse(Refusal::NoStartup(error)),
        };
        let first = std::mem::replace(&mut self.untouched, false);
        match opening {
            Opening::Cancel(packet) => Step::Do(Action::Cancel(packet)),
            Opening::DirectTls if first && self.offer_tls => {
                self.direct = true;
                Step::Do(Action::StartTls { peer: Peer::Client, already_read: input.split().freeze() })
            }
            Opening::DirectTls if first => Step::Refuse(Refusal::NoStartup(Malformed(
                "TLS was started without asking and this relay has no certificate: use sslmode=prefer or disable",
            ))),
            Opening::DirectTls => Step::Refuse(Refusal::NoStartup(Malformed("TLS was started out of turn"))),
            Opening::GssEncRequest if !self.gss_done => {
                self.gss_done = true;
                // GSSAPI encryption is never offered; libpq goes on without it.
                Self::answer(b"N", input)
            }
            Opening::SslRequest if !self.ssl_done => {
                self.ssl_done = true;
                self.promised = self.offer_tls && !self.tls;
                Self::answer(if self.promised { b"S" } else { b"N" }, input)
            }
            // Again, or where it has no meaning: the server takes the request for a version then.
            Opening::GssEncRequest => Step::Refuse(Refusal::ProtocolVersion(GSSENC_REQUEST)),
            Opening::SslRequest => Step::Refuse(Refusal::ProtocolVersion(SSL_REQUEST)),
            Opening::Layout(error) => Step::Refuse(Refusal::ClientMalformed(error)),
            Opening::Startup(startup) => Step::Startup(startup),
            Opening::Unsupported(version) => Step::Refuse(Refusal::ProtocolVersion(version)),
        }
    }

    /// One byte, for a client that waits for it: what was sent behind the request is not from inside TLS (CVE-2021-23214).
    fn answer(byte: &'static [u8], input: &BytesMut) -> Step {
        match input.is_empty() {
            true => Step::Do(Action::Send(Peer::Client, Bytes::from_static(byte))),
            false => Step::Refuse(Refusal::ClientMalformed(Malformed(
                "it did not wait for the answer to its request for encryption",
            ))),
        }
    }
}

#[cfg(test)]
mod tests;
