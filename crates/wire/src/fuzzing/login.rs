//! Drives the login of an engine as the relay does, with peers that send anything, and checks what the relay relies on:
//! no secret before TLS with the upstream, nothing from before a TLS handshake counted as said inside it, nothing joined
//! before the upstream has let us in, no byte lost or made up between the two, an end for every login.

use bytes::Bytes;

use super::Input;
use crate::error_text::ErrorText;
use crate::login::{Action, Peer, Refusal, SecretKind};
use crate::proxy::Handshake;

/// What the relay logs in with.
pub(super) const USER: &str = "db_read";
pub(super) const SECRET: &[u8] = b"S3CRET-0f9c41d7b2e8";
/// What a machine may do without hearing from a peer.
const ACTIONS_MAX: usize = 64;
const RETRIES_MAX: usize = 3;

/// What differs between the engines.
pub(super) trait Engine {
    fn start(&self) -> Handshake;

    /// A message that is well formed, more or less, so that inputs get deep soon. `line` is what the peer has heard.
    fn message(&self, shape: u8, input: &mut Input<'_>, line: &Line) -> Vec<u8>;

    /// Whether TLS may follow what the upstream has sent in clear.
    fn may_start_tls(&self, plain: &[u8]) -> bool;

    /// Whether the client names the protocol in its TLS handshake.
    fn alpn(&self) -> bool {
        false
    }

    /// Checks `to_client`, what the client got since the upstream was dialled, against all of what the upstream sent
    /// inside TLS. It must have let us in. `heard` is what the relay has sent it.
    fn check_splice(&self, upstream: &[u8], heard: &[u8], to_client: &[u8]);

    /// Whether these are the bytes of one error message.
    fn is_error(&self, bytes: &[u8]) -> bool;
}

/// One connection with a peer.
#[derive(Clone, Default)]
pub(super) struct Line {
    /// What the peer sent before and inside TLS.
    plain: Vec<u8>,
    tls: Option<Vec<u8>>,
    /// What it was sent, secrets included.
    pub(super) heard: Vec<u8>,
}

impl Line {
    fn said(&self, part: &[u8]) -> bool {
        contains(&self.plain, part) || self.tls.as_ref().is_some_and(|bytes| contains(bytes, part))
    }

    fn sent(&mut self) -> &mut Vec<u8> {
        self.tls.as_mut().unwrap_or(&mut self.plain)
    }
}

/// How a login ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum End {
    Cancelled,
    Refused,
    Spliced,
}

struct Run {
    end: End,
    client: Line,
    upstream: Line,
    retries: usize,
}

/// Where the bytes of the peers come from.
trait Script {
    /// `None`: the peer closes.
    fn read(&mut self, peer: Peer, line: &Line) -> Option<Vec<u8>>;
    fn retries(&mut self) -> bool;
}

/// Drives one login with what `data` says. Its first byte is for the settings of the engine, which has the others.
pub(super) fn drive<E: Engine>(data: &[u8], engine: impl FnOnce(u8) -> E) -> End {
    let mut input = Input(data);
    let flags = input.byte();
    let kind = if flags & 4 != 0 { SecretKind::Token } else { SecretKind::Password };
    let engine: &dyn Engine = &engine(flags);
    let first = run(engine, kind, &mut Fuzzed { engine, input });
    // SCRAM has randomness of its own.
    if first.end == End::Spliced && first.retries == 0 && !contains(&first.upstream.heard, b"SCRAM-SHA-256") {
        let mut slow = Slow { client: first.client.clone(), upstream: first.upstream.clone() };
        let second = run(engine, kind, &mut slow);
        assert_eq!(second.end, End::Spliced, "the same bytes one by one");
        let rest = |line: &mut Line| line.sent().clone();
        let upstream = [second.upstream.heard, rest(&mut slow.client)].concat();
        let client = [second.client.heard, rest(&mut slow.upstream)].concat();
        assert_eq!(upstream, first.upstream.heard, "to the upstream, byte by byte");
        assert_eq!(client, first.client.heard, "to the client, byte by byte");
    }
    first.end
}

struct Fuzzed<'a> {
    engine: &'a dyn Engine,
    input: Input<'a>,
}

impl Script for Fuzzed<'_> {
    fn read(&mut self, _: Peer, line: &Line) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        loop {
            match self.input.byte() {
                0 => return None,
                shape @ 0xf0..=0xfe => bytes.extend(self.engine.message(shape & 0xf, &mut self.input, line)),
                long @ 0xe0..=0xef => {
                    bytes.extend_from_slice(self.input.bytes(usize::from(long & 0xf).saturating_add(1) << 8));
                }
                length => bytes.extend_from_slice(self.input.bytes(usize::from(length))),
            }
            // Several messages in one read.
            if self.input.0.first() != Some(&0xff) {
                return (!bytes.is_empty()).then_some(bytes);
            }
            self.input.byte();
        }
    }

    fn retries(&mut self) -> bool {
        self.input.byte() & 1 == 1
    }
}

/// The bytes of an earlier run, one at a time.
struct Slow {
    client: Line,
    upstream: Line,
}

impl Script for Slow {
    fn read(&mut self, peer: Peer, line: &Line) -> Option<Vec<u8>> {
        let all = match peer {
            Peer::Client => &mut self.client,
            Peer::Upstream => &mut self.upstream,
        };
        let left = match line.tls {
            Some(_) => all.tls.as_mut()?,
            None => &mut all.plain,
        };
        (!left.is_empty()).then(|| vec![left.remove(0)])
    }

    fn retries(&mut self) -> bool {
        false
    }
}

fn run(engine: &dyn Engine, kind: SecretKind, script: &mut dyn Script) -> Run {
    let mut handshake = engine.start();
    let (mut client, mut upstream) = (Line::default(), Line::default());
    let (mut dialed, mut credential, mut told_at_dial) = (false, false, 0);
    let (mut retries, mut actions) = (0, 0);
    let end = loop {
        actions += 1;
        assert!(actions <= ACTIONS_MAX, "it goes on and on without reading");
        let action = handshake.poll_action();
        // A peer that says the secret by itself may make it appear anywhere.
        if !client.said(SECRET) && !upstream.said(SECRET) {
            assert_no_secret(&action);
        }
        match action {
            Action::Read(peer) => {
                actions = 0;
                assert!(peer == Peer::Client || dialed, "it reads from an upstream that nobody dialled");
                let line = if peer == Peer::Client { &mut client } else { &mut upstream };
                match script.read(peer, line) {
                    Some(bytes) => {
                        line.sent().extend_from_slice(&bytes);
                        handshake.handle_data(peer, &bytes);
                    }
                    None => handshake.handle_eof(peer),
                }
            }
            Action::Dial => {
                assert!(!dialed, "it dials twice");
                (dialed, credential) = (true, false);
                upstream = Line::default();
                told_at_dial = client.heard.len();
                handshake.handle_dialed();
            }
            Action::StartTls { peer: Peer::Upstream, already_read } => {
                assert!(dialed && upstream.tls.is_none());
                assert!(already_read.is_empty() && engine.may_start_tls(&upstream.plain), "bytes from before TLS");
                upstream.tls = Some(Vec::new());
                handshake.handle_tls(Peer::Upstream, Some(vec![7; 32]), false);
            }
            Action::StartTls { peer: Peer::Client, already_read } => {
                assert!(client.tls.is_none(), "TLS inside TLS");
                assert!(client.plain.ends_with(&already_read));
                client.tls = Some(Vec::new());
                handshake.handle_tls(Peer::Client, None, engine.alpn());
            }
            Action::NeedCredential => {
                assert!(upstream.tls.is_some() && !credential);
                credential = true;
                handshake.handle_credential(USER, SECRET, kind);
            }
            Action::SendSecret(secret) => {
                assert!(upstream.tls.is_some() && credential, "a secret before TLS");
                upstream.heard.extend_from_slice(secret.expose());
            }
            Action::Send(Peer::Upstream, bytes) => {
                assert!(dialed && !bytes.is_empty());
                upstream.heard.extend_from_slice(&bytes);
            }
            Action::Send(Peer::Client, bytes) => {
                assert!(!bytes.is_empty());
                client.heard.extend_from_slice(&bytes);
            }
            Action::Splice { to_upstream, to_client } => {
                assert!(credential && handshake.has_opened());
                client.heard.extend_from_slice(&to_client);
                assert!(client.sent().ends_with(&to_upstream), "bytes that the client did not send, or not inside TLS");
                let said = upstream.tls.as_ref().expect("joined without TLS");
                engine.check_splice(said, &upstream.heard, client.heard.get(told_at_dial..).unwrap_or_default());
                upstream.heard.extend_from_slice(&to_upstream);
                assert!(!handshake.retry(), "it would start over behind the client's back");
                break End::Spliced;
            }
            Action::Cancel(packet) => {
                assert!(!packet.is_empty() && !dialed && client.plain.len() + client.sent().len() >= packet.len());
                break End::Cancelled;
            }
            Action::Refuse(refusal) => {
                assert!(engine.is_error(&handshake.encode_error(&text(&refusal))), "{refusal:?}");
                if retries == RETRIES_MAX || !script.retries() || !handshake.retry() {
                    break End::Refused;
                }
                retries += 1;
                dialed = false;
            }
        }
    };
    let _named = handshake.client_program();
    Run { end, client, upstream, retries }
}

fn text(refusal: &Refusal) -> ErrorText {
    match refusal {
        Refusal::NotReadOnly(text)
        | Refusal::ReadOnlyParameter(text)
        | Refusal::Rejected(text)
        | Refusal::UpstreamRefused(text) => text.clone(),
        other => ErrorText { message: format!("{other:?}"), ..ErrorText::default() },
    }
}

fn assert_no_secret(action: &Action) {
    let none = Bytes::new();
    let parts = match action {
        Action::Send(_, bytes) | Action::Cancel(bytes) => [bytes, &none],
        Action::Splice { to_upstream, to_client } => [to_upstream, to_client],
        _ => [&none, &none],
    };
    assert!(parts.into_iter().all(|bytes| !contains(bytes, SECRET)), "a secret among ordinary bytes");
    assert!(!contains(format!("{action:?}").as_bytes(), SECRET), "a secret in Debug");
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
