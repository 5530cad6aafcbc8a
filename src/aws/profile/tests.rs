use std::collections::BTreeMap;
use std::process::Command;

use super::*;

/// Profiles of two files.
fn profiles(config: &str, credentials: &str) -> (tempfile::TempDir, Profiles) {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".aws")).unwrap();
    std::fs::write(home.path().join(".aws/config"), config).unwrap();
    std::fs::write(home.path().join(".aws/credentials"), credentials).unwrap();
    let profiles = Profiles::load(&|_| None, Some(home.path()));
    (home, profiles)
}

fn named(name: &str) -> Choice {
    Choice { name: name.to_owned(), by: Some("--profile") }
}

/// `Error` and `Hint` of a refusal, with the home folder as `~`.
fn told<T>(home: &tempfile::TempDir, outcome: Result<T, AwsError>) -> String {
    let error = outcome.err().expect("it was not refused");
    format!("{error}\n{}", error.hint().unwrap_or_default()).replace(home.path().to_str().unwrap(), "~")
}

const FORMS: &str = "\
[default]
region = r-default
[profile plain]
region=r-plain
[profile \"with space\"]
region = r-space
[profile 'o\"clock']
region = r-quote
[profile \"o'brien\"]
region = r-apostrophe
[profile o'neill]
region = lost
[profile müller]
region = r-umlaut
[profile a#b]
region = r-hash
[profile \"c #d;e\"]
region = r-hash-space
[profile two words]
region = lost
[profile tab\tbed]
region = lost
[profile back\\\\slash]
region = r-backslash
[profile indented]
 region = r-indented
 output = json
[profile colon]
region: r-colon
[profile UPPER]
REGION = r-upper
[profile empty]
region =
[profile commented]
# a comment
  ; another
region = r-commented
[profile nested]
s3 =
  max_concurrent_requests = 20
region = r-nested
[profile continued]
region = r-one
  r-two
[profile trailing] # a comment
region = r-trailing
[profile  doubled]
region = r-doubled
[profile profile]
region = r-profile
[profilesomething odd]
region = r-odd
[noprefix]
region = lost
[sso-session \"my sso\"]
sso_region = s
[profile äö/ü@x+y=z]
region = r-signs
[profile \u{1F980}]
region = r-crab
";

const FORMS_CREDENTIALS: &str = "\
[plain]
aws_access_key_id = A
aws_secret_access_key = B
region = r-of-credentials
[with space]
aws_access_key_id = C
[only here]
aws_access_key_id = D
[profile prefixed]
aws_access_key_id = E
[\"quoted\"]
aws_access_key_id = F
";

/// What botocore makes of the files in `argv[1]`: the values of each profile.
const BOTOCORE: &str = "
import json, sys, botocore.session
session = botocore.session.Session()
print(json.dumps({name: {key: value for key, value in profile.items() if isinstance(value, str)}
                  for name, profile in session.full_config['profiles'].items()}))
";

/// The same by botocore; `None`: it refuses the files.
fn by_botocore(home: &Path) -> Option<BTreeMap<String, BTreeMap<String, String>>> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/python/bin/python3");
    let output = Command::new(&python)
        .args(["-c", BOTOCORE])
        .env_clear()
        .env("HOME", home)
        .env("PYTHONUTF8", "1")
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}; run scripts/setup test", python.display()));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || error.contains("ConfigParseError"), "{error}");
    output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn files_are_read_as_botocore_reads_them() {
    let crlf = FORMS.replace('\n', "\r\n");
    for (config, credentials) in [(FORMS, FORMS_CREDENTIALS), (crlf.as_str(), ""), ("", FORMS_CREDENTIALS)] {
        let (home, profiles) = profiles(config, credentials);
        let theirs = by_botocore(home.path()).expect("botocore refuses the table");
        let ours: BTreeMap<String, BTreeMap<String, String>> = profiles
            .profiles
            .iter()
            .map(|(name, profile)| {
                let flat = profile.values.iter().filter(|(_, (value, _))| !value.starts_with('\n'));
                (name.clone(), flat.map(|(key, (value, _))| (key.clone(), value.clone())).collect())
            })
            .collect();
        assert_eq!(ours, theirs);
    }
}

#[test]
fn what_botocore_refuses_whole_is_read_as_far_as_it_goes() {
    for config in [
        "\u{feff}[default]\nregion = r\n",
        "[default]\nregion = r\n[profile broken]\nregion r\n",
        "[default]\nregion = r\n[profile broken\nregion = x\n",
        "[default]\nregion = x\n[default]\nregion = r\n",
        "[default]\nregion = x\nregion = r\n",
        "stray = 1\n[default]\nregion = r\n",
        "[default]\nregion = r\n[profile\n",
    ] {
        let (home, profiles) = profiles(config, "");
        assert_eq!(by_botocore(home.path()), None, "{config}");
        assert_eq!(profiles.region("default"), Some("r"), "{config}");
        let default = Choice { name: "default".to_owned(), by: None };
        assert_eq!(profiles.check(&default), Ok(()), "{config}");
    }
}

#[test]
fn a_profile_that_is_not_found_is_told_with_files_lines_and_names() {
    let (home, profiles) = profiles(FORMS, "[dev]\naws_access_key_id\n");
    let refused = |name: &str| told(&home, profiles.check(&named(name)));
    let near = refused("plane");
    assert!(
        near.starts_with("there is no AWS profile plane (--profile) in ~/.aws/config and ~/.aws/credentials"),
        "{near}"
    );
    assert!(near.contains("did you mean plain?") && near.contains("the profiles there are UPPER, \"a#b\""), "{near}");
    let spaced = refused("two words");
    assert!(spaced.contains("line 19 of ~/.aws/config should be [profile \"two words\"]"), "{spaced}");
    let apostrophe = refused("o'neill");
    assert!(apostrophe.contains("line 11 of ~/.aws/config should be [profile \"o'neill\"]"), "{apostrophe}");
    let bare = refused("noprefix");
    assert!(bare.contains("should be [profile noprefix]"), "{bare}");
    let line = refused("dev");
    assert!(line.starts_with("the AWS profile dev cannot be read: line 2 of ~/.aws/credentials has no ="), "{line}");

    let home = tempfile::tempdir().unwrap();
    let env = |name: &str| match name {
        "AWS_CONFIG_FILE" => Some("${PLACE}/x".to_owned()),
        "AWS_SHARED_CREDENTIALS_FILE" => Some("~/c".to_owned()),
        "PLACE" => Some(home.path().display().to_string()),
        "AWS_PROFILE" => Some("nosuch".to_owned()),
        _ => None,
    };
    std::fs::write(home.path().join("c"), b"[a]\nx = \xff\n").unwrap();
    let choice = Choice::new(None, &env);
    assert_eq!(choice, Choice { name: "nosuch".to_owned(), by: Some("AWS_PROFILE") });
    assert_eq!(
        told(&home, Profiles::load(&env, Some(home.path())).check(&choice)),
        "there is no AWS profile nosuch (AWS_PROFILE) in ~/x (which is not there) and ~/c (line 2 of it is not UTF-8)\n\
         there is no profile in them"
    );
}

#[test]
fn a_secret_of_a_line_that_cannot_be_read_is_not_told() {
    let (home, profiles) = profiles("", "[dev]\naws_secret_access_key S3CRET\n[x\nS3CRET\n");
    let said = told(&home, profiles.check(&named("dev"))) + &told(&home, profiles.check(&named("x")));
    assert!(said.contains("line 3 of ~/.aws/credentials begins with [ and has no ]"), "{said}");
    assert!(!said.contains("S3CRET"), "{said}");
}

const CHAINS: &str = "\
[profile keys]
aws_access_key_id = A
aws_secret_access_key = B # of the test user
[profile half]
aws_access_key_id = A
[profile sso]
sso_session = my sso # the one
sso_account_id = 1
sso_role_name = Dev
[sso-session \"my sso\"]
sso_start_url = https://x/start/#/
sso_region = eu-west-1
[profile sso-old]
sso_start_url = https://x
sso_region = eu-west-1
sso_account_id = 1
sso_role_name = Dev
[profile sso-lost]
sso_session = gone
sso_account_id = 1
sso_role_name = Dev
[profile console]
login_session = arn:aws:iam::1:user/alice
[profile process]
credential_process = tool --x # not a comment of ours
[profile web]
role_arn = arn:web
web_identity_token_file = /t
[profile role]
role_arn = arn:one
source_profile = middle # a comment
mfa_serial = arn:mfa
duration_seconds = 3600
external_id = e
[profile middle]
role_arn = arn:two
source_profile = console
role_session_name = n
[profile own]
role_arn = arn:own
source_profile = own
aws_access_key_id = A
aws_secret_access_key = B
[profile keys-win]
role_arn = arn:x
source_profile = own
[profile machine]
role_arn = arn:m
credential_source = Ec2InstanceMetadata
[profile odd]
role_arn = arn:o
credential_source = Moon
[profile lost]
role_arn = arn:l
source_profile = gone
[profile none]
role_arn = arn:n
[profile empty-source]
role_arn = arn:e
source_profile = nothing
[profile nothing]
region = r
[profile a]
role_arn = arn:a
source_profile = b
[profile b]
role_arn = arn:b
source_profile = a
";

#[test]
fn a_profile_leads_to_its_credentials() {
    let (_home, profiles) = profiles(CHAINS, "[process]\naws_access_key_id = P\naws_secret_access_key = Q\n");
    let chain = |name: &str| Chain::resolve(&profiles, name).unwrap().unwrap();
    let base = |name: &str| chain(name).base;
    assert!(base("keys") == Base::Keys("A".into(), "B".into(), None));
    let sso = |session: Option<&str>, start_url: &str| Base::Sso {
        session: session.map(str::to_owned),
        start_url: start_url.into(),
        region: "eu-west-1".into(),
        account: "1".into(),
        role: "Dev".into(),
    };
    assert!(base("sso") == sso(Some("my sso"), "https://x/start/#/"));
    assert!(base("sso-old") == sso(None, "https://x"));
    assert!(base("console") == Base::Console("arn:aws:iam::1:user/alice".into()));
    // Keys of the credentials file come before a program.
    assert!(base("process") == Base::Keys("P".into(), "Q".into(), None));
    assert!(base("web") == Base::WebIdentity { file: "/t".into(), role: "arn:web".into(), session_name: None });
    assert!(base("machine") == Base::Instance);
    assert!(base("own") == Base::Keys("A".into(), "B".into(), None));
    assert_eq!(chain("own").roles.len(), 1);
    assert_eq!(chain("keys-win").roles.len(), 1);
    assert!(Chain::resolve(&profiles, "nothing").unwrap().is_none());
    assert!(Chain::resolve(&profiles, "unknown").unwrap().is_none());

    let role = chain("role");
    assert_eq!((role.base.kind(), role.base_profile.as_str()), (Kind::Console, "console"));
    let arns: Vec<&str> = role.roles.iter().map(|role| role.arn.as_str()).collect();
    assert_eq!(arns, ["arn:two", "arn:one"]);
    assert_eq!(role.roles[0].session_name.as_deref(), Some("n"));
    let Role { mfa_serial, seconds, external_id, .. } = &role.roles[1];
    assert_eq!((mfa_serial.as_deref(), *seconds, external_id.as_deref()), (Some("arn:mfa"), Some(3600), Some("e")));
}

#[test]
fn what_leads_nowhere_is_told() {
    let (home, profiles) = profiles(CHAINS, "");
    for (name, part) in [
        ("half", "the AWS profile half is not complete: it has no aws_secret_access_key"),
        ("sso-lost", "there is no [sso-session gone] in ~/.aws/config"),
        ("odd", "the AWS profile odd has credential_source \"Moon\""),
        ("lost", "the AWS profile lost has source_profile gone, and there is no such profile"),
        ("none", "the AWS profile none has role_arn and neither of source_profile and credential_source"),
        ("empty-source", "the source profile nothing of AWS profile empty-source has no credentials"),
        ("a", "the AWS profiles a, b lead back to a by source_profile"),
    ] {
        let said = told(&home, Chain::resolve(&profiles, name).map(|_| ()));
        assert!(said.contains(part), "{name}: {said}");
    }
}

#[test]
fn the_sdk_gets_settings_and_no_login() {
    let config = "[profile \"x y\"]\nregion = r\nuse_fips_endpoint = true\naws_secret_access_key = S3CRET\nservices = s t\n\
                  sso_session = s\nodd key = 1\n[services \"s t\"]\nssm =\n  endpoint_url = http://x\n";
    let (_home, profiles) = profiles(config, "");
    assert_eq!(
        profiles.settings("x y"),
        "[profile chosen]\nregion = r\nuse_fips_endpoint = true\nservices = chosen\n[services chosen]\nssm = \n  \
         endpoint_url = http://x\n"
    );
    assert_eq!(profiles.settings("nosuch"), "[profile chosen]\n");
}
