//! Clients that other users of this machine open: they are not served, and the person hears of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::cli::ui::Ui;
use crate::tunnel::peer::{Peers, Refused};

/// Between two lines about clients of the same other user, and how many users are told apart.
const STRANGERS_EVERY: Duration = Duration::from_secs(60);
const STRANGERS_MAX: usize = 100;

/// Clients of other users of this machine, who are told of now and then: anybody may try as often as they like.
pub(super) struct Strangers {
    peers: Peers,
    /// By user: when the last line was, and how many have come since.
    told: Mutex<BTreeMap<u32, (Instant, u64)>>,
}

impl Strangers {
    /// `port` is one of the open ports.
    pub(super) fn new(ui: &Ui, port: u16) -> Arc<Self> {
        let peers = Peers::new(port);
        if cfg!(target_os = "linux") && !peers.are_known() {
            ui.warn("  ! this system does not tell which user a client is of: the ports are open to every user of it");
        }
        Arc::new(Self { peers, told: Mutex::default() })
    }

    /// Whether a client of the target `name` may come in.
    pub(super) async fn admit(&self, ui: &Ui, name: &str, client: &TcpStream) -> bool {
        let Err(refused) = self.peers.admit(client).await else { return true };
        tracing::debug!(target = name, %refused, "a local client was refused");
        if let Some(line) = self.line(name, refused) {
            ui.warn(&line);
        }
        false
    }

    /// What to tell of a client that was refused.
    fn line(&self, name: &str, refused: Refused) -> Option<String> {
        let Refused::OtherUser(user) = refused else { return None };
        let mut told = self.told.lock();
        let more = match told.get_mut(&user) {
            Some((last, more)) if last.elapsed() < STRANGERS_EVERY => {
                *more = more.saturating_add(1);
                return None;
            }
            Some((_, more)) if *more > 0 => format!(", and {more} more before it"),
            _ => String::new(),
        };
        if told.len() < STRANGERS_MAX || told.contains_key(&user) {
            told.insert(user, (Instant::now(), 0));
        }
        Some(format!("  ! a connection to {name} was refused: {refused}{more}; the ports are for you alone"))
    }
}
