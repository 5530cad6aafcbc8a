//! What a text can do to statements and portals that have names, by the words that its statements begin with.
//!
//! SQL shares the names of the protocol: PREPARE, DEALLOCATE and DISCARD those of statements, DECLARE and CLOSE those of
//! portals, which also end with their transaction (PostgreSQL manual, "PREPARE", "DECLARE", "Extended Query"). More is found
//! here than is there, never less: a statement begins at the start of the text, behind a semicolon, or behind a comment that
//! follows one of those. What functions do that a statement calls is not seen.

use super::names::{NAME_MAX, Name};

/// Longest word that is looked for, and one byte more.
const WORD_MAX: usize = 12;

/// What becomes of the statements that have names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Names {
    #[default]
    Keep,
    /// This one is another, or none.
    Forget(Name),
    /// All of them may be others.
    ForgetAll,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Effects {
    pub(super) statements: Names,
    /// Portals may be gone, or others.
    pub(super) portals: bool,
}

impl Effects {
    /// Of a text that nobody knows.
    pub(super) const ANY: Self = Self { statements: Names::ForgetAll, portals: true };

    pub(super) fn are_none(&self) -> bool {
        *self == Self::default()
    }

    fn forget(&mut self, name: Name) {
        self.statements = match std::mem::take(&mut self.statements) {
            Names::Keep if name != Name::Unclear => Names::Forget(name),
            Names::Forget(same) if same == name => Names::Forget(same),
            _ => Names::ForgetAll,
        };
    }
}

/// The first word of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Deallocate,
    Do,
    Prepare,
    /// DEALLOCATE PREPARE.
    DeallocatePrepare,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A statement may begin.
    Start,
    /// In the first word.
    Word,
    /// Before what a verb is about.
    Before(Verb),
    /// In what a verb is about.
    Operand(Verb),
    /// The same, between quotes.
    Quoted(Verb),
    /// Behind a quote, which is the last one or the first of two.
    Unquoted(Verb),
    Within,
}

/// Reads a text as it comes.
pub(super) struct Scanner {
    state: State,
    word: Vec<u8>,
    last: u8,
    /// There were two dashes in this line, so that its end may be that of a comment.
    dashes: bool,
    effects: Effects,
}

impl Default for Scanner {
    fn default() -> Self {
        Self { state: State::Start, word: Vec::new(), last: 0, dashes: false, effects: Effects::default() }
    }
}

impl Scanner {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some((byte, others)) = rest.split_first() {
            self.byte(*byte);
            rest = others;
            if self.state == State::Within {
                // Nothing happens before one of these, which are rare in most texts.
                let next = rest.iter().position(|byte| matches!(byte, b';' | b'-' | b'/' | b'\n' | b'\r'));
                let (passed, others) = rest.split_at(next.unwrap_or(rest.len()));
                self.last = passed.last().copied().unwrap_or(self.last);
                rest = others;
            }
        }
    }

    /// The end of the text. What comes next is another one.
    pub(super) fn finish(&mut self) -> Effects {
        self.byte(b';');
        let effects = std::mem::take(&mut self.effects);
        self.discard();
        effects
    }

    /// Forgets what has come of a text.
    pub(super) fn discard(&mut self) {
        self.word.clear();
        (self.state, self.last, self.dashes, self.effects) = (State::Start, 0, false, Effects::default());
    }

    fn byte(&mut self, byte: u8) {
        let last = std::mem::replace(&mut self.last, byte);
        match self.state {
            State::Within => {}
            State::Start if is_word(byte) => {
                self.word.clear();
                self.word.push(byte.to_ascii_lowercase());
                self.state = State::Word;
            }
            State::Start if is_blank(byte) => {}
            State::Start => self.state = State::Within,
            State::Word if is_word(byte) => self.add(byte, WORD_MAX),
            State::Word => self.verb(byte),
            State::Before(_) if is_blank(byte) => {}
            State::Before(verb) if byte == b'"' => {
                self.word.clear();
                self.state = State::Quoted(verb);
            }
            State::Before(verb) if is_word(byte) => {
                self.word.clear();
                self.word.push(byte.to_ascii_lowercase());
                self.state = State::Operand(verb);
            }
            State::Before(verb) => {
                // A comment, or what is no name.
                self.about(verb, None);
                self.state = State::Within;
            }
            State::Operand(_) if is_word(byte) => self.add(byte, NAME_MAX.saturating_add(1)),
            State::Operand(verb) => self.operand(verb, byte),
            State::Quoted(verb) if byte == b'"' => self.state = State::Unquoted(verb),
            State::Quoted(_) if self.word.len() <= NAME_MAX => self.word.push(byte),
            State::Quoted(_) => {}
            State::Unquoted(verb) => {
                let name = Name::new(&self.word);
                self.about(verb, Some(name).filter(|_| byte != b'"'));
                self.state = State::Within;
            }
        }
        match byte {
            b'-' if last == b'-' => self.dashes = true,
            b'\n' | b'\r' if std::mem::take(&mut self.dashes) => self.start(),
            b';' => self.start(),
            b'/' if last == b'*' => self.start(),
            _ => {}
        }
    }

    fn add(&mut self, byte: u8, limit: usize) {
        if self.word.len() < limit {
            self.word.push(byte.to_ascii_lowercase());
        }
    }

    /// A statement may begin here, whatever it is that seems to go on.
    fn start(&mut self) {
        match self.state {
            State::Before(verb) | State::Operand(verb) | State::Quoted(verb) | State::Unquoted(verb) => {
                self.about(verb, None);
            }
            State::Start | State::Word | State::Within => {}
        }
        self.state = State::Start;
    }

    /// The first word has ended.
    fn verb(&mut self, byte: u8) {
        let verb = match self.word.as_slice() {
            b"deallocate" => Some(Verb::Deallocate),
            b"do" => Some(Verb::Do),
            b"prepare" => Some(Verb::Prepare),
            b"discard" | b"execute" => {
                self.effects = Effects::ANY;
                None
            }
            b"abort" | b"call" | b"close" | b"commit" | b"declare" | b"end" | b"release" | b"rollback"
            | b"savepoint" => {
                self.effects.portals = true;
                None
            }
            _ => None,
        };
        self.state = verb.map_or(State::Within, State::Before);
        if let Some(verb) = verb.filter(|_| !is_blank(byte)) {
            match byte {
                b'"' => {
                    self.word.clear();
                    self.state = State::Quoted(verb);
                }
                _ => {
                    self.about(verb, None);
                    self.state = State::Within;
                }
            }
        }
    }

    /// The word behind a verb has ended.
    fn operand(&mut self, verb: Verb, byte: u8) {
        self.state = State::Within;
        match (verb, self.word.as_slice()) {
            (Verb::Deallocate, b"prepare") => self.state = State::Before(Verb::DeallocatePrepare),
            (Verb::Deallocate | Verb::DeallocatePrepare, b"all") => self.about(verb, None),
            (Verb::Prepare, b"transaction") => {
                self.effects.portals = true;
                self.effects.forget(Name::new(b"transaction"));
            }
            // Of an INSERT or a rule, which is in a line of its own.
            (Verb::Do, b"also" | b"instead" | b"nothing" | b"update") => {}
            // `U&"…"`.
            _ if byte == b'&' => self.about(verb, None),
            _ => {
                let name = Name::new(&self.word);
                self.about(verb, Some(name));
            }
        }
        if self.state == State::Before(Verb::DeallocatePrepare) && !is_blank(byte) {
            self.about(verb, None);
            self.state = State::Within;
        }
    }

    /// `name`: the statement that a verb is about, if that is clear.
    fn about(&mut self, verb: Verb, name: Option<Name>) {
        match (verb, name) {
            (Verb::Do, _) => self.effects = Effects::ANY,
            (_, Some(name)) => self.effects.forget(name),
            (_, None) => self.effects.statements = Names::ForgetAll,
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

/// As the server's scanner has it.
fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effects(text: &str) -> Effects {
        let mut scanner = Scanner::default();
        scanner.push(text.as_bytes());
        let whole = scanner.finish();
        for at in 0..=text.len() {
            let (first, second) = text.as_bytes().split_at(at);
            scanner.push(first);
            scanner.push(second);
            assert_eq!(scanner.finish(), whole, "{text} cut at {at}");
        }
        whole
    }

    fn forgets(name: &str) -> Effects {
        Effects { statements: Names::Forget(Name::new(name.as_bytes())), portals: false }
    }

    #[test]
    fn the_words_that_touch_names_are_found_wherever_a_statement_may_begin() {
        let all = Effects { statements: Names::ForgetAll, portals: false };
        let portals = Effects { statements: Names::Keep, portals: true };
        for (text, wanted) in [
            ("deallocate s1", forgets("s1")),
            ("DEALLOCATE PREPARE S1;", forgets("s1")),
            ("deallocate \"S1\"", forgets("S1")),
            ("prepare s1 as select 1", forgets("s1")),
            ("Prepare s1(int) as select $1", forgets("s1")),
            ("select 1; deallocate s1; deallocate s1", forgets("s1")),
            ("/* a /* b */ */ -- c\n deallocate s1", forgets("s1")),
            ("deallocate all", all.clone()),
            ("deallocate/* */s1", all.clone()),
            ("deallocate s1; deallocate s2", all.clone()),
            ("deallocate prepare/**/s1", all.clone()),
            ("prepare U&\"s1\" as select 1", all.clone()),
            ("deallocate \"a\"\"b\"", all.clone()),
            ("select ';'; -- ;\nprepare \u{e9} as select 1", all),
            ("prepare transaction 'x'", Effects { portals: true, ..forgets("transaction") }),
            ("commit", portals.clone()),
            ("select 1;end", portals.clone()),
            ("\tclose p", portals.clone()),
            ("call f()", portals),
            ("discard all", Effects::ANY),
            ("do $$ begin end $$", Effects::ANY),
            ("do 'begin end'", Effects::ANY),
            ("execute s1", Effects::ANY),
            ("insert into t values (1) on conflict do update set a = 1", Effects::default()),
            ("insert into t values (1) -- a\non conflict (a) -- b\ndo update set a = 1", Effects::default()),
            ("select open, close from candles", Effects::default()),
            ("select open,\n close\n from candles", Effects::default()),
            ("", Effects::default()),
        ] {
            assert_eq!(effects(text), wanted, "{text}");
        }
    }
}
