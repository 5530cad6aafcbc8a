use proptest::prelude::*;

use super::*;

fn limits() -> Limits {
    Limits::new(64, None, &Memory::relay())
}

fn text(sql: &str, dialect: Dialect) -> Arc<Text> {
    Collector::new(limits(), dialect).whole(sql.as_bytes(), Modes::default())
}

fn hex(hash: Option<&Hash>) -> String {
    let Some(Hash::Keyed(bytes) | Hash::Sha256(bytes)) = hash else { panic!("no hash") };
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn blanks_and_comments_in_front_take_no_room() {
    let both = [
        ("select 1", "select 1"),
        (" \t\r\n\x0b\x0cselect 1 -- x", "select 1 -- x"),
        ("-- delete from t\nselect 1", "select 1"),
        ("/* delete * from / t **/select 1", "select 1"),
        ("/*/ x */ select 1", "select 1"),
        ("- 1", "- 1"),
        ("/ 1", "/ 1"),
        ("-", "-"),
        ("/", "/"),
        ("--", ""),
        ("-- x", ""),
        ("/* x", ""),
        ("", ""),
    ];
    let postgres = [
        ("--x\rselect 1", "select 1"),
        ("/* /* x */ ' */ select 1", "select 1"),
        ("/*! select 2 */ select 1", "select 1"),
        ("# 1", "# 1"),
    ];
    let mysql = [
        ("--x\n", "--x\n"),
        ("--\x01x\nselect 1", "select 1"),
        ("--\nselect 1", "select 1"),
        ("-- x\rselect 2\nselect 1", "select 1"),
        ("# x\n# y\nselect 1", "select 1"),
        ("/* /* x */ select 1 */", "select 1 */"),
        ("/*! select 1 */", "/*! select 1 */"),
        ("/*M!50000 select 1 */", "/*M!50000 select 1 */"),
        ("/*M x */ /* ! */ select 1", "select 1"),
        ("/*M*/select 1", "select 1"),
        ("# x\0 select 1", "\0 select 1"),
    ];
    for (dialect, texts) in [(Dialect::Postgres, &postgres[..]), (Dialect::Mysql, &mysql[..])] {
        for (sql, expected) in both.iter().chain(texts) {
            assert_eq!(text(sql, dialect).sql(), Some(*expected), "{sql:?} as {dialect:?}");
        }
    }
    let hidden = format!("{}/*{}*/delete from t", " ".repeat(9000), "x".repeat(9000));
    let text = text(&hidden, Dialect::Postgres);
    assert_eq!((text.sql(), text.is_cut(), text.bytes()), (Some("delete from t"), false, 18_017));
}

#[test]
fn length_and_hash_are_those_of_the_whole_text() {
    let sql = format!("{} select '{}'", "/* x */".repeat(100), "y".repeat(1000));
    let long = text(&sql, Dialect::Mysql);
    assert_eq!((long.sql().unwrap().len(), long.is_cut(), long.bytes()), (64, true, 1710));
    assert_eq!(long.hash(), Some(&Hash::Sha256(Sha256::digest(&sql).into())));
    // FIPS 180-4, "abc".
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(hex(text("abc", Dialect::Mysql).hash()), abc);
}

#[test]
fn a_redacted_text_has_a_hash_that_needs_the_key() {
    // As `hmac.new(bytes(range(32)), b"select 17", "sha256")` of Python.
    let key: [u8; 32] = std::array::from_fn(|n| u8::try_from(n).unwrap());
    let mut collector =
        Collector::new(Limits::new(64, Some(Arc::new(Key::new(&key))), &Memory::relay()), Dialect::Postgres);
    for _ in 0..2 {
        let text = collector.whole(b"select 17", Modes::default());
        assert_eq!((text.sql(), text.redacted()), (Some("select ?"), Some(How::Literals)));
        assert!(matches!(text.hash(), Some(Hash::Keyed(_))));
        assert_eq!(hex(text.hash()), "0054b1411215056fd732015bf76b2010af8de99198d9f7340b86fe7553913f38");
    }
}

#[test]
fn what_a_connection_keeps_is_bounded_and_the_rest_is_known_by_its_hash() {
    let mut collector = Collector::new(Limits::new(TEXT_MAX, None, &Memory::relay()), Dialect::Postgres);
    let long = vec![b'x'; TEXT_MAX / 4];
    let kept: Vec<_> = (0..10).map(|_| collector.whole(&long, Modes::default()).to_keep()).collect();
    assert_eq!(kept.iter().filter(|text| text.sql().is_some()).count(), 4);
    let without = &kept[9];
    assert_eq!((without.sql(), without.hash(), without.bytes()), (None, kept[0].hash(), kept[0].bytes()));
    drop(kept);
    assert!(collector.whole(&long, Modes::default()).to_keep().sql().is_some());
}

#[test]
fn a_text_is_told_whole_once() {
    let text = text("select 1", Dialect::Postgres);
    let first = Statement::new(Kind::Execute, None, Some(Arc::clone(&text)));
    assert!(first.whole && text.is_told());
    assert!(!Statement::new(Kind::Execute, None, Some(Arc::clone(&text))).whole);
    assert!(Statement::new(Kind::Query, None, Some(text)).whole);
}

proptest! {
    #[test]
    fn a_text_is_the_same_however_it_is_cut(
        sql in "[ \n\r/*!M#x;-]{0,40}",
        cuts in prop::collection::vec(1_usize..5, 40),
        mysql in any::<bool>(),
    ) {
        let dialect = if mysql { Dialect::Mysql } else { Dialect::Postgres };
        let mut collector = Collector::new(limits(), dialect);
        let mut rest = sql.as_bytes();
        for cut in cuts {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            collector.push(now);
            rest = later;
        }
        collector.push(rest);
        prop_assert_eq!(collector.finish(Modes::default()), text(&sql, dialect));
    }
}

#[test]
fn all_connections_together_keep_so_much_and_every_record_still_says_which_text_it_was() {
    let texts = Budget::new("tests", 10 * (8192 + COST));
    let memory = Memory { texts: texts.clone(), ..Memory::relay() };
    let kept: Vec<_> = (0..20)
        .map(|_| {
            let limits = Limits::new(TEXT_MAX, None, &memory);
            let text = Collector::new(limits, Dialect::Postgres).whole(&[b'x'; 8192], Modes::default());
            // Twice under two names costs once.
            (text.to_keep(), text.to_keep())
        })
        .collect();
    let with = |kept: &Arc<Text>| kept.sql() == Some(&"x".repeat(8192));
    assert_eq!(kept.iter().filter(|(one, other)| with(one) && with(other)).count(), 10);
    assert!(kept[10..].iter().all(|(one, other)| one.sql().is_none() && other.sql().is_none()));
    assert!(kept.iter().all(|(one, _)| one.bytes() == 8192 && one.hash() == kept[0].0.hash()));
    drop(kept);
    assert_eq!(texts.left(), 10 * (8192 + COST));
}

#[test]
fn a_text_that_is_coming_is_kept_as_far_as_there_is_memory_and_counted_whole() {
    let memory = Memory { texts: Budget::new("tests", 3 * STEP), ..Memory::relay() };
    let collector = || Collector::new(Limits::new(TEXT_MAX, None, &memory), Dialect::Postgres);
    let (mut first, mut second, mut small) = (collector(), collector(), collector());
    for _ in 0..6 * STEP / 512 {
        first.push(&[b'x'; 512]);
    }
    second.push(&[b'y'; 6 * STEP]);
    let (one, other) = (first.finish(Modes::default()), second.finish(Modes::default()));
    assert_eq!(one.sql().map(str::len), Some(4 * STEP));
    assert_eq!(other.sql().map(str::len), Some(STEP));
    for text in [&one, &other] {
        assert!(text.is_cut() && text.bytes() == 6 * STEP as u64);
    }
    assert_eq!(small.whole(&[b'z'; STEP], Modes::default()).sql().map(str::len), Some(STEP));
    assert_eq!(memory.texts.left(), 3 * STEP);
}
