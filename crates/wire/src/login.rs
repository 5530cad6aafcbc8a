//! What the logins of all engines speak of: peers, actions, secrets and refusals. [`crate::proxy::Handshake`] says how a login
//! is driven.

use std::fmt;

use bytes::Bytes;
use zeroize::Zeroizing;

use crate::Malformed;
use crate::error_text::ErrorText;

/// One end of the relayed connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Client,
    Upstream,
}

/// What a credential is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretKind {
    /// A password: the server may ask for it in any way.
    Password,
    /// A token that only works as a cleartext password.
    Token,
}

/// What the machine wants next.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Hand this cancel request to a new TLS connection to the upstream, then close both.
    Cancel(Bytes),
    /// Connect to the upstream, then [`handle_dialed`](crate::proxy::Handshake::handle_dialed).
    Dial,
    /// Get the login, then [`handle_credential`](crate::proxy::Handshake::handle_credential).
    NeedCredential,
    /// Read from this peer, then [`handle_data`](crate::proxy::Handshake::handle_data) or [`handle_eof`](crate::proxy::Handshake::handle_eof).
    Read(Peer),
    /// The login failed. Nothing about it has been told to the client, except for [`Refusal::Rejected`].
    Refuse(Refusal),
    /// Write to this peer.
    Send(Peer, Bytes),
    /// Write to the upstream, then forget it.
    SendSecret(Secret),
    /// The login is done: write these bytes, then copy both ways. `to_upstream` is the start of what the client says
    /// after its login.
    Splice { to_upstream: Bytes, to_client: Bytes },
    /// Do the TLS handshake with this peer (as server to the client, as client to the upstream), then
    /// [`handle_tls`](crate::proxy::Handshake::handle_tls). `already_read` came from the peer and belongs to the handshake.
    StartTls { peer: Peer, already_read: Bytes },
}

/// Bytes that must not be logged; wiped when dropped.
#[derive(PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Why there is no login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The client left before it had said what it wants.
    ClientGone,
    /// The client does not speak the protocol.
    ClientMalformed(Malformed),
    /// What the client sent is no opening of the protocol. Its server says nothing to such clients, and so does the relay.
    NoStartup(Malformed),
    /// The upstream did not make the session one that only reads.
    NotReadOnly(ErrorText),
    /// The client asks for a version of the protocol that is not spoken: `major << 16 | minor`.
    ProtocolVersion(u32),
    /// The upstream does not take the parameter with which a session only reads; another attempt says it in another way.
    ReadOnlyParameter(ErrorText),
    /// The upstream let the user in but then ended the login; the client has its message already.
    Rejected(ErrorText),
    /// With what the relay sets in it, the client's startup packet is longer than the upstream takes: bytes of the client's
    /// own and of the whole.
    StartupTooLong { client: usize, whole: usize },
    /// The upstream asks for this authentication method, which the relay does not speak.
    UnknownAuthentication(String),
    /// The upstream closed the connection in the middle of the login.
    UpstreamGone,
    /// The upstream does not speak the protocol.
    UpstreamMalformed(Malformed),
    /// The upstream answered the login with an error.
    UpstreamRefused(ErrorText),
    /// The upstream does not do TLS.
    UpstreamWithoutTls,
    /// The upstream asks for a password in a way that a token cannot answer: it does not use IAM for this user.
    WantsPassword(&'static str),
    /// The client does not know the password that the relay asks for.
    WrongPassword,
}
