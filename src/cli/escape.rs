//! Text of others on its way to a terminal, a shell or a reader of JSON: of a relay, of AWS, of a configuration file.

/// Whether a terminal shows `c` and does nothing else with it. Not so: control characters (the C1 ones begin sequences like
/// the escape character does), marks that change the direction of what follows, and characters that nobody sees
/// (Unicode Standard Annex 9 and 14, category Cf).
fn is_shown(c: char) -> bool {
    !c.is_control()
        && !matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Text for a terminal in which only its lines are kept.
pub(super) fn lines(text: &str) -> String {
    escaped(text, |c| c == '\n')
}

/// Lines of which every one but the first is indented, so that none passes for one of our own.
pub(super) fn indented(text: &str) -> String {
    lines(text).replace('\n', "\n  ")
}

/// Text within one line.
#[cfg(feature = "launcher")]
pub(super) fn line(text: &str) -> String {
    escaped(text, |_| false)
}

fn escaped(text: &str, kept: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if is_shown(c) || kept(c) => out.push(c),
            '\n' | '\r' | '\t' => out.extend(c.escape_default()),
            c => out.extend(c.escape_unicode()),
        }
    }
    out
}

/// A JSON text with the same value, which a terminal shows as it is. What is not shown can only be inside strings there:
/// serde_json writes no white space and escapes control characters below the space.
#[cfg(feature = "launcher")]
pub(super) fn json(value: &serde_json::Value) -> String {
    let mut out = String::new();
    for c in value.to_string().chars() {
        if is_shown(c) {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            out.push_str(&format!("\\u{unit:04x}"));
        }
    }
    out
}

/// One word of a command line for a POSIX shell (Shell Command Language, 2.2.2). `None`: it has characters that could not be
/// copied from a terminal.
#[cfg(feature = "launcher")]
pub(super) fn shell(word: &str) -> Option<String> {
    if !word.chars().all(is_shown) {
        return None;
    }
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "%+,-./:=@_".contains(c);
    Some(match word {
        word if !word.is_empty() && word.chars().all(is_plain) => word.to_owned(),
        // In double quotes an interactive shell would still replace `!`.
        word => format!("'{}'", word.replace('\'', r"'\''")),
    })
}

#[cfg(all(test, feature = "launcher"))]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json as value};

    use super::*;

    /// Every character that a terminal takes for something else than itself is as likely as all others together.
    fn hostile() -> impl Strategy<Value = String> {
        let odd = prop::sample::select(
            "\u{1b}\u{9b}\u{9d}\u{7}\r\n\t\0\u{7f}\u{202e}\u{2066}\u{200f}\u{2028}\u{feff}\u{e0041}'\"\\`$!;&| -=#~*?(){}<>^"
                .chars()
                .collect::<Vec<_>>(),
        );
        prop::collection::vec(prop_oneof![odd, any::<char>()], 0..24).prop_map(|chars| chars.into_iter().collect())
    }

    #[test]
    fn what_is_escaped_can_be_read() {
        assert_eq!(line("a\u{1b}]0;x\u{7}\n\tb"), "a\\u{1b}]0;x\\u{7}\\n\\tb");
        assert_eq!(line("\u{9b}31m \u{202e}cba"), "\\u{9b}31m \\u{202e}cba");
        assert_eq!(lines("a\nb\r"), "a\nb\\r");
        assert_eq!(indented("a\nHint: b"), "a\n  Hint: b");
        assert_eq!(line("näh · 数 👩\u{200d}🔬"), "näh · 数 👩\u{200d}🔬");
        assert_eq!(json(&value!({"a": "\u{9b}\u{1b}\u{e0041}é"})), r#"{"a":"\u009b\u001b\udb40\udc41é"}"#);
    }

    #[test]
    fn plain_words_stay_as_they_are_and_others_are_quoted() {
        assert_eq!(shell("db_read").as_deref(), Some("db_read"));
        assert_eq!(shell("").as_deref(), Some("''"));
        assert_eq!(shell("orders; touch x").as_deref(), Some("'orders; touch x'"));
        assert_eq!(shell("it's").as_deref(), Some(r"'it'\''s'"));
        assert_eq!(shell("a\u{202e}b"), None);
    }

    proptest! {
        #[test]
        fn nothing_that_a_terminal_acts_on_is_left(text in hostile()) {
            prop_assert!(line(&text).chars().all(is_shown));
            prop_assert!(lines(&text).chars().all(|c| c == '\n' || is_shown(c)));
            let document = value!({"text": &text, &text: [&text]});
            let shown = json(&document);
            prop_assert!(shown.chars().all(is_shown));
            prop_assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), document);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_shell_gives_every_word_back(words in prop::collection::vec(hostile(), 1..12)) {
            let (words, quoted): (Vec<_>, Vec<_>) =
                words.into_iter().filter_map(|word| shell(&word).map(|quoted| (word, quoted))).unzip();
            let script = format!(r#"set -- {}; for word; do printf '%s\0' "$word"; done"#, quoted.join(" "));
            let out = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            let seen = String::from_utf8(out.stdout).unwrap();
            let seen: Vec<&str> = seen.split_terminator('\0').collect();
            prop_assert_eq!(seen, words, "{}", script);
        }
    }
}
