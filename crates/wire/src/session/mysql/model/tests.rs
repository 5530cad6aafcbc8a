//! Random clients, honest and hostile ones, between a session and a model of a server that fails: what is recorded and not taken
//! back is what the server has run.

mod client;
mod play;
mod server;
mod sql;

use proptest::prelude::*;

use crate::mysql::packet::PAYLOAD_MAX;
use client::{Pick, Said, Step, Values};
use play::Play;
use server::{Agreed, Came, Fault};
use sql::Sql;

/// `SESSION_CASES` plays more of them; one has about 40 commands.
#[expect(clippy::disallowed_methods, reason = "of a test, and not of a relay")]
fn cases() -> u32 {
    std::env::var("SESSION_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(500)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn what_is_recorded_and_not_taken_back_is_what_the_server_runs(
        agreed in client::agreed(), stops_at_reset in any::<bool>(), steps in client::steps(40)
    ) {
        Play::run(agreed, stops_at_reset, &steps).check();
    }
}

const PLAIN: Agreed = Agreed {
    is_mariadb: true,
    deprecates_eof: true,
    optional_metadata: false,
    files: true,
    progress: true,
    bulk: true,
};

fn every_agreement() -> impl Iterator<Item = Agreed> {
    (0..8_u8).map(|bits| Agreed {
        is_mariadb: bits & 1 == 0,
        deprecates_eof: bits & 2 == 0,
        optional_metadata: bits & 4 == 0,
        ..PLAIN
    })
}

/// Said, and answered.
fn waits(said: impl IntoIterator<Item = Said>) -> Vec<Step> {
    said.into_iter().flat_map(|said| [Step::Say(said, Fault::No), Step::Settle]).collect()
}

/// Said in one breath.
fn at_once(said: impl IntoIterator<Item = Said>) -> Vec<Step> {
    said.into_iter().map(|said| Step::Say(said, Fault::No)).chain([Step::Settle]).collect()
}

fn execute(pick: Pick) -> Said {
    Said::Execute(pick, 0, Values::Good)
}

#[test]
fn a_client_that_waits_is_followed_exactly() {
    let kinds = [
        Sql::Select { columns: 2, rows: 3 },
        Sql::Select { columns: 1, rows: 300 },
        Sql::Parameters(2),
        Sql::Insert,
        Sql::FailsInRows,
        Sql::Call,
        Sql::CallOut,
        Sql::Pretends,
    ];
    for agreed in every_agreement() {
        let mut said = Vec::new();
        for sql in kinds.iter().cycle().take(24) {
            said.extend([
                Said::Prepare(sql.clone()),
                execute(Pick::Newest),
                Said::Query(vec![sql.clone(), Sql::Insert]),
            ]);
            said.extend([Said::Empty, Said::Execute(Pick::Newest, 1, Values::Good), Said::Fetch(Pick::Newest, 1)]);
            said.extend([Said::Prepare(Sql::NoSyntax), Said::InitDb, execute(Pick::Given(0)), Said::Other(0x09, 0)]);
        }
        let play = Play::run(agreed, false, &waits(said));
        play.check();
        let executes =
            play.commands.iter().enumerate().filter(|(_, command)| matches!(command.said, Said::Execute(..)));
        let known = executes.filter(|(number, _)| play.records[number].statement.sql().is_some()).count();
        assert_eq!((known, play.ended), (72, None), "{agreed:?}");
    }
}

#[test]
fn the_answer_to_an_empty_command_is_nobody_elses() {
    for agreed in every_agreement() {
        let said = [Said::Empty, Said::Prepare(Sql::Insert), Said::Prepare(Sql::Call)];
        let steps = [at_once(said), waits([execute(Pick::Given(0)), execute(Pick::Given(1))])].concat();
        let play = Play::run(agreed, false, &steps);
        play.check();
        let texts = [3, 4].map(|number| play.records[&number].statement.sql().unwrap());
        assert_eq!(texts, ["insert into t values (?) -- 1", "call p() -- 2"]);
    }
}

#[test]
fn the_last_statement_is_one_that_was_not_refused() {
    for (fault, last) in [(Fault::First, Some("insert into t values (?) -- 0")), (Fault::No, None)] {
        let good = if fault == Fault::No { Sql::NoSyntax } else { Sql::Call };
        let evil = [Step::Say(Said::Prepare(Sql::Insert), Fault::No), Step::Say(Said::Prepare(good), fault)];
        for settles in [true, false] {
            let mut steps = evil.to_vec();
            steps.extend(settles.then_some(Step::Settle));
            steps.extend(waits([execute(Pick::Last)]));
            let play = Play::run(PLAIN, false, &steps);
            play.check();
            assert_eq!(matches!(play.server.came[&2], Came::Ran(_)), last.is_some());
            let known = play.records[&2].statement.sql();
            assert_eq!(known, last.filter(|_| settles), "nothing is known before the answer");
        }
    }
}

/// The numbers of packets go round: behind 255 comes 0, and then the 1 that answers begin with.
#[test]
fn an_answer_does_not_end_where_its_numbers_look_like_it() {
    for agreed in every_agreement() {
        for cut in 252..260 {
            let rows = Said::Query(vec![Sql::Select { columns: 1, rows: 300 }]);
            let mut steps = vec![Step::Say(rows, Fault::No), Step::Write(999), Step::Handle(1)];
            steps.extend(std::iter::repeat_n(Step::DeliverMessage(999), cut));
            steps.extend([Step::Say(Said::Prepare(Sql::Insert), Fault::No), Step::Write(999)]);
            steps.extend([Step::Say(Said::Prepare(Sql::Call), Fault::No), Step::Settle]);
            steps.extend(waits([execute(Pick::Given(0)), execute(Pick::Given(1))]));
            let play = Play::run(agreed, false, &steps);
            play.check();
            let texts = [3, 4].map(|number| play.records[&number].statement.sql());
            assert_eq!(texts, [Some("insert into t values (?) -- 1"), Some("call p() -- 2")], "{cut} {agreed:?}");
        }
    }
}

#[test]
fn a_statement_that_is_closed_before_its_number_has_come_is_not_there() {
    for pick in [Pick::Guess(0), Pick::Last] {
        let steps = [
            at_once([Said::Prepare(Sql::Insert), Said::Close(pick)]),
            waits([execute(Pick::Given(0)), Said::Prepare(Sql::Call), execute(Pick::Newest)]),
        ];
        let play = Play::run(PLAIN, false, &steps.concat());
        play.check();
        assert_eq!(play.server.came[&2], Came::Refused);
        assert!(play.records[&2].not_run && !play.records[&4].not_run);
    }
}

#[test]
fn the_last_statement_is_not_one_whose_end_is_on_its_way() {
    let said = [Said::Prepare(Sql::Call), execute(Pick::Nobodys), Said::Close(Pick::Guess(0))];
    let mut steps: Vec<_> = said.into_iter().map(|said| Step::Say(said, Fault::No)).collect();
    steps.extend([Step::Write(999), Step::Handle(1), Step::Deliver(999)]);
    steps.extend(waits([execute(Pick::Last)]));
    let play = Play::run(PLAIN, false, &steps);
    play.check();
    assert_eq!(play.server.came[&3], Came::Refused);
    assert_eq!(play.records[&3].statement.sql(), None);
}

#[test]
fn what_runs_is_not_taken_back_for_what_it_says() {
    let said = [Said::Prepare(Sql::Pretends), execute(Pick::Newest)];
    for agreed in every_agreement() {
        // Its number decides which error it pretends.
        for before in 0..8 {
            let steps = [waits(vec![Said::Empty; before]), waits(said.clone())].concat();
            let play = Play::run(agreed, false, &steps);
            play.check();
            assert!(!play.records[&(before + 1)].not_run);
        }
    }
}

/// The numbers of its packets run on, and those of the answer from them.
#[test]
fn a_command_of_several_packets_is_one() {
    for length in [PAYLOAD_MAX, PAYLOAD_MAX + 1] {
        let said = [Said::Long(length), Said::Prepare(Sql::Insert)];
        let steps = [at_once(said), waits([execute(Pick::Newest)])].concat();
        let play = Play::run(PLAIN, false, &steps);
        play.check();
        assert_eq!(play.records[&2].statement.sql(), Some("insert into t values (?) -- 1"));
    }
}
