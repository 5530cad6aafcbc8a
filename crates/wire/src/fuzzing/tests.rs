//! The committed corpora, run as tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::login::End;
use super::*;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz").join(name)
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

/// Every input of a corpus. Its name is printed, which shows only if a test fails.
fn corpus(target: &str) -> impl Iterator<Item = Vec<u8>> {
    let folder = folder("corpus").join(target);
    let inputs = names(&folder);
    assert!(!inputs.is_empty(), "{} is empty", folder.display());
    inputs.into_iter().map(move |input| {
        println!("{}/{input}", folder.display());
        fs::read(folder.join(input)).unwrap()
    })
}

fn replay(target: &str) {
    corpus(target).for_each(|data| run(target, &data));
}

macro_rules! replays {
    ($($target:ident)*) => {
        $(#[test] fn $target() { replay(stringify!($target)); })*

        #[test]
        fn no_target_is_forgotten() {
            let wanted: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
            assert_eq!(names(&folder("fuzz_targets")), wanted);
            assert_eq!(names(&folder("corpus")), wanted);
            assert_eq!([$(stringify!($target).to_owned()),*].into_iter().collect::<BTreeSet<_>>(), wanted);
            let manifest = fs::read_to_string(folder("Cargo.toml")).unwrap();
            for target in wanted {
                assert!(manifest.contains(&format!("name = \"{target}\"")), "fuzz/Cargo.toml has no {target}");
            }
        }
    };
}

replays! {
    conn lane_frames lane_link lane_peer mysql_change_user mysql_handshake mysql_packets mysql_session pg_handshake
    pg_messages pg_session port_session redact smux ssm_messages
}

/// A corpus may keep its coverage and lose its sense: these logins must still get where they got.
#[test]
fn the_logins_of_the_corpora_end_in_every_way() {
    let ends = |target, login: fn(&[u8]) -> End| corpus(target).map(|data| login(&data)).collect::<BTreeSet<_>>();
    assert_eq!(ends("mysql_handshake", mysql::handshake), BTreeSet::from([End::Refused, End::Spliced]));
    assert_eq!(ends("pg_handshake", pg::handshake), BTreeSet::from([End::Cancelled, End::Refused, End::Spliced]));
}
