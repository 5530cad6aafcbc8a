//! A text without its literals, under one way to read it.

use super::lexer::{Kind, Lexer, Reading, Token};
use super::{Dialect, lexer};

/// Code in strings in code: so deep, and no deeper.
const DEPTH_MAX: u32 = 4;

/// It cannot be said what is code and what is a value.
pub(super) struct Unsure;

/// What of the words before decides over the next token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Before {
    #[default]
    Other,
    As,
    Comma,
    Dot,
    /// A word behind which a table or another thing is named, and never a value.
    Naming,
    /// A statement in a string is to come.
    Dynamic,
    Language,
    /// `PREPARE` of MySQL, and then its name.
    Prepare,
    Prepared,
    /// `EXECUTE` of MySQL.
    Execute,
}

/// What kind of statement it is, as far as it matters for what its strings are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Statement {
    #[default]
    Unknown,
    Create,
    Do,
    /// `CREATE FUNCTION` or `CREATE PROCEDURE`.
    Function,
    Other,
}

/// One pair of parentheses, or none.
#[derive(Default)]
struct Level {
    /// `FROM` names tables here; in a function it does not.
    selects: bool,
    /// A list of tables, in which names stand behind commas too.
    lists: bool,
}

/// Behind these words of MySQL a name stands.
const NAMING: &[&str] = &[
    "join",
    "into",
    "update",
    "table",
    "tables",
    "describe",
    "desc",
    "database",
    "schema",
    "view",
    "exists",
    "use",
    "truncate",
    "insert",
    "replace",
    "ignore",
    "index",
    "references",
];
/// These end a list of tables.
const ENDING: &[&str] = &[
    "where",
    "set",
    "values",
    "value",
    "select",
    "on",
    "using",
    "order",
    "group",
    "having",
    "limit",
    "union",
    "for",
    "with",
    "window",
    "fields",
    "columns",
    "lines",
    "partition",
    "like",
    "returning",
    "procedure",
    "as",
    "call",
    "do",
];
/// Behind a statement in a string.
const BEHIND_DYNAMIC: &[&str] = &["using", "into", "loop"];

pub(super) struct Renderer<'a> {
    reading: Reading,
    /// The body of a function or `DO` block.
    in_body: bool,
    depth: u32,
    out: Vec<u8>,
    before: Before,
    statement: Statement,
    /// From the start of the statement on.
    from_start: &'a [u8],
    level: Level,
    outer: Vec<Level>,
}

impl<'a> Renderer<'a> {
    /// `sql` without its literals.
    pub(super) fn read(sql: &'a [u8], reading: Reading) -> Result<Vec<u8>, Unsure> {
        Self::new(sql, reading, false, 0).run(sql, false)
    }

    fn new(sql: &'a [u8], reading: Reading, in_body: bool, depth: u32) -> Self {
        Self {
            reading,
            in_body,
            depth,
            out: Vec::with_capacity(sql.len()),
            before: Before::default(),
            statement: Statement::default(),
            from_start: sql,
            level: Level::default(),
            outer: Vec::new(),
        }
    }

    /// `whole`: it is known to end where it does, so nothing in it may be open then.
    fn run(mut self, sql: &'a [u8], whole: bool) -> Result<Vec<u8>, Unsure> {
        let mut lexer = Lexer::new(sql, self.reading);
        while let Some(token) = lexer.next() {
            // A line comment may end with it.
            if whole && !token.closed && token.kind != Kind::Comment {
                return Err(Unsure);
            }
            match token.kind {
                Kind::Blank => self.out.extend_from_slice(token.text),
                // MySQL ends a line comment there.
                Kind::Comment if token.text.contains(&0) => return Err(Unsure),
                Kind::Comment => self.space(),
                Kind::Executable => {
                    self.check_executable(lexer.rest())?;
                    self.space();
                }
                Kind::Word => self.word(token, &lexer)?,
                Kind::Name => {
                    self.before = if self.before == Before::Prepare { Before::Prepared } else { Before::Other };
                    self.out.extend_from_slice(token.text);
                }
                Kind::Number => self.literal(),
                Kind::Quoted | Kind::Text | Kind::Dollar => self.string(token, lexer)?,
                Kind::Other => self.other(token, lexer.rest())?,
            }
        }
        Ok(self.out)
    }

    fn space(&mut self) {
        if !self.out.ends_with(b" ") {
            self.out.push(b' ');
        }
    }

    fn literal(&mut self) {
        if !self.out.ends_with(b"?") {
            self.out.push(b'?');
        }
        self.before = Before::Other;
    }

    /// What a comment of MySQL holds is run by some servers and not by others. It must end at the same place for both.
    fn check_executable(&self, behind: &[u8]) -> Result<(), Unsure> {
        let Some(end) = lexer::find(behind, b"*/") else { return Ok(()) };
        let length = behind.len().saturating_sub(end.len()).saturating_sub(2);
        let inside = behind.get(..length).unwrap_or_default();
        let opens = |token: Token<'_>| !token.closed || token.text.starts_with(b"/*");
        if Lexer::new(inside, self.reading).any(opens) { Err(Unsure) } else { Ok(()) }
    }

    fn other(&mut self, token: Token<'_>, behind: &'a [u8]) -> Result<(), Unsure> {
        // `EXECUTE IMMEDIATE @x` runs what a variable holds.
        let runs_code = self.before == Before::Dynamic && token.text != b"@";
        // The character may be a blank of Latin-1, and this a comment of MySQL.
        let may_be_comment = token.text == b"-" && matches!(behind, [b'-', 0x80..=0xff, ..]);
        if runs_code || may_be_comment && self.reading.dialect == Dialect::Mysql {
            return Err(Unsure);
        }
        self.before = match token.text {
            b"." => Before::Dot,
            b"," => Before::Comma,
            _ => Before::Other,
        };
        match token.text {
            b"(" => self.outer.push(std::mem::take(&mut self.level)),
            b")" => self.level = self.outer.pop().unwrap_or_default(),
            b";" => {
                self.statement = Statement::Unknown;
                self.from_start = behind;
                self.level = Level::default();
                self.outer.clear();
            }
            _ => {}
        }
        self.out.extend_from_slice(token.text);
        Ok(())
    }

    fn word(&mut self, token: Token<'_>, lexer: &Lexer<'a>) -> Result<(), Unsure> {
        self.before = match self.reading.dialect {
            Dialect::Mysql => self.word_of_mysql(token)?,
            Dialect::Postgres => self.word_of_postgres(token, *lexer)?,
        };
        self.out.extend_from_slice(token.text);
        Ok(())
    }

    fn word_of_postgres(&mut self, token: Token<'_>, mut lexer: Lexer<'a>) -> Result<Before, Unsure> {
        self.statement = match self.statement {
            Statement::Unknown if token.is("do") => Statement::Do,
            Statement::Unknown if token.is("create") => Statement::Create,
            Statement::Unknown => Statement::Other,
            Statement::Create if token.is_one_of(&["function", "procedure"]) => Statement::Function,
            same => same,
        };
        if self.in_body && token.is("execute") {
            let next = lexer.significant();
            return match next.map(|next| next.kind) {
                Some(Kind::Text | Kind::Dollar) => Ok(Before::Dynamic),
                // A grant, or a trigger that is made.
                Some(Kind::Word) if next.is_some_and(|next| next.is_one_of(&["on", "function", "procedure"])) => {
                    Ok(Before::Other)
                }
                _ => Err(Unsure),
            };
        }
        Ok(match () {
            () if token.is("as") => Before::As,
            () if token.is("language") => Before::Language,
            () => Before::Other,
        })
    }

    fn word_of_mysql(&mut self, token: Token<'_>) -> Result<Before, Unsure> {
        match self.before {
            Before::Dynamic => return Err(Unsure),
            Before::Prepare => return Ok(Before::Prepared),
            Before::Prepared if token.is("from") => return Ok(Before::Dynamic),
            Before::Execute if token.is("immediate") => return Ok(Before::Dynamic),
            _ => {}
        }
        // MySQL 9 has strings in dollars, of which older ones know nothing.
        if token.text.starts_with(b"$") && token.text.iter().skip(1).any(|byte| *byte == b'$') {
            return Err(Unsure);
        }
        let level = &mut self.level;
        if token.is_one_of(&["select", "delete", "show"]) {
            (level.selects, level.lists) = (true, false);
        } else if token.is_one_of(ENDING) {
            level.lists = false;
        } else if token.is_one_of(NAMING) || level.selects && token.is("from") {
            level.lists = true;
            return Ok(Before::Naming);
        }
        Ok(match () {
            () if token.is("prepare") => Before::Prepare,
            () if token.is("execute") => Before::Execute,
            () => Before::Other,
        })
    }

    fn string(&mut self, token: Token<'a>, lexer: Lexer<'a>) -> Result<(), Unsure> {
        let is_body = match (self.statement, self.before) {
            _ if token.kind == Kind::Quoted => false,
            (Statement::Do, before) => before != Before::Language,
            (Statement::Function, before) => before == Before::As,
            _ => false,
        };
        if is_body {
            self.check_language()?;
            return self.code(token, true);
        }
        if self.before == Before::Dynamic {
            let mut lexer = lexer;
            let ends = lexer.significant().is_none_or(|next| next.text == b";" || next.is_one_of(BEHIND_DYNAMIC));
            return if ends { self.code(token, false) } else { Err(Unsure) };
        }
        if token.kind == Kind::Quoted && self.is_name(lexer) {
            self.out.extend_from_slice(token.text);
            self.before = Before::Other;
            return Ok(());
        }
        self.literal();
        Ok(())
    }

    /// Whether `"…"` of MySQL stands where only a name can stand.
    fn is_name(&self, mut lexer: Lexer<'_>) -> bool {
        let in_list = self.before == Before::Comma && self.level.lists;
        matches!(self.before, Before::Dot | Before::Naming)
            || in_list
            || lexer.significant().is_some_and(|next| next.text == b".")
    }

    /// Whether the body of this statement is in a language that is read like SQL.
    fn check_language(&self) -> Result<(), Unsure> {
        let mut lexer = Lexer::new(self.from_start, self.reading);
        while let Some(token) = lexer.significant() {
            if token.kind == Kind::Word && token.is("language") {
                let language = lexer.significant().map(|token| token.text.to_ascii_lowercase()).unwrap_or_default();
                let language =
                    language.strip_prefix(b"'").and_then(|name| name.strip_suffix(b"'")).unwrap_or(&language);
                return if matches!(language, b"plpgsql" | b"sql") { Ok(()) } else { Err(Unsure) };
            }
            if token.text == b";" {
                break;
            }
        }
        // That of `DO`, if it names no other; a function must name one.
        if self.statement == Statement::Do { Ok(()) } else { Err(Unsure) }
    }

    /// A string that is code, with its own literals taken out.
    fn code(&mut self, token: Token<'a>, is_body: bool) -> Result<(), Unsure> {
        if self.depth >= DEPTH_MAX {
            return Err(Unsure);
        }
        let quote: &[u8] = match token.kind {
            Kind::Quoted => b"\"",
            Kind::Text => b"'",
            _ => {
                let tag = token.text.iter().skip(1).position(|byte| *byte == b'$').ok_or(Unsure)?;
                token.text.get(..tag.saturating_add(2)).ok_or(Unsure)?
            }
        };
        let inside = lexer::find(token.text, quote).ok_or(Unsure)?;
        let before = token.text.len().saturating_sub(inside.len());
        let inside = match token.closed {
            true => inside.strip_suffix(quote).ok_or(Unsure)?,
            false => inside,
        };
        self.out.extend_from_slice(token.text.get(..before).unwrap_or_default());
        if token.kind == Kind::Dollar {
            let inner = Renderer::new(inside, self.reading, is_body, self.depth.saturating_add(1));
            self.out.append(&mut inner.run(inside, token.closed)?);
        } else {
            let text = unescaped(inside, quote)?;
            let inner = Renderer::new(&text, self.reading, is_body, self.depth.saturating_add(1));
            for byte in inner.run(&text, token.closed)? {
                self.out.push(byte);
                if quote == [byte] {
                    self.out.push(byte);
                }
            }
        }
        if token.closed {
            self.out.extend_from_slice(quote);
        }
        self.before = Before::Other;
        Ok(())
    }
}

/// What a string without escapes holds.
fn unescaped(mut inside: &[u8], quote: &[u8]) -> Result<Vec<u8>, Unsure> {
    let mut text = Vec::with_capacity(inside.len());
    while let Some((first, behind)) = inside.split_first() {
        inside = behind;
        match first {
            b'\\' => return Err(Unsure),
            // Alone it ends a string that goes on behind a line end.
            _ if quote == [*first] => inside = behind.strip_prefix(quote).ok_or(Unsure)?,
            _ => {}
        }
        text.push(*first);
    }
    Ok(text)
}
