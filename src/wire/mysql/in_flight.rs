//! Whether a client's commands have been answered, for the moment when the relay wants to send commands of its own: their
//! answers must not be mixed up with those that the client waits for.
//!
//! Nearly every client waits for an answer before it sends the next command; for those nothing is read, because the
//! upstream speaks between any two commands. Where it does not, the answers are counted until all are in. Whether the
//! answer under way has ended is not known here, see [`Downstream::is_between_answers`].

use std::collections::VecDeque;

use crate::wire::downstream::Downstream;

/// Commands without an answer (`my_command.h`): quit, long data for a statement, the end of a statement.
const UNANSWERED: [u8; 3] = [0x01, 0x18, 0x19];
/// `COM_STMT_FETCH`, whose answer is rows without a head.
const FETCH: u8 = 0x1c;

/// See the module.
#[derive(Debug, Clone, Default)]
pub enum InFlight {
    /// The client has heard something since its last command, and has waited for all of it.
    #[default]
    Answered,
    /// This one command, and nothing heard since.
    One(u8),
    /// The client does not wait; its commands, which of them fetch rows, and what has come since the first of them.
    Counted { asked: usize, fetches: VecDeque<usize>, heard: Downstream },
}

impl InFlight {
    /// A command that goes on to the upstream, in a session whose answers are as those of `session`, which is idle.
    pub fn command(&mut self, command: u8, session: Downstream) {
        if UNANSWERED.contains(&command) {
            return;
        }
        match self {
            Self::Answered => *self = Self::One(command),
            Self::One(first) => {
                let both = [*first, command];
                let fetches = both.iter().enumerate().filter(|(_, command)| **command == FETCH);
                *self =
                    Self::Counted { asked: 2, fetches: fetches.map(|(number, _)| number).collect(), heard: session };
            }
            Self::Counted { asked, fetches, .. } => {
                if command == FETCH {
                    fetches.push_back(*asked);
                }
                *asked = asked.saturating_add(1);
            }
        }
    }

    /// A command that is held back until all before it are answered.
    pub fn hold(&mut self, session: Downstream) {
        if let Self::One(command) = self {
            let fetches = if *command == FETCH { VecDeque::from([0]) } else { VecDeque::new() };
            *self = Self::Counted { asked: 1, fetches, heard: session };
        }
    }

    /// Bytes of the upstream.
    pub fn down(&mut self, bytes: &[u8]) {
        match self {
            Self::Answered => {}
            Self::One(_) => *self = Self::Answered,
            Self::Counted { asked, fetches, heard } => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    if fetches.pop_front_if(|number| heard.answers() == Some(*number)).is_some() {
                        heard.expect_rows();
                    }
                    let used = heard.pass_message(rest);
                    rest = rest.get(used..).unwrap_or_default();
                }
                let all = heard.answers().is_none_or(|begun| begun >= *asked && heard.is_between_answers());
                if all {
                    *self = Self::Answered;
                }
            }
        }
    }

    pub fn is_answered(&self) -> bool {
        matches!(self, Self::Answered)
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::wire::mysql::packet;

    const QUERY: u8 = 3;
    const FINE: &[u8] = &[0, 0, 0, 2, 0, 0, 0];
    const END: &[u8] = &[0xfe, 0, 0, 2, 0];

    fn session() -> Downstream {
        Downstream::mysql(true)
    }

    fn packets(payloads: &[(u8, &[u8])]) -> Vec<u8> {
        let mut out = BytesMut::new();
        for (sequence, payload) in payloads {
            packet::encode(*sequence, payload, &mut out);
        }
        out.to_vec()
    }

    #[test]
    fn a_client_that_waits_is_not_followed() {
        let mut flight = InFlight::default();
        for _ in 0..3 {
            flight.command(QUERY, session());
            assert!(matches!(flight, InFlight::One(QUERY)));
            // Whatever it is: the client reads it to its end.
            flight.down(b"part of an answer");
            flight.down(b"the rest");
            assert!(flight.is_answered());
            // The end of a prepared statement is sent with the next command.
            flight.command(0x19, session());
        }
    }

    #[test]
    fn answers_are_counted_where_it_does_not_wait_however_they_are_cut() {
        let answers = [
            packets(&[(1, FINE)]),
            packets(&[(1, &[1]), (2, b"\x03def"), (3, b"\x011"), (4, END)]),
            packets(&[(1, b"\xff\x15\x04#28000no")]),
        ]
        .concat();
        for cut in 1..=answers.len() {
            let mut flight = InFlight::default();
            for _ in 0..3 {
                flight.command(QUERY, session());
            }
            let mut came = 0;
            for piece in answers.chunks(cut) {
                assert!(!flight.is_answered(), "{came} of {}", answers.len());
                flight.down(piece);
                came += piece.len();
            }
            assert!(flight.is_answered(), "{cut}");
        }
    }

    #[test]
    fn one_command_before_the_held_one_is_waited_for() {
        let mut flight = InFlight::default();
        flight.hold(session());
        assert!(flight.is_answered());
        flight.command(QUERY, session());
        flight.hold(session());
        let answer = packets(&[(1, FINE)]);
        flight.down(&answer[..6]);
        assert!(!flight.is_answered());
        flight.down(&answer[6..]);
        assert!(flight.is_answered());
    }

    #[test]
    fn statistics_and_prepared_statements_are_answered_with_their_last_packet() {
        let prepared: &[u8] = &[0, 1, 0, 0, 0, 2, 0, 1, 0, 0, 0, 0];
        let column: &[u8] = b"\x03def\0\0\0";
        let bare = packets(&[(1, prepared), (2, column), (3, column), (4, column)]);
        let ended = packets(&[(1, prepared), (2, column), (3, END), (4, column), (5, column), (6, END)]);
        for (command, answer, deprecates_eof) in [
            (0x09, packets(&[(1, b"Uptime: 7  Threads: 1")]), true),
            (0x16, packets(&[(1, &[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])]), true),
            (0x16, bare, true),
            (0x16, ended, false),
        ] {
            for cut in 1..=answer.len() {
                let mut flight = InFlight::default();
                flight.command(command, Downstream::mysql(deprecates_eof));
                flight.hold(Downstream::mysql(deprecates_eof));
                for piece in answer.chunks(cut) {
                    assert!(!flight.is_answered());
                    flight.down(piece);
                }
                assert!(flight.is_answered(), "{answer:?} in pieces of {cut}");
            }
        }
    }

    #[test]
    fn rows_that_are_fetched_are_no_answers_of_their_own() {
        let row: &[u8] = &[0, 0, 1, 0, 0, 0, 0];
        let rows = packets(&[(1, row), (2, row), (3, END)]);
        let mut flight = InFlight::default();
        flight.command(FETCH, session());
        flight.hold(session());
        flight.down(&rows[..11]);
        assert!(!flight.is_answered());
        flight.down(&rows[11..]);
        assert!(flight.is_answered());
        for command in [QUERY, FETCH, QUERY, FETCH] {
            flight.command(command, session());
        }
        let answers = [packets(&[(1, FINE)]), rows.clone(), packets(&[(1, FINE)]), rows].concat();
        for byte in &answers {
            assert!(!flight.is_answered());
            flight.down(&[*byte]);
        }
        assert!(flight.is_answered());
    }

    #[test]
    fn what_are_no_answers_is_not_waited_for() {
        let mut flight = InFlight::default();
        flight.command(QUERY, session());
        flight.command(QUERY, session());
        // It begins in the middle of an answer: the client had not read it to its end.
        flight.down(&packets(&[(7, b"\x011")]));
        assert!(flight.is_answered());
    }
}
