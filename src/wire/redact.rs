//! Takes the literals out of SQL, for logs that must not hold data: strings, numbers, bit and hex strings, dollar-quoted
//! bodies become `?`, comments a space; words, operators, quoted names and parameters (`$1`, `?`, `:x`) stay.
//!
//! A tokenizer and not a parser (PostgreSQL manual, "Lexical Structure"; MySQL manual, "Literal Values", "Comment Syntax").
//! In doubt, and where a text was cut inside of a literal, it takes out more. It assumes the servers' defaults: with
//! `standard_conforming_strings = off` or `NO_BACKSLASH_ESCAPES` a backslash before a quote means something else.

/// Whose SQL it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Mysql,
    Postgres,
}

/// `sql` without its literals.
pub fn literals(sql: &str, dialect: Dialect) -> String {
    let mut out = String::with_capacity(sql.len());
    let mut rest = sql;
    // Whether the last character belongs to a word, so that a digit goes on with it.
    let mut in_word = false;
    while let Some(c) = rest.chars().next() {
        let (skipped, put) = token(rest, c, in_word, dialect);
        match put {
            Put::Literal if out.ends_with('?') => {}
            Put::Literal => out.push('?'),
            Put::Space if out.ends_with(' ') => {}
            Put::Space => out.push(' '),
            Put::Same => out.push_str(rest.get(..skipped).unwrap_or_default()),
        }
        in_word = put == Put::Same && (is_word(c) || (in_word && c == '$')) && skipped == c.len_utf8();
        // `token` gives lengths on character boundaries of what is there.
        rest = rest.get(skipped..).unwrap_or_default();
    }
    out
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Put {
    Literal,
    Same,
    Space,
}

/// Length of the next token, and what becomes of it.
fn token(rest: &str, c: char, in_word: bool, dialect: Dialect) -> (usize, Put) {
    let mysql = dialect == Dialect::Mysql;
    match c {
        '\'' => (string(rest, '\'', mysql), Put::Literal),
        '"' if mysql => (string(rest, '"', true), Put::Literal),
        '"' => (string(rest, '"', false), Put::Same),
        '`' if mysql => (string(rest, '`', false), Put::Same),
        '-' if is_line_comment(rest, mysql) => (line(rest), Put::Space),
        '#' if mysql => (line(rest), Put::Space),
        // The content of these is run.
        '/' if mysql && rest.starts_with("/*!") => (executable(rest), Put::Space),
        '*' if mysql && rest.starts_with("*/") => (2, Put::Space),
        '/' if rest.starts_with("/*") => (block(rest, !mysql), Put::Space),
        '$' if !mysql && !in_word => dollar(rest),
        '.' if !in_word && rest.chars().nth(1).is_some_and(|next| next.is_ascii_digit()) => {
            (number(rest), Put::Literal)
        }
        _ if in_word => (c.len_utf8(), Put::Same),
        '0'..='9' => (number(rest), Put::Literal),
        // E'…', B'…', X'…', N'…', U&'…' and `_utf8'…'`: with their quote, because only E has escapes.
        'e' | 'E' if !mysql && rest.get(1..).is_some_and(|rest| rest.starts_with('\'')) => {
            (rest.get(1..).map_or(1, |rest| string(rest, '\'', true).saturating_add(1)), Put::Literal)
        }
        'b' | 'B' | 'x' | 'X' | 'n' | 'N' if rest.get(1..).is_some_and(|rest| rest.starts_with('\'')) => {
            (rest.get(1..).map_or(1, |rest| string(rest, '\'', mysql).saturating_add(1)), Put::Literal)
        }
        _ => (c.len_utf8(), Put::Same),
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The length of what is quoted at the start of `rest`; all of it if there is no end.
fn string(rest: &str, quote: char, backslash: bool) -> usize {
    let mut characters = rest.char_indices().skip(1).peekable();
    while let Some((at, c)) = characters.next() {
        if backslash && c == '\\' {
            characters.next();
        } else if c == quote {
            match characters.peek() {
                Some((_, next)) if *next == quote => drop(characters.next()),
                _ => return at.saturating_add(c.len_utf8()),
            }
        }
    }
    rest.len()
}

/// A number with all that clings to it: `1`, `1.5e-3`, `0xff`, `1_000`.
fn number(rest: &str) -> usize {
    let mut previous = ' ';
    for (at, c) in rest.char_indices() {
        let exponent = matches!(previous, 'e' | 'E') && matches!(c, '+' | '-') && !rest.starts_with("0x");
        if !(is_word(c) || c == '.' || exponent) {
            return at;
        }
        previous = c;
    }
    rest.len()
}

/// `--`; in MySQL only with a space or control character behind it.
fn is_line_comment(rest: &str, mysql: bool) -> bool {
    rest.strip_prefix("--")
        .is_some_and(|behind| !mysql || behind.chars().next().is_none_or(|c| c.is_whitespace() || c.is_control()))
}

fn line(rest: &str) -> usize {
    rest.find(['\n', '\r']).unwrap_or(rest.len())
}

/// The start of a comment of MySQL that is run: `/*!` and a version.
fn executable(rest: &str) -> usize {
    rest.char_indices().skip(3).find(|(_, c)| !c.is_ascii_digit()).map_or(rest.len(), |(at, _)| at)
}

fn block(rest: &str, nested: bool) -> usize {
    let mut depth = 0_usize;
    let mut at = 0_usize;
    while let Some(here) = rest.get(at..).filter(|here| !here.is_empty()) {
        let step = if here.starts_with("/*") {
            depth = if nested || depth == 0 { depth.saturating_add(1) } else { depth };
            2
        } else if here.starts_with("*/") {
            depth = depth.saturating_sub(1);
            2
        } else {
            here.chars().next().map_or(1, char::len_utf8)
        };
        at = at.saturating_add(step);
        if depth == 0 {
            break;
        }
    }
    at
}

/// `$1` is a parameter, `$tag$…$tag$` a string, anything else an operator.
fn dollar(rest: &str) -> (usize, Put) {
    let inside = rest.get(1..).unwrap_or_default();
    let Some(end) = inside.find(|c: char| !is_word(c)) else {
        // `$1` at the end, or the start of a tag where the text was cut.
        let parameter = inside.bytes().all(|byte| byte.is_ascii_digit());
        return (rest.len(), if parameter { Put::Same } else { Put::Literal });
    };
    let tag = inside.get(..end).unwrap_or_default();
    if tag.starts_with(|c: char| c.is_ascii_digit()) || !inside.get(end..).is_some_and(|rest| rest.starts_with('$')) {
        return (end.saturating_add(1), Put::Same);
    }
    let quote = end.saturating_add(2);
    let (opening, body) = rest.split_at_checked(quote).unwrap_or((rest, ""));
    match body.find(opening) {
        Some(at) => (at.saturating_add(quote).saturating_add(quote), Put::Literal),
        None => (rest.len(), Put::Literal),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn literals_of_postgresql_go_and_the_rest_stays() {
        for (sql, expected) in [
            ("select * from t1 where a_2 = 17 and b = 'x''y'", "select * from t1 where a_2 = ? and b = ?"),
            ("select -1.5e-3, .5, 0xff, 1_000, 1e10", "select -?, ?, ?, ?, ?"),
            ("select E'a\\'b', B'01', x'ff', N'n', U&'\\0041'", "select ?, ?, ?, ?, U&?"),
            ("select $1, $2::int", "select $1, $2::int"),
            ("do $$ begin perform 'x'; end $$", "do ?"),
            ("select $tag$ $$ ' $tag$ || $q$x$q$", "select ? || ?"),
            ("select \"col 1\", \"a\"\"b\"", "select \"col 1\", \"a\"\"b\""),
            ("select 1 -- secret 5\n, 2", "select ?  \n, ?"),
            ("select /* a /* b */ 'c' */ 3", "select   ?"),
            ("select 'cut", "select ?"),
            ("select $x$cut", "select ?"),
            ("select a$1 from b", "select a$1 from b"),
            ("insert into t values (1,2,'a'),(3,4,'b')", "insert into t values (?,?,?),(?,?,?)"),
            ("select '片山', 片山1 from t", "select ?, 片山1 from t"),
            ("select 1::int4, 'x'::text, '{1,2}'::int[]", "select ?::int4, ?::text, ?::int[]"),
            ("select 'a'\n'b'", "select ?\n?"),
        ] {
            let got = literals(sql, Dialect::Postgres);
            let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert_eq!(squeeze(&got), squeeze(expected), "{sql}");
        }
    }

    #[test]
    fn literals_of_mysql_go_and_the_rest_stays() {
        for (sql, expected) in [
            ("select \"a\\\"b\", 'c\\'d', `e f` from t", "select ?, ?, `e f` from t"),
            ("select 5--3 from t -- gone 'x'", "select ?--? from t"),
            ("select 1 # gone 2\n, _utf8mb4'x', 0xff", "select ? , _utf8mb4?, ?"),
            ("select /*!50000 'S3CRET', 7 */ 1", "select ?, ? ?"),
            ("select /* 'a' /* */ 1", "select ?"),
            ("select x'4d', b'01', N'n'", "select ?, ?, ?"),
        ] {
            let got = literals(sql, Dialect::Mysql);
            assert_eq!(got.split_whitespace().collect::<Vec<_>>().join(" "), expected, "{sql}");
        }
    }

    /// A piece of SQL; the secret stands only inside of literals.
    fn piece() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("'S3CRET'".to_owned()),
            Just("'it''s S3CRET'".to_owned()),
            Just("E'\\\\\\' S3CRET'".to_owned()),
            Just("$$S3CRET '$$".to_owned()),
            Just("$a$ $$S3CRET$$ \" $a$".to_owned()),
            Just("x'S3CRET'".to_owned()),
            Just("1853CRET".replace("CRET", "")),
            Just("-- S3CRET '\n".to_owned()),
            Just("/* S3CRET ' /* $$ */ */".to_owned()),
            Just("\"a ' b\"".to_owned()),
            "[a-z]{1,4} ?",
            Just(" , ( ) = :: || $1 ".to_owned()),
        ]
    }

    proptest! {
        #[test]
        fn no_literal_survives_wherever_the_text_is_cut(
            pieces in prop::collection::vec(piece(), 0..12),
            cut in any::<prop::sample::Index>(),
        ) {
            let sql = pieces.join(" ");
            let cut = sql.floor_char_boundary(cut.index(sql.len() + 1));
            for sql in [&sql[..cut], &sql] {
                let got = literals(sql, Dialect::Postgres);
                prop_assert!(!got.contains("S3CRET") && !got.contains("1853"), "{sql} → {got}");
                prop_assert_eq!(literals(&got, Dialect::Postgres), got);
            }
        }

        #[test]
        fn any_text_ends(text in "\\PC{0,80}", mysql in any::<bool>()) {
            let dialect = if mysql { Dialect::Mysql } else { Dialect::Postgres };
            let _redacted = literals(&text, dialect);
        }
    }
}
