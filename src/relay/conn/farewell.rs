//! What the relay tells a client in the midst of its session: that it will end, and why it has ended. For that its
//! upstream's stream is followed from message to message.

use std::time::Duration;

use bastion_wire::end::{End, How, Who};
use bastion_wire::error_text::ErrorText;
use bastion_wire::proxy::Handshake;
use bastion_wire::session::{Pass, Session};
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;
use tracing::info;

use crate::credential::Loan;
use crate::relay::audit::Watch;
use crate::relay::client_io::ClientIo;
use crate::relay::clock::wall_clock;
use crate::relay::conn::driver::Upstream;
use crate::relay::conn::{Conn, Login, ending};
use crate::relay::reply;
use crate::relay::splice::Followed;

/// For the rest of a message, and for the error and a client that is still sending. At the end of a drain they are part of
/// what ECS leaves until its SIGKILL.
const TIMEOUT: Duration = Duration::from_secs(1);
const LINGER: Duration = Duration::from_millis(500);

impl Conn {
    /// The session behind a login, its records, and the notice that is to come. `None` where the client has logged in itself:
    /// its session may be encrypted.
    pub(super) fn followed<'a>(&'a self, login: &Login, loan: Option<&'a Loan>) -> Option<Followed<'a>> {
        let target = &self.served.target;
        let memory = &self.shared.memory;
        let statements = self.shared.audit.limits(memory);
        let writes = statements.is_some() || target.local_infile;
        let mut session = login.handshake.as_ref()?.session(&memory.asked, statements);
        session.logged_in(&login.to_client);
        let records = writes.then(|| Watch::new(&self.shared.audit, &login.record, &memory.records));
        let followed = Followed::new(session, records);
        let Some(loan) = loan.filter(|loan| loan.has_end()) else { return Some(followed) };
        Some(followed.with_notice(async move {
            let left = loan.ending().await.saturating_duration_since(Instant::now());
            info!(conn_id = self.id, target = target.name, seconds = left.as_secs(), "the database user will end");
            reply::lease_ending(target, &loan.user, wall_clock() + left, self.id)
        }))
    }

    /// Who has cut the connection.
    pub(super) fn cut_by(&self) -> End {
        End::new(if self.shared.cut.is_cancelled() { Who::Task } else { Who::Lease }, How::Cut)
    }

    /// Why a session has been cut.
    pub(super) fn cut_text(&self, user: &str) -> ErrorText {
        let target = &self.served.target;
        match self.cut_by().who {
            Who::Lease => reply::lease_over(target, user, wall_clock(), self.id),
            _ => reply::stopping(target, self.shared.lifetime.cause(), self.id),
        }
    }

    /// Ends the session of a client that is just being let in again, with the reason of the cut in place of the answer that it
    /// waits for.
    pub(super) async fn say_in_login(&self, client: Box<dyn ClientIo>, handshake: &Handshake, user: Option<&str>) {
        let text = self.cut_text(user.unwrap_or_default());
        ending::end_well(client, &handshake.encode_error(&text), LINGER).await;
    }

    /// Ends the client's session with `text`, where it is followed, and with a reset otherwise. `rest` is what has been kept
    /// from the client, first what was followed and then what was held. Says how many more bytes of the upstream have gone to it.
    pub(super) async fn say(
        &self,
        mut client: Box<dyn ClientIo>,
        upstream: &mut Upstream,
        session: Option<&mut Followed<'_>>,
        rest: (&[u8], &[u8]),
        text: &ErrorText,
    ) -> u64 {
        let Some(session) = session.map(Followed::session) else {
            ending::reset(client, &text.sentence()).await;
            return 0;
        };
        let mut more = 0;
        let finishing = finish(client.as_mut(), upstream, session, rest, &mut more);
        let finished = matches!(tokio::time::timeout(TIMEOUT, finishing).await, Ok(Ok(())));
        match session.last_words(text).filter(|_| finished) {
            Some(last_words) => ending::end_well(client, &last_words, LINGER).await,
            None => ending::reset(client, &text.sentence()).await,
        }
        self.served.metrics.down.inc_by(more);
        more
    }
}

/// Sends the client what is left of the message under way, `rest` first, and counts in `more` what of it is new.
async fn finish(
    client: &mut dyn ClientIo,
    upstream: &mut Upstream,
    session: &mut Session,
    (rest, held): (&[u8], &[u8]),
    more: &mut u64,
) -> std::io::Result<()> {
    client.write_all(rest).await?;
    let (mut buffer, mut pending, mut events) = ([0; 4096], held.to_vec(), Vec::new());
    let mut counted = held.len();
    while !session.is_between_messages() {
        let read = upstream.read(&mut buffer).await?;
        pending.extend_from_slice(buffer.get(..read).unwrap_or_default());
        let Pass { forward, stop } = session.server_message(&pending, &mut events);
        if read == 0 || stop.is_some() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        client.write_all(pending.get(..forward).unwrap_or_default()).await?;
        pending.drain(..forward.min(pending.len()));
        *more += u64::try_from(forward.saturating_sub(counted)).unwrap_or_default();
        counted = counted.saturating_sub(forward);
    }
    Ok(())
}
