use proptest::prelude::*;

use super::*;

/// The servers' own settings.
fn defaults(dialect: Dialect) -> Modes {
    Modes { backslash: Some(dialect == Dialect::Mysql), encoding: Some(Encoding::Plain) }
}

fn squeezed(text: &[u8]) -> String {
    String::from_utf8_lossy(text).split_whitespace().collect::<Vec<_>>().join(" ")
}

fn check(dialect: Dialect, modes: Modes, texts: &[(&str, &str)]) {
    for (sql, expected) in texts {
        let (got, how) = redact(sql.as_bytes(), dialect, modes);
        assert_eq!((squeezed(&got), how), ((*expected).to_owned(), How::Literals), "{sql}");
    }
}

fn check_verbs(dialect: Dialect, modes: Modes, texts: &[&str]) {
    for sql in texts {
        let (got, how) = redact(sql.as_bytes(), dialect, modes);
        let verb = sql.split([' ', '\'']).next().unwrap_or_default();
        assert_eq!((squeezed(&got).as_str(), how), (verb, How::Verb), "{sql}");
    }
}

#[test]
fn literals_of_postgresql_go_and_the_rest_stays() {
    check(
        Dialect::Postgres,
        defaults(Dialect::Postgres),
        &[
            ("select * from t1 where a_2 = 17 and b = 'x''y'", "select * from t1 where a_2 = ? and b = ?"),
            ("select -1.5e-3, .5, 0xff, 1_000, 1e10", "select -?, ?, ?, ?, ?"),
            ("select E'a\\'b', B'01', x'ff', N'n', U&'\\0041'", "select ?, ?, ?, ?, ?"),
            ("select $1, $2::int", "select $1, $2::int"),
            ("select $tag$ $$ ' $tag$ || $q$x$q$", "select ? || ?"),
            ("select \"col 1\", \"a\"\"b\"", "select \"col 1\", \"a\"\"b\""),
            ("select 1 -- secret 5\n, 2", "select ? , ?"),
            ("select /* a /* b */ 'c' */ 3", "select ?"),
            ("select 'cut", "select ?"),
            ("select $x$cut", "select ?"),
            ("select a$1 from b", "select a$1 from b"),
            ("insert into t values (1,2,'a'),(3,4,'b')", "insert into t values (?,?,?),(?,?,?)"),
            ("select '片山', 片山1 from t", "select ?, 片山1 from t"),
            ("select 1::int4, 'x'::text, '{1,2}'::int[]", "select ?::int4, ?::text, ?::int[]"),
            // A string that goes on in the next line keeps its kind.
            ("select 'a'\n'b'", "select ?"),
            ("select E'a' -- x\n '\\'S3CRET'; delete from t", "select ?; delete from t"),
            ("select 'a' 'b\\'", "select ? ?"),
            // A character that is no letter belongs to a name all the same.
            ("select €$$ from a; delete from b -- $$", "select €$$ from a; delete from b"),
            ("select '\\'; delete from t -- '", "select ?; delete from t"),
        ],
    );
}

#[test]
fn literals_of_mysql_go_and_the_rest_stays() {
    check(
        Dialect::Mysql,
        defaults(Dialect::Mysql),
        &[
            ("select \"ab\", 'c\\'d', `e f` from t", "select ?, ?, `e f` from t"),
            ("select 5--3 from t -- gone 'x'", "select ?--? from t"),
            ("select 1 # gone 2\n, _utf8mb4'x', 0xff", "select ? , _utf8mb4?, ?"),
            ("select /*!50000 'S3CRET', 7 */ 1", "select ?, ? ?"),
            ("select /* 'a' /* */ 1", "select ?"),
            ("select x'4d', b'01', N'n'", "select ?, ?, ?"),
            ("select 1 # x\r' \n from t # '", "select ? from t"),
            ("select 1 /*M! ; delete from t */", "select ? ; delete from t"),
            // Names may begin with digits.
            ("delete from 2024_orders where a = 2024", "delete from 2024_orders where a = ?"),
            (
                "delete from a.2024 where b = 1e5 and c = 1e+5 and d = 0x1F",
                "delete from a.2024 where b = ? and c = ? and d = ?",
            ),
        ],
    );
}

#[test]
fn strings_end_where_the_modes_of_the_session_say() {
    let hidden = "select '\\' ; delete from orders; -- '";
    let mysql = defaults(Dialect::Mysql);
    let mut no_escapes = mysql;
    no_escapes.status(0x0202);
    check(Dialect::Mysql, no_escapes, &[(hidden, "select ? ; delete from orders;")]);
    check(Dialect::Mysql, mysql, &[(hidden, "select ?")]);
    let mut postgres = Modes::default();
    postgres.parameter(b"standard_conforming_strings", b"off");
    postgres.parameter(b"client_encoding", b"UTF8");
    check(Dialect::Postgres, postgres, &[(hidden, "select ?"), ("select 'a\\'S3CRET', 1", "select ?, ?")]);
    postgres.parameter(b"standard_conforming_strings", b"on");
    check(Dialect::Postgres, postgres, &[(hidden, "select ? ; delete from orders;")]);
    // What is not known matters only where it makes a difference.
    check(Dialect::Postgres, Modes::default(), &[("select 'a\\b', 'é'", "select ?, ?")]);
    check_verbs(Dialect::Postgres, Modes::default(), &[hidden]);
    check_verbs(Dialect::Mysql, Modes::default(), &[hidden]);
}

#[test]
fn a_character_of_two_bytes_holds_no_backslash() {
    // 0x95 0x5c is one character in GBK and Shift JIS.
    let sql = b"select '\x95\\'; delete from t -- '";
    for (name, expected) in
        [(&b"GBK"[..], "select ?; delete from t"), (b"SJIS", "select ?; delete from t"), (b"LATIN1", "select ?")]
    {
        let mut modes = Modes::default();
        modes.parameter(b"client_encoding", name);
        modes.parameter(b"standard_conforming_strings", b"off");
        assert_eq!(squeezed(&redact(sql, Dialect::Postgres, modes).0), expected);
    }
    // A half-width character is one byte in Shift JIS.
    let mut modes = Modes::default();
    modes.parameter(b"standard_conforming_strings", b"off");
    modes.parameter(b"client_encoding", b"SJIS");
    assert_eq!(squeezed(&redact(b"select '\xb1\\'S3CRET'", Dialect::Postgres, modes).0), "select ?");
    // MySQL does not tell its client's character set.
    let mut modes = Modes::default();
    modes.status(2);
    assert_eq!(redact(sql, Dialect::Mysql, modes), (b"select".to_vec(), How::Verb));
    check(Dialect::Mysql, modes, &[("select '山\\n', 'é`' from t", "select ?, ? from t")]);
}

#[test]
fn names_in_double_quotes_of_mysql_stay_where_only_names_can_stand() {
    check(
        Dialect::Mysql,
        defaults(Dialect::Mysql),
        &[
            ("delete from \"scratch\".\"orders\"", "delete from \"scratch\".\"orders\""),
            ("delete from \"orders\" where a = \"S3CRET\"", "delete from \"orders\" where a = ?"),
            (
                "select * from \"a\", \"b\" x, \"c\" where d in (\"S3CRET\", \"S3CRET\")",
                "select * from \"a\", \"b\" x, \"c\" where d in (?, ?)",
            ),
            ("insert into \"a\" values (\"S3CRET\", \"S3CRET\"), (\"S3CRET\")", "insert into \"a\" values (?, ?), (?)"),
            ("insert into t set a = \"S3CRET\", b = \"S3CRET\"", "insert into t set a = ?, b = ?"),
            ("update \"a\" set \"b\".\"c\" = \"S3CRET\"", "update \"a\" set \"b\".\"c\" = ?"),
            ("drop table if exists \"a\", \"b\"", "drop table if exists \"a\", \"b\""),
            ("select trim(both 'x' from \"S3CRET\")", "select trim(both ? from ?)"),
            (
                "select 1 from t where a = (select b from \"c\") or d = \"S3CRET\"",
                "select ? from t where a = (select b from \"c\") or d = ?",
            ),
            ("select extract(year from \"2020-01-01\"), \"S3CRET\"", "select extract(year from ?), ?"),
            ("select a from t order by \"S3CRET\", \"S3CRET\"", "select a from t order by ?, ?"),
        ],
    );
    // As a string it goes on behind the backslash, as a name it does not.
    check_verbs(Dialect::Mysql, defaults(Dialect::Mysql), &["select \"a\\\" ; delete from t -- \""]);
}

#[test]
fn code_in_strings_is_read_as_code() {
    check(
        Dialect::Postgres,
        defaults(Dialect::Postgres),
        &[
            ("do $$ begin perform 'x'; end $$", "do $$ begin perform ?; end $$"),
            (
                "do language plpgsql $a$ begin delete from t where a = 5; end $a$",
                "do language plpgsql $a$ begin delete from t where a = ?; end $a$",
            ),
            ("do 'begin delete from t where a = ''S3CRET''; end'", "do 'begin delete from t where a = ?; end'"),
            (
                "select 1; do $$ begin execute 'drop table t'; end $$; select $$S3CRET$$",
                "select ?; do $$ begin execute 'drop table t'; end $$; select ?",
            ),
            (
                "do $$ begin execute $q$delete from t where a = 'S3CRET'$q$ using 5; end $$",
                "do $$ begin execute $q$delete from t where a = ?$q$ using ?; end $$",
            ),
            (
                "create or replace function f(a text default 'S3CRET') returns int language sql as $$ select 1 from t $$",
                "create or replace function f(a text default ?) returns int language sql as $$ select ? from t $$",
            ),
            (
                "do $$ begin grant execute on function f to a; end $$",
                "do $$ begin grant execute on function f to a; end $$",
            ),
            ("do $$ begin delete from t where a = 'S3CR", "do $$ begin delete from t where a = ?"),
        ],
    );
    check_verbs(
        Dialect::Postgres,
        defaults(Dialect::Postgres),
        &[
            "do language plpython3u $$ plpy.execute('drop table t') $$",
            "do $$ begin execute 'select ''S3' || 'CRET'''; end $$",
            "do $$ declare x text := 'drop table t'; begin execute x; end $$",
            "do E'begin execute \\'drop table t\\'; end'",
            "create function f() returns void as 'drop' language plperl",
        ],
    );
    check(
        Dialect::Mysql,
        defaults(Dialect::Mysql),
        &[
            ("prepare s from 'delete from t where a = ''S3CRET'''", "prepare s from 'delete from t where a = ?'"),
            ("PREPARE `s` FROM \"delete from t where a = 'S3CRET'\"", "PREPARE `s` FROM \"delete from t where a = ?\""),
            ("prepare s from @x", "prepare s from @x"),
            ("execute immediate 'drop table t'; select 'S3CRET'", "execute immediate 'drop table t'; select ?"),
            ("execute s using @a", "execute s using @a"),
        ],
    );
    check_verbs(
        Dialect::Mysql,
        defaults(Dialect::Mysql),
        &[
            "execute immediate concat('drop table ', 't')",
            "execute immediate 'select ''S3' 'CRET'''",
            "prepare s from 'select \\'S3CRET\\''",
            "select 1 /*!99999 ' */; delete from t -- '",
            "select 1 /*! # */; delete from t\n*/",
            "select 1 /*M! /* */; delete from t */",
            "select 1 # \0 ; delete from t -- '",
            "select 1 --\u{a0}' ; delete from t -- '",
            "create function f() returns int language javascript as $$ return 'S3CRET' $$",
        ],
    );
}

#[test]
fn a_verb_is_a_word_and_never_a_literal() {
    for (sql, verb) in
        [("'S3CRET", ""), (" ; (select", "select"), ("\"S3CRET", ""), ("/*! x */", ""), ("5", ""), ("", "")]
    {
        assert_eq!(super::verb(sql.as_bytes(), Dialect::Mysql), verb.as_bytes());
    }
}

/// A literal as a session with this mode writes it, with a secret and much that would mean something elsewhere.
fn literal(dialect: Dialect, backslash: bool) -> impl Strategy<Value = String> {
    let mut inside = vec!["S3CRET", "''", "\"", ";", "--", "/*", "*/", "$$", "$a$", "`", "\n", "#", "evil", "?", "é"];
    inside.push(if backslash { "\\'" } else { "\\" });
    let text = prop::collection::vec(prop::sample::select(inside), 0..6);
    let text = text.prop_map(|inside| format!("'{}'", inside.concat()));
    let number = "[0-9]{3}18531853(\\.[0-9]{1,3})?";
    match dialect {
        Dialect::Postgres => {
            let inside =
                prop::collection::vec(prop::sample::select(vec!["S3CRET", "'", "\\", ";", "--", "\"", "/*"]), 0..6);
            let dollars = inside.prop_map(|inside| format!("$a${}$a$", inside.concat()));
            let escapes = Just("E'\\\\\\'S3CRET'\n'\\' S3CRET'".to_owned());
            prop_oneof![text, number, dollars, escapes].boxed()
        }
        Dialect::Mysql => {
            // With an escape it cannot be told from a name.
            let inside =
                prop::collection::vec(prop::sample::select(vec!["S3CRET", "\"\"", "'", ";", "-- ", "/*", "`"]), 0..6);
            let quoted = inside.prop_map(|inside| format!("\"{}\"", inside.concat()));
            prop_oneof![text, number, quoted].boxed()
        }
    }
}

/// The `n`th statement, whose names have its number.
fn statement(n: usize, dialect: Dialect, backslash: bool) -> impl Strategy<Value = String> {
    let mut templates = vec![
        "select nameA, L from nameB where nameC = L or nameD in (L, L)",
        "insert into nameA (nameB, nameC) values (L, L), (L, L)",
        "update nameA set nameB = L, nameC = L where nameD > L",
        "delete /* 'S3CRET */ from nameA where nameB like L -- 'S3CRET\n",
        "select * from (select nameA from nameB where nameC = L) nameD order by nameE",
    ];
    match dialect {
        Dialect::Mysql => templates.extend([
            "select * from \"nameA\", \"nameB\" where \"nameC\".\"nameD\" = L",
            "update `nameA` set `nameB` = L # 'S3CRET\n",
            "select /*!50000 nameA */ L from nameB",
            "execute immediate 'delete from nameA where nameB = 5'",
        ]),
        Dialect::Postgres => templates.extend([
            "select \"nameA\", $1 from \"nameB\" where \"nameC\" = L",
            "do $b$ begin delete from nameA where nameB = L; end $b$",
            "select L::text /* /* 'S3CRET */ ' */ from nameA",
        ]),
    }
    let literals = prop::collection::vec(literal(dialect, backslash), 8);
    (prop::sample::select(templates), literals).prop_map(move |(template, literals)| {
        let mut literals = literals.into_iter();
        let mut parts = template.split('L');
        let mut sql = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            sql.push_str(&literals.next().unwrap_or_default());
            sql.push_str(part);
        }
        sql.replace("name", &format!("name{n}"))
    })
}

fn statements(dialect: Dialect, backslash: bool) -> impl Strategy<Value = Vec<String>> {
    (1_usize..4).prop_flat_map(move |count| (0..count).map(|n| statement(n, dialect, backslash)).collect::<Vec<_>>())
}

fn session() -> impl Strategy<Value = (Dialect, bool, Vec<String>)> {
    let dialects = prop::sample::select(vec![Dialect::Mysql, Dialect::Postgres]);
    (dialects, any::<bool>())
        .prop_flat_map(|(dialect, backslash)| (Just(dialect), Just(backslash), statements(dialect, backslash)))
}

/// Outside of comments.
fn names(sql: &str) -> impl Iterator<Item = &str> {
    sql.match_indices("name").filter_map(|(at, _)| sql.get(at..at + 6))
}

proptest! {
    #[test]
    fn no_literal_is_left_no_name_is_lost_and_no_statement_is_swallowed((dialect, backslash, statements) in session()) {
        let modes = Modes { backslash: Some(backslash), encoding: Some(Encoding::Plain) };
        let sql = statements.join(";\n");
        let (got, how) = redact(sql.as_bytes(), dialect, modes);
        let got = String::from_utf8(got).unwrap();
        prop_assert!(!got.contains("S3CRET") && !got.contains("1853") && !got.contains("evil"), "{sql} → {got}");
        // A name in double quotes beside an escape is not known to be one; nor is what stands in code as an escape.
        let doubtful = sql.contains('\\') && (sql.contains('"') || sql.contains("do $b$"));
        prop_assert!(how == How::Literals || doubtful, "{sql} → {got}");
        if how == How::Literals {
            for name in names(&sql) {
                prop_assert!(got.contains(name), "{name} of {sql} is not in {got}");
            }
            for statement in &statements {
                let verb = statement.split(' ').next().unwrap_or_default();
                let count = statements.iter().filter(|other| other.starts_with(verb)).count();
                prop_assert!(got.matches(verb).count() >= count, "{sql} → {got}");
            }
        }
    }

    #[test]
    fn nothing_is_left_wherever_a_text_is_cut(
        (dialect, backslash, statements) in session(),
        cut in any::<prop::sample::Index>(),
        known in any::<bool>(),
    ) {
        let all = Modes { backslash: Some(backslash), encoding: Some(Encoding::Plain) };
        let known = if known { all } else { Modes::default() };
        let sql = statements.join(";");
        let cut = sql.floor_char_boundary(cut.index(sql.len() + 1));
        let (got, how) = redact(&sql.as_bytes()[..cut], dialect, known);
        let text = String::from_utf8_lossy(&got).into_owned();
        prop_assert!(!text.contains("S3CRET") && !text.contains("1853"), "{} → {text}", &sql[..cut]);
        if how == How::Literals {
            prop_assert_eq!(redact(&got, dialect, known), (got, How::Literals));
        }
    }

    #[test]
    fn any_text_ends(text in prop::collection::vec(any::<u8>(), 0..80), mysql in any::<bool>(), known in any::<bool>()) {
        let dialect = if mysql { Dialect::Mysql } else { Dialect::Postgres };
        let _redacted = redact(&text, dialect, if known { defaults(dialect) } else { Modes::default() });
    }
}
