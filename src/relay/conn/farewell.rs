//! What the relay tells a client in the midst of its session: that it will end, and why it has ended. For that its
//! upstream's stream is followed from message to message.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;
use tracing::info;

use crate::credential::Loan;
use crate::relay::conn::driver::Upstream;
use crate::relay::conn::{Conn, Login};
use crate::relay::splice::{Aside, EndedBy};
use crate::relay::{Io, reply, wall_clock};
use crate::wire::downstream::Downstream;
use crate::wire::error_text::ErrorText;

/// For the rest of a message and the error. At the end of a drain it is part of what ECS leaves until its SIGKILL.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Behind the error, for a client that is still sending: unread input would turn the close into a reset.
const LINGER: Duration = Duration::from_millis(250);

impl Conn {
    /// Where the upstream's stream stands, and the notice that is to come. `None` where the client has logged in itself:
    /// its session may be encrypted.
    pub(super) fn aside<'a>(&'a self, login: &Login, loan: Option<&'a Loan>) -> Option<Aside<'a>> {
        let mut stream = login.handshake.as_ref()?.downstream();
        stream.pass(&login.to_client);
        stream.end_answer();
        let Some(loan) = loan.filter(|loan| loan.has_end()) else { return Some(Aside::new(stream)) };
        Some(Aside::new(stream).with_notice(async move {
            let left = loan.ending().await.saturating_duration_since(Instant::now());
            let target = &self.served.target;
            info!(conn_id = self.id, target = target.name, seconds = left.as_secs(), "the database user will end");
            reply::lease_ending(target, &loan.user, wall_clock() + left, self.id)
        }))
    }

    /// Who has cut the connection.
    pub(super) fn cut_by(&self) -> EndedBy {
        if self.shared.cut.is_cancelled() { EndedBy::Shutdown } else { EndedBy::Lease }
    }

    /// Tells the client why its session has been cut, where the upstream's stream is followed. `rest` is what the cut has
    /// kept from it. Says how many more bytes of the upstream have gone to the client.
    pub(super) async fn say_farewell(&self, login: &mut Login, aside: &mut Option<Aside<'_>>, rest: &[u8]) -> u64 {
        let target = &self.served.target;
        let text = match self.cut_by() {
            EndedBy::Lease => {
                let user = login.record.db_user.as_deref().unwrap_or_default();
                reply::lease_over(target, user, wall_clock(), self.id)
            }
            _ => reply::stopping(target, self.shared.lifetime.cause(), self.id),
        };
        self.say(login, aside, rest, Some(&text)).await
    }

    /// Ends the session with `text`, in the same way.
    pub(super) async fn say(
        &self,
        login: &mut Login,
        aside: &mut Option<Aside<'_>>,
        rest: &[u8],
        text: Option<&ErrorText>,
    ) -> u64 {
        let (Some(aside), Some(text)) = (aside, text) else { return 0 };
        let more = say(login.client.as_mut(), &mut login.upstream, aside.stream(), rest, text).await;
        self.served.metrics.down.inc_by(more);
        more
    }
}

/// Sends the client what is left of the message under way, `rest` first, then the error, and ends the stream. Says how
/// many bytes of the upstream have gone to the client. Nothing is said if the message does not end in time.
async fn say(
    client: &mut dyn Io,
    upstream: &mut Upstream,
    stream: &mut Downstream,
    rest: &[u8],
    text: &ErrorText,
) -> u64 {
    let mut more = 0;
    let saying = async {
        client.write_all(rest).await?;
        let mut buffer = [0; 4096];
        while !stream.is_between_messages() {
            let read = upstream.read(&mut buffer).await?;
            let bytes = buffer.get(..read).unwrap_or_default();
            let end = stream.pass_message(bytes);
            let Some(message) = bytes.get(..end).filter(|message| !message.is_empty()) else {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            };
            client.write_all(message).await?;
            more += u64::try_from(message.len()).unwrap_or_default();
        }
        client.write_all(&stream.last_words(text).unwrap_or_default()).await?;
        client.shutdown().await
    };
    if let Ok(Ok(())) = tokio::time::timeout(TIMEOUT, saying).await {
        let mut nothing = [0; 512];
        let gone = async { while client.read(&mut nothing).await.is_ok_and(|read| read > 0) {} };
        let _lingered = tokio::time::timeout(LINGER, gone).await;
    }
    more
}
