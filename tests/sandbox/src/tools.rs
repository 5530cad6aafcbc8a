//! Programs that `scripts/setup` puts into `.tools` of this repository.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// Where `scripts/setup` puts what only this repository needs.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools")
}

/// # Errors
/// When the program is neither there nor on PATH, with the way to get it.
pub fn find(program: &str) -> anyhow::Result<PathBuf> {
    let own = ["bin", "python/bin"].map(|place| folder().join(place).join(program));
    if let Some(own) = own.into_iter().find(|file| file.exists()) {
        return Ok(own);
    }
    #[expect(clippy::disallowed_methods, reason = "a test tool looks where a shell would")]
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .with_context(|| format!("there is no {program}; run scripts/setup test"))
}
