//! Who may import whom: rules over the source text, which no lint knows. Protocol code is a crate, so the compiler keeps its rules.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Root modules and the root modules they may name besides themselves. `cli` is not here: it may name all of them.
const IMPORTS: &[(&str, &[&str])] = &[
    ("api", &["types"]),
    ("aws", &["api", "network", "types"]),
    ("config", &["api", "relay", "tls", "types"]),
    ("credential", &["api", "tls", "types"]),
    ("http_client", &[]),
    ("limits", &[]),
    ("link", &["types"]),
    ("network", &["tls"]),
    ("relay", &["api", "credential", "http_client", "limits", "link", "tls", "types"]),
    ("shutdown", &[]),
    ("telemetry", &[]),
    ("tls", &["types"]),
    ("tunnel", &["api", "link", "network", "types"]),
    ("types", &[]),
];

/// Crates of the AWS SDK, by the start of their names, and the modules that may name them.
const SDK: &[&str] = &["aws_config", "aws_credential_types", "aws_runtime", "aws_sdk_", "aws_sigv4", "aws_smithy_"];
const SDK_HOMES: &[&str] = &["aws", "credential"];

#[test]
fn modules_import_only_what_the_table_allows() {
    let found: Vec<String> = sources().iter().flat_map(|(path, text)| violations(path, text)).collect();
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn what_the_table_allows_is_needed() {
    assert_eq!(unused(IMPORTS, &sources()), [""; 0]);
}

/// At every level: modules that stand beside each other do not import each other in a circle. What a parent defines itself is
/// not looked at, nor are tests.
#[test]
fn no_modules_import_each_other_in_a_circle() {
    for folder in ["src", "crates/wire/src"] {
        assert_eq!(circles(&sources_below(folder)), [""; 0], "{folder}");
    }
}

/// Every file below `src` by its path there.
fn sources() -> Vec<(String, String)> {
    sources_below("src")
}

fn sources_below(folder: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    assert!(files.len() > 20, "only {} source files found", files.len());
    let read = |file: PathBuf| {
        let path = file.strip_prefix(&root).expect("files are below src").display().to_string();
        (path, fs::read_to_string(&file).expect("source files are readable"))
    };
    files.into_iter().map(read).collect()
}

/// What the table allows and nothing does.
fn unused(table: &[(&str, &[&str])], sources: &[(String, String)]) -> Vec<String> {
    let mut named = BTreeSet::new();
    for (path, text) in sources {
        let module = module_of(path);
        named.extend(code(text).lines().flat_map(|line| imports(path, line)).map(|name| (module, name.to_owned())));
    }
    let rows = table.iter().flat_map(|(module, may)| may.iter().map(move |name| (*module, (*name).to_owned())));
    let idle = rows.filter(|row| !named.contains(row));
    idle.map(|(module, name)| format!("`{module}` does not import `{name}`: take it out of IMPORTS")).collect()
}

/// Which modules, of all that stand beside each other, import each other in a circle: one sentence for each circle.
fn circles(sources: &[(String, String)]) -> Vec<String> {
    let modules: BTreeMap<Vec<&str>, String> = sources
        .iter()
        .map(|(path, text)| (module_path(path), text))
        .filter(|(module, _)| !module.iter().any(|name| name.contains("test") || *name == "world"))
        .map(|(module, text)| (module, code(text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default())))
        .collect();
    // From the folder and a module in it to a module beside that one.
    let mut imports: BTreeMap<Vec<&str>, BTreeMap<&str, BTreeSet<&str>>> = BTreeMap::new();
    for (module, text) in &modules {
        for named in named_paths(module, text) {
            let known = longest_known(&modules, &named);
            let shared = module.iter().zip(known).take_while(|(a, b)| a == b).count();
            if let (Some(from), Some(to)) = (module.get(shared), known.get(shared)) {
                imports.entry(module[..shared].to_vec()).or_default().entry(from).or_default().insert(to);
            }
        }
    }
    let mut found = Vec::new();
    for (folder, graph) in &imports {
        let reach: BTreeMap<&str, BTreeSet<&str>> = graph.keys().map(|name| (*name, reachable(graph, name))).collect();
        let circle = |name: &str| -> Vec<&str> {
            let back = |other: &&&str| reach[name].contains(**other) && reach[**other].contains(name);
            reach.keys().filter(back).copied().collect()
        };
        let all: BTreeSet<Vec<&str>> = graph.keys().map(|name| circle(name)).filter(|names| names.len() > 1).collect();
        let folder = if folder.is_empty() { "the root".to_owned() } else { folder.join("::") };
        found.extend(all.iter().map(|names| format!("{folder}: {} import each other", names.join(", "))));
    }
    found
}

/// All that can be come to from `start` by imports.
fn reachable<'t>(graph: &BTreeMap<&'t str, BTreeSet<&'t str>>, start: &str) -> BTreeSet<&'t str> {
    let (mut found, mut next) = (BTreeSet::new(), vec![start]);
    while let Some(name) = next.pop() {
        for other in graph.get(name).into_iter().flatten() {
            if found.insert(*other) {
                next.push(other);
            }
        }
    }
    found
}

/// `relay/conn/driver.rs` is `relay::conn::driver`.
fn module_path(path: &str) -> Vec<&str> {
    let path = path.trim_end_matches(".rs");
    path.split('/').filter(|name| !["mod", "lib", "main"].contains(name)).collect()
}

/// The module that a path leads to or into; the root, if nothing of it is a module.
fn longest_known<'p, 't>(modules: &BTreeMap<Vec<&str>, String>, path: &'p [&'t str]) -> &'p [&'t str] {
    let length = (0..=path.len()).rev().find(|length| modules.contains_key(&path[..*length]));
    &path[..length.unwrap_or_default()]
}

/// The paths that code of `module` names, from the root on.
fn named_paths<'t>(module: &[&'t str], text: &'t str) -> Vec<Vec<&'t str>> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("::") {
        let head = &text[..at];
        let word = &head[head.rfind(|c| !is_ident(c)).map_or(0, |at| at + 1)..];
        let is_first = !head[..head.len() - word.len()].ends_with("::");
        let mut path = match word {
            "crate" if is_first => Vec::new(),
            "super" if is_first => module[..module.len().saturating_sub(1)].to_vec(),
            _ => continue,
        };
        let mut rest = &text[at + 2..];
        while let Some(more) = rest.strip_prefix("super::") {
            (_, rest) = (path.pop(), more);
        }
        loop {
            let name = &rest[..rest.find(|c| !is_ident(c)).unwrap_or(rest.len())];
            path.extend((!name.is_empty()).then_some(name));
            match rest[name.len()..].strip_prefix("::") {
                Some(more) => rest = more,
                None => break,
            }
        }
        match rest.strip_prefix('{').and_then(|list| list.split_once('}')) {
            Some((list, _)) => found.extend(list.split(',').map(|item| {
                let item = item.trim();
                let name = &item[..item.find(|c| !is_ident(c)).unwrap_or(item.len())];
                path.iter().copied().chain([name]).collect()
            })),
            None => found.push(path),
        }
    }
    found
}

/// The root module of the file at `path` below `src`.
fn module_of(path: &str) -> &str {
    path.split('/').next().unwrap_or_default().trim_end_matches(".rs")
}

/// The root modules that a line of the file at `path` names.
fn imports<'t>(path: &str, line: &'t str) -> Vec<&'t str> {
    // So many `super::` lead from this file to the crate's root.
    let depth = path.trim_end_matches("/mod.rs").split('/').count();
    let mut named = after_each(line, "crate::");
    named.extend(after_each(line, &"super::".repeat(depth)));
    named
}

#[test]
fn every_root_module_stands_in_the_table() {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).expect("lib.rs is readable");
    for line in code(&lib).lines() {
        let Some(name) = line.trim().trim_start_matches("pub ").strip_prefix("mod ") else { continue };
        let name = name.trim_end_matches(';');
        assert!(name == "cli" || allowed(name).is_some(), "src/lib.rs: module {name} has no row in IMPORTS");
    }
}

/// What `text`, the file at `path` below `src`, does against the rules: `path:line: sentence`.
fn violations(path: &str, text: &str) -> Vec<String> {
    let module = module_of(path);
    let mut found = Vec::new();
    for (line, number) in code(text).lines().zip(1..) {
        let mut report = |what: String| found.push(format!("src/{path}:{number}: {what}"));
        if line.contains("use crate::{") {
            report("several modules in one `use crate::{…}`; write one `use` line for each".to_owned());
        }
        for name in imports(path, line) {
            let fine = match (module, allowed(module)) {
                ("lib" | "main", _) => false,
                (_, None) => true,
                (_, Some(may)) => name == module || may.contains(&name) || allowed(name).is_none() && name != "cli",
            };
            if !fine {
                report(format!("`{module}` must not import `{name}`"));
            }
        }
        for name in SDK.iter().filter(|name| has_word(line, name)) {
            if !SDK_HOMES.contains(&module) {
                report(format!("`{name}…` belongs to the AWS SDK, which only {} may name", SDK_HOMES.join(" and ")));
            }
        }
        if module == "main" && line.contains("bastion::") && !line.contains("bastion::cli::") {
            report("`main` calls `bastion::cli` only".to_owned());
        }
    }
    found
}

fn allowed(module: &str) -> Option<&'static [&'static str]> {
    IMPORTS.iter().find(|(name, _)| *name == module).map(|(_, may)| *may)
}

/// The identifiers that follow `prefix` as whole words: `after_each("crate::tls::Roots", "crate::")` is `["tls"]`.
fn after_each<'t>(line: &'t str, prefix: &str) -> Vec<&'t str> {
    line.match_indices(prefix)
        .filter(|(at, _)| !line[..*at].ends_with(is_ident))
        .map(|(at, _)| &line[at + prefix.len()..])
        .map(|rest| &rest[..rest.find(|c| !is_ident(c)).unwrap_or(rest.len())])
        .filter(|name| !name.is_empty())
        .collect()
}

/// Whether `word` begins where no identifier runs on into it. A word that ends in a letter must end there too, unless
/// it is a prefix like `aws_sdk_`.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let starts = !word.starts_with(is_ident) || !line[..at].ends_with(is_ident);
        let ends = !word.ends_with(|c: char| c.is_alphanumeric()) || !line[at + word.len()..].starts_with(is_ident);
        starts && ends
    })
}

fn is_ident(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn rust_files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("source folders are readable") {
        let path = entry.expect("source folders are readable").path();
        if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// `text` with comments and the insides of string and character literals blanked; lines keep their numbers.
fn code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => quoted(rest),
            '\'' => character(rest),
            'r' if !out.ends_with(is_ident) || out.ends_with('b') => raw_string(rest),
            _ => 0,
        };
        if skipped == 0 {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            out.extend(rest[..skipped].chars().filter(|c| *c == '\n'));
            rest = &rest[skipped..];
        }
    }
    out
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let (step, change) = match rest {
            _ if rest.starts_with("/*") => (2, 1),
            _ if rest.starts_with("*/") => (2, -1),
            _ => (rest.chars().next().map_or(1, char::len_utf8), 0),
        };
        at += step;
        depth += change;
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at + 1,
            _ => escaped = c == '\\' && !escaped,
        }
    }
    text.len()
}

/// The length of the character literal at the start of `text`; 0 for a lifetime.
fn character(text: &str) -> usize {
    let mut inside = text.chars().skip(1);
    match (inside.next(), inside.next()) {
        (Some('\\'), Some(escaped)) => {
            let start = 2 + escaped.len_utf8();
            text.get(start..).and_then(|rest| rest.find('\'')).map_or(0, |end| start + end + 1)
        }
        (Some(c), Some('\'')) => 2 + c.len_utf8(),
        _ => 0,
    }
}

/// The length of the raw string at the start of `text`; 0 if it is something else that begins with an `r`.
fn raw_string(text: &str) -> usize {
    let hashes = text[1..].chars().take_while(|c| *c == '#').count();
    if !text[1 + hashes..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let start = hashes + 2;
    text[start..].find(&end).map_or(text.len(), |at| start + at + end.len())
}

#[cfg(test)]
mod planted {
    use super::{circles, code, unused, violations};

    /// The sentences about one planted line, without their place.
    fn about(path: &str, line: &str) -> Vec<String> {
        violations(path, line)
            .into_iter()
            .map(|text| text.split_once(":1: ").expect("the line is named").1.to_owned())
            .collect()
    }

    #[test]
    fn an_upward_import_is_found() {
        assert_eq!(about("types.rs", "use crate::config::Problems;"), ["`types` must not import `config`"]);
        assert_eq!(about("relay/conn.rs", "    crate::tunnel::open();"), ["`relay` must not import `tunnel`"]);
        assert_eq!(about("tunnel/driver.rs", "use crate::relay;"), ["`tunnel` must not import `relay`"]);
        assert_eq!(about("tunnel/mod.rs", "use crate::aws::ecs;"), ["`tunnel` must not import `aws`"]);
        assert_eq!(about("relay/mod.rs", "use crate::config::vars;"), ["`relay` must not import `config`"]);
        assert_eq!(about("aws/ecs.rs", "use crate::cli::ui;"), ["`aws` must not import `cli`"]);
        assert_eq!(about("tls.rs", "use super::relay;"), ["`tls` must not import `relay`"]);
        assert_eq!(about("relay/conn.rs", "    super::super::aws::run();"), ["`relay` must not import `aws`"]);
        assert_eq!(about("lib.rs", "pub use crate::relay::Relay;"), ["`lib` must not import `relay`"]);
        assert_eq!(about("main.rs", "    bastion::relay::run()"), ["`main` calls `bastion::cli` only"]);
    }

    #[test]
    fn what_the_table_allows_is_not_found() {
        for (path, line) in [
            ("cli/up.rs", "use crate::tunnel::Tunnel;"),
            ("config/relay.rs", "use crate::relay;"),
            ("relay/conn.rs", "use bastion_wire::pg::handshake::Handshake;"),
            ("relay/conn.rs", "use crate::relay::error::ConnError;"),
            ("tls/relay.rs", "use super::provider;"),
            ("relay/mod.rs", "    use super::tests;"),
            ("aws/ecs.rs", "use aws_sdk_ecs::Client;"),
            ("main.rs", "    bastion::cli::main()"),
        ] {
            assert_eq!(about(path, line), [""; 0], "{path}: {line}");
        }
    }

    #[test]
    fn a_permission_that_nobody_needs_is_found() {
        let sources = [("tunnel/mod.rs", "use crate::tls::Roots;"), ("tls.rs", "// crate::types::Engine")];
        let sources = sources.map(|(path, text)| (path.to_owned(), text.to_owned()));
        let table: &[(&str, &[&str])] = &[("tls", &["types"]), ("tunnel", &["tls"])];
        assert_eq!(unused(table, &sources), ["`tls` does not import `types`: take it out of IMPORTS"]);
    }

    #[test]
    fn circles_are_found_at_every_level() {
        let circles = |files: &[(&str, &str)]| {
            circles(&files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect::<Vec<_>>())
        };
        let one_way = [("lib.rs", "mod a;"), ("a/mod.rs", "mod b;"), ("a/b.rs", "use super::c::D;"), ("a/c.rs", "")];
        assert_eq!(circles(&one_way), [""; 0]);
        let back = [("a/mod.rs", ""), ("a/b.rs", "use super::c::D;"), ("a/c.rs", "fn f() { crate::a::b::run() }")];
        assert_eq!(circles(&back), ["a: b, c import each other"]);
        let long = [
            ("a.rs", "use crate::b::{X, Y};"),
            ("b.rs", "use crate::{c, d};"),
            ("c.rs", ""),
            ("d.rs", "super::a::f()"),
        ];
        assert_eq!(circles(&long), ["the root: a, b, d import each other"]);
        // A child and its parent are one house, and tests may look at everything.
        let child = [("a.rs", "use self::b::X;"), ("a/b.rs", "use super::Y;"), ("a/tests.rs", "use crate::c::Z;")];
        assert_eq!(circles(&[&child[..], &[("c.rs", "use crate::a::Y;")]].concat()), [""; 0]);
        let foot = [
            ("a.rs", "use crate::b::X;\n#[cfg(test)]\nmod tests {"),
            ("b.rs", "#[cfg(test)]\nmod tests { crate::a::f() }"),
        ];
        assert_eq!(circles(&foot), [""; 0]);
    }

    #[test]
    fn several_modules_in_one_line_are_found() {
        let found = about("cli/up.rs", "use crate::{aws, tunnel};");
        assert_eq!(found, ["several modules in one `use crate::{…}`; write one `use` line for each"]);
    }

    #[test]
    fn sdk_types_outside_their_modules_are_found() {
        assert_eq!(about("cli/up.rs", "use aws_sdk_ecs::types::Task;").len(), 1);
        assert_eq!(about("tunnel/socket.rs", "    aws_sigv4::http_request::sign();").len(), 1);
    }

    #[test]
    fn only_code_is_judged() {
        let text = "a /* b /* c */ d */ e \"f \\\" g\" h // i\n'\"' j r#\"k \" l\"# m 'n b\"o\" br\"p\" 'q'";
        assert_eq!(code(text), "a  e  h \n j  m 'n b b ");
    }
}
