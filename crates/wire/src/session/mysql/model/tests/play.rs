//! A client, a session and a server, step by step, and what must hold.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::client::{self, Numbers, Pick, Said, Step};
use super::server::{Agreed, Came, Fault, Packet, Server};
use super::sql::Sql;
use crate::error_text::ErrorText;
use crate::memory::Memory;
use crate::mysql::capability::{CACHE_METADATA, DEPRECATE_EOF, LOCAL_FILES, NEEDED, OPTIONAL_METADATA, PROGRESS};
use crate::mysql::packet::{self, PAYLOAD_MAX};
use crate::mysql::{agreed, server};
use crate::session::text::{Kind, Limits, Statement};
use crate::session::{Event, Pass, Session, Stop};

/// Bytes of a text that are kept.
const KEPT: usize = 4096;

/// The record of a command.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) statement: Statement,
    pub(super) not_run: bool,
}

/// A command of the client.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) said: Said,
    fault: Fault,
    text: Option<String>,
    /// Where it stands among the bytes of the client.
    start: usize,
    end: usize,
    /// The text that its number surely stands for, if it does for one.
    surely: Option<String>,
    /// Everything before it was answered when it began to go on.
    is_alone: bool,
    /// Where its answer ends among the bytes of the server.
    answered: Option<usize>,
}

/// A client, a session and a server.
pub(super) struct Play {
    agreed: Agreed,
    session: Session,
    pub(super) server: Server,
    pub(super) commands: Vec<Command>,
    /// Of the client: not written, and written without going on.
    unsent: VecDeque<u8>,
    held: Vec<u8>,
    /// So many bytes and commands of it have gone on.
    up: usize,
    forwarded: usize,
    said_end: usize,
    /// The packets of the server, with where they end, that have not gone on; and their bytes.
    packets: VecDeque<(usize, Packet)>,
    back: VecDeque<u8>,
    back_end: usize,
    held_back: Vec<u8>,
    down: usize,
    /// The last packet that has gone on, if its answer goes on behind it, and whether it has asked for a file.
    under_way: Option<u8>,
    loads: bool,
    /// Number of the next packet of the file that the client is asked for.
    asked: Option<u8>,
    /// Numbers that the client was given, and the texts of those that stand for one for sure.
    given: Vec<u32>,
    giving: Option<u32>,
    known: BTreeMap<u32, String>,
    pub(super) records: HashMap<usize, Record>,
    by_number: HashMap<u64, usize>,
    /// Commands that have a record, in order, as far as they have gone on.
    told: usize,
    pub(super) ended: Option<Stop>,
    /// Why nothing more is said.
    is_over: bool,
}

fn is_recorded(said: &Said) -> bool {
    match said {
        Said::Fetch(..) | Said::LongData(..) | Said::ResetStatement(_) | Said::Close(_) | Said::Empty | Said::Quit => {
            false
        }
        Said::Other(code, _) => {
            ![0x00, 0x04, 0x09, 0x0b, 0x0e, 0x0f, 0x10, 0x18, 0x19, 0x1a, 0x1c, 0x1d].contains(code)
        }
        Said::Query(_)
        | Said::Long(_)
        | Said::Prepare(_)
        | Said::Execute(..)
        | Said::Bulk(..)
        | Said::ResetConnection
        | Said::ChangeUser
        | Said::InitDb
        | Said::OutOfOrder(_) => true,
    }
}

impl Play {
    fn new(agreed: Agreed, stops_at_reset: bool) -> Self {
        Self {
            agreed,
            session: session(agreed, stops_at_reset),
            server: Server::new(agreed, 40),
            commands: Vec::new(),
            unsent: VecDeque::new(),
            held: Vec::new(),
            up: 0,
            forwarded: 0,
            said_end: 0,
            packets: VecDeque::new(),
            back: VecDeque::new(),
            back_end: 0,
            held_back: Vec::new(),
            down: 0,
            under_way: None,
            loads: false,
            asked: None,
            given: Vec::new(),
            giving: None,
            known: BTreeMap::new(),
            records: HashMap::new(),
            by_number: HashMap::new(),
            told: 0,
            ended: None,
            is_over: false,
        }
    }

    fn take(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Statement { number, statement } => {
                    while !is_recorded(&self.commands[self.told].said) {
                        self.told += 1;
                    }
                    let is_mariadb = self.agreed.is_mariadb;
                    let kind = match &self.commands[self.told].said {
                        // In MySQL it is a command that nobody knows.
                        Said::Bulk(..) | Said::Other(0xfa, _) if !is_mariadb => Kind::Command,
                        Said::Query(_) | Said::Long(_) | Said::OutOfOrder(_) => Kind::Query,
                        Said::Prepare(_) => Kind::Prepare,
                        Said::Execute(..) | Said::Bulk(..) | Said::Other(0x17 | 0xfa, _) => Kind::Execute,
                        _ => Kind::Command,
                    };
                    assert_eq!(statement.kind, kind, "of {}: {:?}", self.told, self.commands[self.told].said);
                    self.by_number.insert(number, self.told);
                    self.records.insert(self.told, Record { statement, not_run: false });
                    self.told += 1;
                }
                Event::NotRun { number } => {
                    let of = self.by_number[&number];
                    let record = self.records.get_mut(&of).unwrap();
                    assert!(!record.not_run, "{of} did not run twice");
                    record.not_run = true;
                }
                Event::File(_) => assert!(self.agreed.files, "a file"),
            }
        }
    }

    fn say(&mut self, said: &Said, fault: Fault) {
        if self.is_over {
            return;
        }
        if let Some(sequence) = self.asked.take() {
            // It ends the file first, but for one that is told not to.
            if !matches!(said, Said::Empty) {
                self.push(sequence, &[]);
            }
        }
        let number = self.commands.len();
        let next = self.server.next_number();
        let numbers = Numbers { given: &self.given, next };
        let (bytes, named) = client::encode(said, number, &numbers);
        let text = client::text(said, number);
        if let (Some(text), Said::Query(sqls)) = (&text, said) {
            self.server.texts.insert(text.clone(), (sqls.clone(), number));
        }
        if let (Some(text), Said::Long(_)) = (&text, said) {
            self.server.texts.insert(text.clone(), (vec![Sql::Insert], number));
        }
        if let (Some(text), Said::Prepare(sql)) = (&text, said) {
            self.server.texts.insert(text.clone(), (vec![sql.clone()], number));
        }
        let surely = match said {
            Said::Bulk(..) if !self.agreed.is_mariadb => None,
            Said::Execute(..) | Said::Bulk(..) => named.and_then(|number| self.known.get(&number).cloned()),
            _ => None,
        };
        match said {
            Said::Close(Pick::Last) | Said::ResetConnection | Said::ChangeUser => self.known.clear(),
            Said::Close(_) => {
                self.known.remove(&named.unwrap());
            }
            // In MariaDB it may close any.
            Said::Other(0x19, _) => self.known.clear(),
            _ => {}
        }
        let start = self.said_end;
        self.unsent.extend(&bytes);
        self.said_end += bytes.len();
        self.is_over |= matches!(said, Said::Quit | Said::OutOfOrder(_));
        let end = self.said_end;
        self.commands.push(Command {
            said: said.clone(),
            fault,
            text,
            start,
            end,
            surely,
            is_alone: false,
            answered: None,
        });
    }

    /// A packet that is no command.
    fn push(&mut self, sequence: u8, payload: &[u8]) {
        let mut bytes = Vec::new();
        packet::encode(sequence, payload, &mut bytes);
        self.said_end += bytes.len();
        self.unsent.extend(bytes);
    }

    fn write(&mut self, count: usize) {
        let fresh: Vec<u8> = self.unsent.drain(..count.min(self.unsent.len())).collect();
        if fresh.is_empty() || self.ended.is_some() {
            return;
        }
        let (up, idle) = (self.up, self.waiting().is_none());
        if let Some(next) = self.commands.get_mut(self.forwarded).filter(|next| next.start >= up) {
            next.is_alone = idle;
        }
        self.held.extend(fresh);
        let given = std::mem::take(&mut self.held);
        let mut events = Vec::new();
        let Pass { forward, stop } = self.session.client(&given, &mut events);
        self.server.from_client.extend(&given[..forward]);
        self.up += forward;
        self.held = given[forward..].to_vec();
        let before = self.forwarded;
        while self.commands.get(self.forwarded).is_some_and(|command| command.end <= self.up) {
            self.server.queue.push_back((self.forwarded, self.commands[self.forwarded].fault));
            self.forwarded += 1;
        }
        self.take(events);
        // Told before it goes on, and nothing before it has come.
        let must = |said: &Said| is_recorded(said) && !matches!(said, Said::OutOfOrder(_));
        let due = (before..self.forwarded).rev().find(|number| must(&self.commands[*number].said));
        assert!(
            due.is_none_or(|due| due < self.told),
            "{:?} has gone on without a record",
            self.commands[due.unwrap()]
        );
        assert!(self.told <= self.forwarded + 1);
        match stop {
            None => {}
            Some(Stop::Command) => self.change(),
            Some(stop) => {
                let is_short = |code, length| match code {
                    0x18 | 0xfa => length < 6,
                    0x19 | 0x1a => length < 4,
                    0x17 => length < 9,
                    0x1c => length < 8,
                    _ => false,
                };
                let may = match self.commands.get(self.forwarded).map(|command| &command.said) {
                    Some(Said::OutOfOrder(_)) => true,
                    Some(Said::Other(code, length)) if is_short(*code, *length) => true,
                    // In the place of a file.
                    _ => self.server.is_loading(),
                };
                assert!(may, "{stop:?} at {:?}", self.commands.get(self.forwarded));
                self.ended = Some(stop);
            }
        }
    }

    /// The relay answers the command that has stopped the client.
    fn change(&mut self) {
        let number = self.forwarded;
        self.handle(usize::MAX);
        self.deliver(usize::MAX);
        if self.ended.is_some() || self.server.is_dead || self.server.is_loading() {
            // Nobody waits for this one's answer any more.
            self.is_over = true;
            self.ended = self.ended.take().or(Some(Stop::Command));
            return;
        }
        assert!(self.session.is_idle(), "the relay waits for ever before {number}");
        let length = self.commands[number].end - self.up;
        while self.held.len() < length {
            self.held.push(self.unsent.pop_front().unwrap());
        }
        let command: Vec<u8> = self.held.drain(..length).collect();
        let mut events = Vec::new();
        self.session.answered(&command, &mut events);
        self.up += length;
        self.forwarded += 1;
        self.take(events);
        self.server.reset();
        let held = std::mem::take(&mut self.held);
        let count = held.len();
        held.into_iter().rev().for_each(|byte| self.unsent.push_front(byte));
        self.write(count);
    }

    fn handle(&mut self, count: usize) {
        for _ in 0..count {
            if !self.server.handle() {
                return;
            }
            self.fetch();
        }
    }

    /// Packets of the server come on their way.
    fn fetch(&mut self) {
        for packet in std::mem::take(&mut self.server.out) {
            let bytes = raw(&packet);
            self.back_end += bytes.len();
            self.back.extend(bytes);
            if let Some(command) = packet.ends {
                self.commands[command].answered = Some(self.back_end);
            }
            self.packets.push_back((self.back_end, packet));
        }
    }

    fn deliver(&mut self, count: usize) {
        self.deliver_by(count, Session::server);
    }

    fn deliver_by(&mut self, count: usize, by: impl FnOnce(&mut Session, &[u8], &mut Vec<Event>) -> Pass) -> usize {
        let fresh: Vec<u8> = self.back.drain(..count.min(self.back.len())).collect();
        if fresh.is_empty() || self.ended.is_some() {
            return 0;
        }
        self.held_back.extend(fresh);
        let given = std::mem::take(&mut self.held_back);
        let mut events = Vec::new();
        let Pass { forward, stop } = by(&mut self.session, &given, &mut events);
        self.down += forward;
        self.held_back = given[forward..].to_vec();
        self.take(events);
        let mut asks_for_other = false;
        while let Some((_, packet)) = self.packets.pop_front_if(|(end, _)| *end <= self.down) {
            self.under_way = packet.ends.is_none().then_some(packet.sequence);
            self.loads = packet.asks;
            if let Some(number) = packet.gives {
                self.given.push(number);
                self.known.remove(&number);
                self.giving = Some(number);
            }
            if let (Some(of), Some(number)) = (packet.ends, self.giving.filter(|_| packet.ends.is_some())) {
                self.giving = None;
                // Where nothing behind it may have closed it.
                let is_last = !self.commands[of..].iter().any(|behind| closes(&behind.said));
                let text = self.commands[of].text.clone().filter(|_| is_last);
                self.known.extend(text.map(|text| (number, text)));
            }
            if packet.asks {
                asks_for_other |= packet.ends.is_some();
                self.asked = Some(packet.sequence.wrapping_add(1));
            }
        }
        assert!(!asks_for_other, "a file goes out that no statement names");
        if let Some(stop) = stop {
            let asks = self.packets.front().is_some_and(|(_, packet)| packet.asks);
            assert!(asks && matches!(stop, Stop::File(_)), "{stop:?} at {:?}", self.packets.front());
            // It is given away where nothing else is under way.
            let is_wanted = self.packets.front().is_some_and(|(_, packet)| packet.ends.is_none());
            let last = self.forwarded.checked_sub(1).map(|last| &self.commands[last]);
            let is_alone = last.is_some_and(|last| last.is_alone && last.end == self.up && self.held.is_empty());
            assert!(!is_wanted || !is_alone, "{stop:?} is what the client wants");
            self.ended = Some(stop);
        }
        forward
    }

    /// So far in the message under way, and no further.
    fn deliver_message(&mut self, count: usize) {
        let (down, end) = (self.down, self.packets.front().map(|(end, _)| *end));
        let before = self.held_back.len();
        let forward = self.deliver_by(count, Session::server_message);
        if self.ended.is_none() && forward > 0 {
            assert!(end.is_some_and(|end| self.down <= end), "from {down} to {} and not {end:?}", self.down);
            // The others are given again, now.
            let rest = std::mem::take(&mut self.held_back);
            assert!(before <= rest.len() + forward);
            rest.into_iter().rev().for_each(|byte| self.back.push_front(byte));
        }
    }

    fn settle(&mut self) {
        for _ in 0..3 {
            self.write(usize::MAX);
            self.handle(usize::MAX);
            self.deliver(usize::MAX);
        }
        if self.ended.is_none() {
            assert!(self.held.is_empty(), "{:?} is held back", self.held);
            assert!(self.held_back.is_empty(), "{:?} of the server is held back", self.held_back);
            assert!(self.session.is_between_messages(), "it is never between two messages");
            let waits = self.server.is_dead || self.server.is_loading();
            assert!(waits || self.session.is_idle(), "all is answered, and it is not idle");
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Say(said, fault) => self.say(said, *fault),
            Step::File(payload) => {
                if let Some(sequence) = self.asked.take() {
                    self.push(sequence, payload.unwrap_or_default());
                    self.asked = payload.map(|_| sequence.wrapping_add(1));
                }
            }
            Step::Write(count) => self.write(usize::from(*count)),
            Step::Handle(count) => self.handle(usize::from(*count)),
            Step::Deliver(count) => self.deliver(usize::from(*count)),
            Step::DeliverMessage(count) => self.deliver_message(usize::from(*count)),
            Step::Die(sequence) => {
                self.server.die(*sequence);
                self.fetch();
            }
            Step::Settle => self.settle(),
        }
        if self.ended.is_none() {
            self.look();
        }
    }

    /// What the session says of where it stands.
    fn look(&self) {
        let ends_here = |packet: &(usize, Packet)| packet.0 - raw(&packet.1).len() == self.down;
        let is_between = self.packets.front().is_none_or(ends_here);
        let waits = self.waiting();
        // A last error may be taken for an answer.
        if !self.server.is_dead {
            assert!(waits.is_none() || !self.session.is_idle(), "{waits:?} is not answered");
        }
        let text = ErrorText { sqlstate: "57P01".to_owned(), message: "it ends".to_owned(), ..ErrorText::default() };
        let words = self.session.last_words(&text);
        assert_eq!(words.is_some(), self.session.is_between_messages());
        assert!(words.is_none() || is_between, "a message would stand in the middle of another one");
        if let (Some(words), Some(before), None) = (words, self.under_way, self.asked)
            && !self.loads
            && !self.server.is_dead
        {
            assert_eq!(words[3], before.wrapping_add(1), "it does not go on behind {before}");
        }
    }

    /// The first command that is not answered.
    fn waiting(&self) -> Option<(usize, &Command)> {
        self.commands[..self.forwarded].iter().enumerate().find(|(number, command)| {
            client::is_answered(&command.said, self.agreed)
                && command.said != Said::ChangeUser
                && command.answered.is_none_or(|end| end > self.down)
                && !self.is_answered_by_us(*number)
        })
    }

    /// A reset that the relay has seen to.
    fn is_answered_by_us(&self, number: usize) -> bool {
        self.commands[number].said == Said::ResetConnection && !self.server.came.contains_key(&number) && {
            // What goes on is in the server's queue until it is handled.
            !self.server.queue.iter().any(|(queued, _)| *queued == number)
        }
    }

    pub(super) fn run(agreed: Agreed, stops_at_reset: bool, steps: &[Step]) -> Self {
        let mut play = Self::new(agreed, stops_at_reset);
        for step in steps {
            play.step(step);
            if play.ended.is_some() {
                break;
            }
        }
        match &play.ended {
            None => play.settle(),
            // What has gone on still runs.
            Some(_) => play.handle(usize::MAX),
        }
        if let Some(Stop::OutOfProtocol(error)) = &play.ended {
            assert_eq!(error.from, "client", "{}", error.what);
        }
        let mut events = Vec::new();
        play.session.end(&mut events);
        play.take(events);
        play
    }

    /// Records that are not taken back are what has run.
    pub(super) fn check(&self) {
        for (number, command) in self.commands.iter().enumerate() {
            let record = self.records.get(&number);
            let came = self.server.came.get(&number).unwrap_or(&Came::Unread);
            let sql = record.and_then(|record| record.statement.sql());
            let counts = record.is_some_and(|record| !record.not_run);
            let is_told = command.answered.is_some_and(|end| end <= self.down);
            let context = || format!("{number}: {command:?} came to {came:?} and is {record:?}");
            match (&command.said, came) {
                (Said::Query(_), Came::Ran(text)) => assert!(counts && sql == Some(text), "{}", context()),
                (Said::Long(_), Came::Ran(text)) => assert!(counts && sql == text.get(..KEPT), "{number}"),
                (Said::Execute(..) | Said::Bulk(..), Came::Ran(text)) => {
                    assert!(counts, "{}", context());
                    assert!(sql.is_none_or(|sql| sql == text), "{}", context());
                    let has = |record: &Record| record.statement.sql() == Some(text);
                    assert!(self.records.values().any(has), "{} and has no record of its text", context());
                }
                // In MySQL the latter is no command.
                (Said::Bulk(..), Came::Refused) if !self.agreed.is_mariadb => {}
                // Which one is the last may be known to the server alone.
                (Said::Execute(Pick::Last, ..) | Said::Bulk(Pick::Last, _), Came::Refused) => {
                    assert!(!counts || sql.is_none() || !is_told, "{}", context());
                }
                (Said::Execute(..) | Said::Bulk(..), Came::Refused) => assert!(!counts || !is_told, "{}", context()),
                (Said::Execute(..) | Said::Bulk(..), Came::Invalid(text)) => {
                    assert!(sql.is_none_or(|sql| sql == text), "{}", context());
                }
                (Said::OutOfOrder(_), _) => assert!(!counts, "{}", context()),
                (Said::Prepare(_), Came::Done) => {
                    assert!((counts || !is_told) && sql == command.text.as_deref(), "{}", context());
                }
                (Said::Prepare(_), Came::Refused) => assert!(!counts || !is_told, "{}", context()),
                _ => {}
            }
            // The client has heard the number, so the relay knows it.
            if let (Some(surely), Some(record)) = (&command.surely, record) {
                assert_eq!(record.statement.sql(), Some(surely.as_str()), "{}", context());
            }
        }
    }
}

/// The session between them.
fn session(agreed: Agreed, stops_at_reset: bool) -> Session {
    let has = |has: bool, capability: u32| if has { capability } else { 0 };
    let Agreed { is_mariadb, optional_metadata, .. } = agreed;
    let agreed = agreed::Agreed {
        capabilities: NEEDED
            | has(agreed.deprecates_eof, DEPRECATE_EOF)
            | has(agreed.files, LOCAL_FILES)
            | has(optional_metadata && !is_mariadb, OPTIONAL_METADATA),
        extended: has(is_mariadb && agreed.progress, PROGRESS) | has(is_mariadb && optional_metadata, CACHE_METADATA),
        server: if is_mariadb { server::Server::MariaDb } else { server::Server::MySql },
        stops_at_reset,
    };
    Session::mysql(agreed, &Memory::relay().asked, Some(Limits::new(KEPT, None, &Memory::relay())))
}

/// Whether it may end statements whose numbers are not known.
fn closes(said: &Said) -> bool {
    matches!(said, Said::Close(_) | Said::ResetConnection | Said::ChangeUser | Said::Other(0x19, _))
}

fn raw(packet: &Packet) -> Vec<u8> {
    assert!(packet.payload.len() < PAYLOAD_MAX);
    let mut out = Vec::new();
    packet::encode(packet.sequence, &packet.payload, &mut out);
    out
}
