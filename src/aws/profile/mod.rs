//! The profiles of `~/.aws/config` and `~/.aws/credentials`, found and read as AWS's own tools do it.
//!
//! The SDK has a reader of its own. It refuses names that those tools accept, logs what it refuses and goes on as if the
//! profile were not there; so it gets no file to read, only the settings of the profile that was chosen.

mod chain;
mod ini;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

pub(super) use chain::{Base, Chain, Kind, Role};
use ini::{Broken, Values, words};

use crate::aws::AwsError;

/// So many names an error lists.
const NAMES_MAX: usize = 12;

/// How a variable of the environment is read.
pub(crate) type Getenv<'a> = &'a (dyn Fn(&str) -> Option<String> + Sync);

/// Which of the two files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    Config,
    Credentials,
}

/// A file that was looked for.
#[derive(Debug)]
struct File {
    path: PathBuf,
    /// Why nothing was read from it.
    unread: Option<String>,
}

/// A profile; the credentials file wins over the configuration file, key by key.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Profile {
    values: BTreeMap<String, (String, Which)>,
    broken: Vec<(Which, Broken)>,
}

impl Profile {
    /// The value of a key; an empty one counts as none.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(|(value, _)| value.as_str()).filter(|value| !value.is_empty())
    }

    fn origin(&self, key: &str) -> Option<Which> {
        self.values.get(key).map(|(_, which)| *which)
    }

    /// A value of one word, without a comment behind it, which AWS's SDKs allow.
    pub(super) fn word(&self, key: &str) -> Option<&str> {
        self.get(key).map(uncommented).filter(|value| !value.is_empty())
    }
}

fn uncommented(value: &str) -> &str {
    let comment = [" #", "\t#", " ;", "\t;"].iter().filter_map(|start| value.find(start)).min();
    comment.map_or(value, |at| value[..at].trim_end())
}

/// All that both files say.
#[derive(Debug)]
pub(super) struct Profiles {
    config: File,
    credentials: File,
    profiles: BTreeMap<String, Profile>,
    sso_sessions: BTreeMap<String, Values>,
    services: BTreeMap<String, Values>,
    /// Sections that are no profiles and lines that nobody can read: what was meant, and a sentence.
    notes: Vec<(Option<String>, String)>,
}

/// The profile that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) name: String,
    /// `--profile`, a variable, or nothing: then it is `default`, which need not exist.
    pub(super) by: Option<&'static str>,
}

impl Choice {
    pub(super) fn new(flag: Option<&str>, env: Getenv<'_>) -> Self {
        let set = |variable: &'static str| Some((env(variable).filter(|name| !name.is_empty())?, variable));
        let named = flag.map(|name| (name.to_owned(), "--profile"));
        match named.or_else(|| set("AWS_PROFILE")).or_else(|| set("AWS_DEFAULT_PROFILE")) {
            Some((name, by)) => Self { name, by: Some(by) },
            None => Self { name: "default".to_owned(), by: None },
        }
    }
}

impl Profiles {
    /// Reads the files that the environment names, or those in the home folder. One that is not there is empty.
    pub(super) fn load(env: Getenv<'_>, home: Option<&Path>) -> Self {
        let place = |variable: &str, default: &str| match env(variable) {
            Some(path) => expand(&path, env, home),
            None => expand(default, env, home),
        };
        let config = read(place("AWS_CONFIG_FILE", "~/.aws/config"));
        let credentials = read(place("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"));
        let mut profiles = Self {
            config: config.0,
            credentials: credentials.0,
            profiles: BTreeMap::new(),
            sso_sessions: BTreeMap::new(),
            services: BTreeMap::new(),
            notes: Vec::new(),
        };
        profiles.add_config(&config.1);
        profiles.add_credentials(&credentials.1);
        profiles
    }

    fn add_config(&mut self, text: &str) {
        let document = ini::parse(text);
        for section in document.sections {
            let header = section.header.trim();
            let named = |kind: &str| {
                let words = header.starts_with(kind).then(|| words(header))??;
                <[String; 2]>::try_from(words).ok().map(|[_, name]| name)
            };
            if header == "default" {
                self.profiles.insert(header.to_owned(), profile(Which::Config, section));
            } else if let Some(name) = named("profile") {
                self.profiles.insert(name, profile(Which::Config, section));
            } else if let Some(name) = named("sso-session") {
                self.sso_sessions.insert(name, section.values);
            } else if let Some(name) = named("services") {
                self.services.insert(name, section.values);
            } else {
                self.note_section(header, section.line);
            }
        }
        self.note_broken(Which::Config, &document.broken);
    }

    /// Says why a section of the configuration file is no profile, if it looks as if it should be one.
    fn note_section(&mut self, header: &str, line: usize) {
        let meant = header.strip_prefix("profile").map(str::trim);
        let name = meant.unwrap_or(header);
        let quoted = format!("\"{}\"", name.trim_matches(['\'', '"']).replace('\\', "\\\\").replace('"', "\\\""));
        let path = self.config.path.display();
        let plain = !name.contains([' ', '\'', '"', '\\', '\t']);
        let write = if plain { name } else { &quoted };
        let note = format!("line {line} of {path} should be [profile {write}]");
        self.notes.push((Some(name.trim_matches(['\'', '"']).to_owned()), note));
    }

    fn note_broken(&mut self, which: Which, broken: &[Broken]) {
        for Broken { line, why } in broken {
            let note = format!("line {line} of {} {why}", self.path(which).display());
            self.notes.push((None, note));
        }
    }

    fn add_credentials(&mut self, text: &str) {
        let document = ini::parse(text);
        for section in document.sections {
            let name = section.header.trim().to_owned();
            let found = profile(Which::Credentials, section);
            let known = self.profiles.entry(name).or_default();
            known.values.extend(found.values);
            known.broken.extend(found.broken);
        }
        self.note_broken(Which::Credentials, &document.broken);
    }

    pub(super) fn get(&self, name: &str) -> Option<&Profile> {
        self.profiles.get(name)
    }

    fn path(&self, which: Which) -> &Path {
        match which {
            Which::Config => &self.config.path,
            Which::Credentials => &self.credentials.path,
        }
    }

    /// `~/.aws/config and ~/.aws/credentials (which is not there)`, with full paths.
    pub(super) fn files(&self) -> String {
        let file = |file: &File| match &file.unread {
            Some(why) => format!("{} ({why})", file.path.display()),
            None => file.path.display().to_string(),
        };
        format!("{} and {}", file(&self.config), file(&self.credentials))
    }

    /// `the profiles there are …`
    pub(super) fn names(&self) -> String {
        let names: Vec<&str> = self.profiles.keys().map(String::as_str).collect();
        match names.as_slice() {
            [] => "there is no profile in them".to_owned(),
            [one] => format!("the only profile there is {}", shown(one)),
            names => {
                let mut text = "the profiles there are ".to_owned();
                let listed: Vec<String> = names.iter().take(NAMES_MAX).map(|name| shown(name)).collect();
                text.push_str(&listed.join(", "));
                if names.len() > NAMES_MAX {
                    let _infallible = write!(text, " and {} more", names.len() - NAMES_MAX);
                }
                text
            }
        }
    }

    /// What is wrong with the files, as far as it may be why `name` is not found.
    fn notes(&self, name: &str) -> Vec<&str> {
        let mut notes: Vec<&str> = Vec::new();
        for (meant, note) in &self.notes {
            if meant.as_deref().is_none_or(|meant| meant == name) {
                notes.push(note);
            }
        }
        notes.truncate(3);
        notes
    }

    /// That a profile which somebody has named is there, and that every line of it can be read.
    ///
    /// # Errors
    /// A sentence that names the profile, the files, and the line.
    pub(super) fn check(&self, choice: &Choice) -> Result<(), AwsError> {
        let Some(profile) = self.get(&choice.name) else {
            let Some(by) = choice.by else { return Ok(()) };
            let near = nearest(&choice.name, self.profiles.keys().map(String::as_str));
            let mut hints: Vec<String> = self.notes(&choice.name).into_iter().map(str::to_owned).collect();
            hints.extend(near.map(|near| format!("did you mean {}?", shown(near))));
            hints.push(self.names());
            return Err(AwsError::login(
                format!("there is no AWS profile {} ({by}) in {}", shown(&choice.name), self.files()),
                Some(hints.join("; ")),
            ));
        };
        self.readable(&choice.name, profile)
    }

    fn readable(&self, name: &str, profile: &Profile) -> Result<(), AwsError> {
        let Some((which, Broken { line, why })) = profile.broken.first() else { return Ok(()) };
        let said = format!(
            "the AWS profile {} cannot be read: line {line} of {} {why}",
            shown(name),
            self.path(*which).display()
        );
        Err(AwsError::login(said, Some("write each line as key = value".to_owned())))
    }

    /// The region of a profile itself; that of a source profile does not count, as in AWS's own tools.
    pub(super) fn region(&self, name: &str) -> Option<&str> {
        self.get(name)?.word("region")
    }

    /// Why there is no region, if there is none.
    pub(super) fn without_region(&self, choice: &Choice) -> String {
        let files = self.files();
        match self.get(&choice.name) {
            Some(_) => format!("profile {} has none in {files}", shown(&choice.name)),
            None => format!("there is no profile {} in {files}; {}", shown(&choice.name), self.names()),
        }
    }

    /// The settings of a profile as a configuration file that the SDK reads; keys of logins are left out, for those come
    /// from the [`Chain`].
    pub(super) fn settings(&self, name: &str) -> String {
        let mut text = format!("[profile {SETTINGS}]\n");
        let Some(profile) = self.get(name) else { return text };
        let login = |key: &str| {
            [
                "aws_",
                "sso_",
                "role_",
                "login_session",
                "credential_",
                "source_profile",
                "web_identity_",
                "mfa_",
                "services",
            ]
            .iter()
            .any(|start| key.starts_with(start))
        };
        let entry = |text: &mut String, key: &str, value: &str| {
            if is_identifier(key) {
                let _infallible = writeln!(text, "{key} = {}", value.replace('\n', "\n  "));
            }
        };
        for (key, (value, _)) in profile.values.iter().filter(|(key, _)| !login(key)) {
            entry(&mut text, key, value);
        }
        if let Some(services) = profile.get("services").and_then(|name| named(&self.services, name)) {
            let _infallible = writeln!(text, "services = {SETTINGS}\n[services {SETTINGS}]");
            for (key, value) in services {
                entry(&mut text, key, value);
            }
        }
        text
    }
}

/// The name of the one profile in [`Profiles::settings`].
pub(super) const SETTINGS: &str = "chosen";

/// What the SDK takes for a key.
fn is_identifier(key: &str) -> bool {
    !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-/.%@:+".contains(c))
}

/// The section that a value names: as it stands there, or without a comment behind it.
fn named<'m, T>(sections: &'m BTreeMap<String, T>, name: &str) -> Option<&'m T> {
    sections.get(name).or_else(|| sections.get(uncommented(name)))
}

fn profile(which: Which, section: ini::Section) -> Profile {
    Profile {
        values: section.values.into_iter().map(|(key, value)| (key, (value, which))).collect(),
        broken: section.broken.into_iter().map(|broken| (which, broken)).collect(),
    }
}

/// A name in a sentence: quoted where it could be mistaken.
pub(super) fn shown(name: &str) -> String {
    let plain = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "_-.@+/".contains(c));
    if plain { name.to_owned() } else { format!("{name:?}") }
}

fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    // Two slips at most, and fewer in a short name.
    let slips = (name.chars().count() / 2).clamp(1, 2);
    let scored = known.map(|known| (strsim::osa_distance(&name.to_lowercase(), &known.to_lowercase()), known));
    scored.filter(|(distance, _)| *distance <= slips).min_by_key(|(distance, _)| *distance).map(|(_, known)| known)
}

/// The text of a file, empty if there is none.
fn read(path: PathBuf) -> (File, String) {
    let unread = |why: String| (File { path: path.clone(), unread: Some(why) }, String::new());
    match std::fs::read(&path) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => (File { path, unread: None }, text),
            Err(error) => {
                let before = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
                let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
                unread(format!("line {line} of it is not UTF-8"))
            }
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => unread("which is not there".to_owned()),
        Err(error) => unread(format!("which cannot be read: {error}")),
    }
}

/// `~` is the home folder and `$NAME` a variable, as in AWS's own tools.
pub(super) fn expand(path: &str, env: Getenv<'_>, home: Option<&Path>) -> PathBuf {
    let mut expanded = String::new();
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        let bare = after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(after.len());
        let braced = after.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let (name, behind) = braced.unwrap_or_else(|| after.split_at(bare));
        match env(name).filter(|_| !name.is_empty()) {
            Some(value) => {
                expanded.push_str(&value);
                rest = behind;
            }
            None => {
                expanded.push('$');
                rest = after;
            }
        }
    }
    expanded.push_str(rest);
    match (expanded.strip_prefix('~'), home) {
        (Some(""), Some(home)) => home.to_owned(),
        (Some(below), Some(home)) if below.starts_with('/') => home.join(below.trim_start_matches('/')),
        _ => PathBuf::from(expanded),
    }
}

#[cfg(test)]
mod tests;
