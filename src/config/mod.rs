//! Configuration: from JSON or TOML text and environment variables to resolved values, with every mistake reported at
//! once. Nothing below `cli` reads the environment; it is handed in here.

mod problem;
mod schema;
mod table;

#[cfg(feature = "launcher")]
pub(crate) mod laptop;
#[cfg(feature = "relay")]
pub(crate) mod relay;
pub(crate) mod vars;

#[cfg(feature = "relay")]
pub(crate) use problem::Problems;

/// Where environment variables come from: the process, or a map in tests.
pub(crate) trait Env {
    fn get(&self, name: &str) -> Option<String>;
}

/// The environment of this process.
pub(crate) struct ProcessEnv;

impl Env for ProcessEnv {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    fn get(&self, name: &str) -> Option<String> {
        // What is not UTF-8 is shown as such where it is refused; it must not count as not set.
        std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
    }
}

#[cfg(test)]
impl Env for std::collections::BTreeMap<&str, &str> {
    fn get(&self, name: &str) -> Option<String> {
        Self::get(self, name).map(|value| (*value).to_owned())
    }
}
