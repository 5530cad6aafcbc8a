//! How a connection ends: who ended it, how, and what follows from that for whoever is left. The relay and the launcher
//! both decide by this table; `docs/ends.md` has it for people, and a test compares the two.

use std::fmt;

use super::lane::link::{Ended, StreamEnd};

const CLIENT_RESET: &str = "the client has reset the connection";
const DATABASE_RESET: &str = "the database has reset the connection";
const PROOF_REQUIRED: &str = "proof wanted: ";

/// Why one end has reset a stream. It travels as text; these are the reasons that the other end acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetReason<'t> {
    /// From the launcher: the client's connection was reset.
    Client,
    /// From the relay: the database's connection was reset. With what is known of it, or nothing.
    Database(&'t str),
    /// From the relay: the stream would open if the caller proved anew who they are. With a sentence for the person.
    ProofRequired(&'t str),
    /// A sentence for the person.
    Other(&'t str),
}

impl<'t> ResetReason<'t> {
    pub fn parse(text: &'t str) -> Self {
        if let Some(more) = text.strip_prefix(DATABASE_RESET) {
            Self::Database(more.strip_prefix(": ").unwrap_or(more))
        } else if let Some(sentence) = text.strip_prefix(PROOF_REQUIRED) {
            Self::ProofRequired(sentence)
        } else if text == CLIENT_RESET {
            Self::Client
        } else {
            Self::Other(text)
        }
    }
}

impl fmt::Display for ResetReason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client => f.write_str(CLIENT_RESET),
            Self::Database("") => f.write_str(DATABASE_RESET),
            Self::Database(more) => write!(f, "{DATABASE_RESET}: {more}"),
            Self::ProofRequired(sentence) => write!(f, "{PROOF_REQUIRED}{sentence}"),
            Self::Other(sentence) => f.write_str(sentence),
        }
    }
}

/// Who ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The relay, because a statement could not be recorded.
    Audit,
    Client,
    Database,
    Launcher,
    /// The relay, because the database user's lease is over.
    Lease,
    Relay,
    /// The relay, because its task stops.
    Task,
    Tunnel,
}

/// In which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// By the end of its stream.
    Clean,
    /// In the middle, by whoever could have gone on.
    Cut,
    /// Before it began.
    Refused,
    /// By a reset, or by an end of TLS that is none.
    Reset,
    TimedOut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    pub who: Who,
    pub how: How,
}

/// What the client notices, behind everything that the database has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// Nothing: it is gone.
    Nothing,
    /// The end of the stream.
    End,
    /// A reset, without a word of ours.
    Reset,
    /// Why, in its protocol, and then the end of the stream. A reset where that cannot be said.
    Error,
}

impl End {
    pub const fn new(who: Who, how: How) -> Self {
        Self { who, how }
    }

    pub fn notice(self) -> Notice {
        match (self.who, self.how) {
            (Who::Client | Who::Database, How::Clean) => Notice::End,
            (Who::Client, How::Reset) => Notice::Nothing,
            (Who::Database, How::Reset | How::Cut) => Notice::Reset,
            _ => Notice::Error,
        }
    }

    /// Whether the person at the terminal is told: what the client cannot be expected to say, and what is bastion's own.
    /// `reads` is whether the client has a protocol in which it was told.
    pub fn is_news(self, reads: bool) -> bool {
        match (self.who, self.how) {
            (Who::Database, How::Refused | How::TimedOut) => !reads,
            (Who::Client | Who::Database, _) => false,
            _ => true,
        }
    }

    /// The word of the audit log.
    pub fn ended_by(self) -> &'static str {
        match self.who {
            Who::Audit => "audit",
            Who::Client => "client",
            Who::Database => "upstream",
            Who::Launcher => "launcher",
            Who::Lease => "lease",
            Who::Relay => "relay",
            Who::Task => "shutdown",
            Who::Tunnel => "tunnel",
        }
    }

    /// At the relay: why nothing more comes from a client through the tunnel.
    pub fn of_client(end: &StreamEnd) -> Self {
        match end {
            StreamEnd::Closed | StreamEnd::Reset(_) => Self::new(Who::Client, How::Reset),
            StreamEnd::Over(Ended::Goodbye) => Self::new(Who::Launcher, How::Cut),
            StreamEnd::Over(Ended::Closed | Ended::Gone(_)) => Self::new(Who::Task, How::Cut),
            StreamEnd::Over(Ended::NoLane(_)) => Self::new(Who::Tunnel, How::TimedOut),
            StreamEnd::NoMemory(_) => Self::new(Who::Relay, How::Cut),
            StreamEnd::Cut | StreamEnd::Over(Ended::Broken(_)) | StreamEnd::Unreadable(_) => {
                Self::new(Who::Tunnel, How::Cut)
            }
        }
    }

    /// At the launcher: why nothing more comes from the relay.
    pub fn of_relay(end: &StreamEnd) -> Self {
        match end {
            StreamEnd::Reset(reason) if matches!(ResetReason::parse(reason), ResetReason::Database(_)) => {
                Self::new(Who::Database, How::Reset)
            }
            StreamEnd::Closed | StreamEnd::Reset(_) => Self::new(Who::Relay, How::Refused),
            StreamEnd::Over(Ended::Goodbye | Ended::Gone(_)) => Self::new(Who::Task, How::Cut),
            StreamEnd::Over(Ended::Closed) | StreamEnd::NoMemory(_) => Self::new(Who::Launcher, How::Cut),
            StreamEnd::Over(Ended::NoLane(_)) => Self::new(Who::Tunnel, How::TimedOut),
            StreamEnd::Cut | StreamEnd::Over(Ended::Broken(_)) | StreamEnd::Unreadable(_) => {
                Self::new(Who::Tunnel, How::Cut)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHO: [Who; 8] =
        [Who::Client, Who::Database, Who::Relay, Who::Audit, Who::Lease, Who::Task, Who::Launcher, Who::Tunnel];
    const HOW: [How; 5] = [How::Clean, How::Reset, How::Refused, How::TimedOut, How::Cut];

    fn row(end: End) -> [String; 5] {
        let who = format!("{:?}", end.who).to_lowercase();
        let how = match end.how {
            How::TimedOut => "timed out".to_owned(),
            how => format!("{how:?}").to_lowercase(),
        };
        let hears = match end.notice() {
            Notice::Nothing => "nothing",
            Notice::End => "the end",
            Notice::Reset => "a reset",
            Notice::Error => "why",
        };
        let says = match (end.is_news(true), end.is_news(false)) {
            (true, true) => "why",
            (false, true) => "why, for `tcp`",
            _ => "nothing",
        };
        [who, how, hears.to_owned(), format!("`{}`", end.ended_by()), says.to_owned()]
    }

    /// Every pair has its row, and no row is of another time.
    #[test]
    fn the_table_in_the_documents_is_the_one_that_decides() {
        let text = include_str!("../../../docs/ends.md");
        let rows: Vec<Vec<&str>> = text
            .lines()
            .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
            .map(|line| line.split(" | ").collect())
            .filter(|row: &Vec<&str>| row.len() == 6)
            .skip(2)
            .collect();
        let wanted: Vec<[String; 5]> = WHO.iter().flat_map(|who| HOW.map(|how| row(End::new(*who, how)))).collect();
        for row in &rows {
            assert!(wanted.iter().any(|wanted| row[..5] == wanted[..]), "{row:?} decides nothing");
        }
        for (who, how) in [
            (Who::Client, How::Clean),
            (Who::Client, How::Reset),
            (Who::Client, How::Cut),
            (Who::Database, How::Clean),
            (Who::Database, How::Reset),
            (Who::Database, How::Refused),
            (Who::Database, How::TimedOut),
            (Who::Database, How::Cut),
            (Who::Relay, How::Refused),
            (Who::Relay, How::Cut),
            (Who::Audit, How::Cut),
            (Who::Lease, How::Cut),
            (Who::Task, How::Cut),
            (Who::Launcher, How::Refused),
            (Who::Launcher, How::Cut),
            (Who::Tunnel, How::Refused),
            (Who::Tunnel, How::TimedOut),
            (Who::Tunnel, How::Cut),
        ] {
            let wanted = row(End::new(who, how));
            assert!(rows.iter().any(|row| row[..5] == wanted[..]), "{wanted:?} has no row");
        }
        assert_eq!(rows.len(), 18);
    }

    #[test]
    fn reasons_of_resets_travel_as_text() {
        for (reason, text) in [
            (ResetReason::Client, "the client has reset the connection"),
            (ResetReason::Database(""), "the database has reset the connection"),
            (ResetReason::Database("os error 104"), "the database has reset the connection: os error 104"),
            (ResetReason::ProofRequired("sign again"), "proof wanted: sign again"),
            (ResetReason::Other("the relay is stopping"), "the relay is stopping"),
            (ResetReason::Other(""), ""),
        ] {
            assert_eq!((reason.to_string().as_str(), ResetReason::parse(text)), (text, reason));
        }
    }

    #[test]
    fn an_end_of_the_database_is_never_told_in_words_of_ours() {
        let reset = |reason: &str| StreamEnd::Reset(reason.to_owned());
        let database = End::of_relay(&reset("the database has reset the connection: Connection reset by peer"));
        assert_eq!((database.notice(), database.is_news(true), database.is_news(false)), (Notice::Reset, false, false));
        for reason in ["the relay is stopping", "there is no target x here", "the other end of the connection is gone"]
        {
            let relay = End::of_relay(&reset(reason));
            assert_eq!((relay.notice(), relay.is_news(true)), (Notice::Error, true), "{reason}");
        }
        // Nothing that ends before its time looks like a good end.
        for who in WHO {
            for how in HOW {
                let end = End::new(who, how);
                assert!(end.notice() != Notice::End || how == How::Clean, "{end:?}");
            }
        }
    }

    #[test]
    fn both_ends_of_the_way_see_who_has_ended_it() {
        let no_lane = StreamEnd::Over(Ended::NoLane(120));
        for (end, at_relay, at_launcher) in [
            (StreamEnd::Over(Ended::Goodbye), (Who::Launcher, How::Cut), (Who::Task, How::Cut)),
            (StreamEnd::Over(Ended::Closed), (Who::Task, How::Cut), (Who::Launcher, How::Cut)),
            (StreamEnd::Over(Ended::Gone("it".to_owned())), (Who::Task, How::Cut), (Who::Task, How::Cut)),
            (no_lane, (Who::Tunnel, How::TimedOut), (Who::Tunnel, How::TimedOut)),
            (StreamEnd::Cut, (Who::Tunnel, How::Cut), (Who::Tunnel, How::Cut)),
            (StreamEnd::Reset(ResetReason::Client.to_string()), (Who::Client, How::Reset), (Who::Relay, How::Refused)),
        ] {
            let end_of = |(who, how)| End::new(who, how);
            assert_eq!(End::of_client(&end), end_of(at_relay), "{end}");
            assert_eq!(End::of_relay(&end), end_of(at_launcher), "{end}");
        }
    }
}
