//! Random messages of clients through the relay to real servers: what the audit log says to have run is, line by line, what the
//! server's own log says.

pub(crate) mod mysql;
mod postgres;

use tokio::io::AsyncReadExt as _;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::mpsc;

/// Messages of one connection.
const MESSAGES: usize = 1000;

/// Messages of each test.
#[expect(clippy::disallowed_methods, reason = "of a test, and not of a relay")]
fn wanted() -> usize {
    std::env::var("BASTION_SESSION_MESSAGES").ok().and_then(|wanted| wanted.parse().ok()).unwrap_or(3000)
}

/// xorshift64, so that a seed tells the run.
struct Random(u64);

impl Random {
    /// For the connection of this number.
    fn of(connection: u64) -> Self {
        Self(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(connection + 1))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Reads to the end, and tells of each read; the last that was said.
async fn hear_out(mut from: OwnedReadHalf, heard: mpsc::Sender<()>) -> String {
    let (mut buffer, mut last) = (vec![0; 8192], String::new());
    while let Ok(read) = from.read(&mut buffer).await
        && read > 0
    {
        last = String::from_utf8_lossy(&buffer[read.saturating_sub(400)..read]).into_owned();
        let _is_known = heard.try_send(());
    }
    last
}

/// What a record of ours says to have run.
#[derive(Debug, Clone)]
struct Ours {
    kind: String,
    /// `None` where it is not known.
    text: Option<String>,
    /// It may have been refused, which has no record.
    may_be_refused: bool,
}

/// Whether both logs can be of the same run. An execute whose text is not known may have run anything, or have been refused.
fn agree(theirs: &[(&str, String)], ours: &[Ours]) -> Result<(), String> {
    // How many of theirs may be those of ours so far.
    let mut reached = vec![true];
    reached.resize(theirs.len() + 1, false);
    for (number, Ours { kind, text, may_be_refused }) in ours.iter().enumerate() {
        let before = reached.clone();
        reached = (0..before.len())
            .map(|count| {
                let is_last =
                    |(their, ran): &(&str, String)| their == kind && text.as_ref().is_none_or(|text| text == ran);
                let runs = count > 0 && before[count - 1] && is_last(&theirs[count - 1]);
                runs || before[count] && *may_be_refused
            })
            .collect();
        if !reached.contains(&true) {
            let most = before.iter().rposition(|reached| *reached).unwrap_or_default();
            let (theirs, ours) = (&theirs[most.saturating_sub(9)..], &ours[number.saturating_sub(9)..]);
            let near = format!("{:?}\nand {:?}", &theirs[..theirs.len().min(12)], &ours[..ours.len().min(12)]);
            return Err(format!("the server has not run {kind} {text:?}, or not in this order: {near}"));
        }
    }
    let most = reached.iter().rposition(|reached| *reached).unwrap_or_default();
    if most < theirs.len() { Err(format!("nothing says that this has run: {:?}", theirs[most])) } else { Ok(()) }
}
