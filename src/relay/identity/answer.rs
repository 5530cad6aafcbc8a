//! What STS answers, read as strictly as it was asked.
//!
//! CVE-2020-16250: Vault trusted whatever an answer of STS had in the right place. Here the whole document must be what
//! `GetCallerIdentity` gives (STS API Reference): these elements, each once, and nothing else.

use quick_xml::Reader;
use quick_xml::events::Event;

use crate::relay::identity::{Person, Principal};

/// An answer is about 500 bytes.
pub(super) const ANSWER_MAX: usize = 16 * 1024;
const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";
const DEPTH_MAX: usize = 4;
const LEAVES_MAX: usize = 16;

/// The caller in the body of a good answer.
pub(super) fn caller(body: &[u8]) -> Result<Person, &'static str> {
    let leaves = leaves(body)?;
    let known =
        ["Arn", "UserId", "Account"].map(|name| format!("GetCallerIdentityResponse/GetCallerIdentityResult/{name}"));
    let request_id = "GetCallerIdentityResponse/ResponseMetadata/RequestId";
    if leaves.iter().any(|(path, _)| path != request_id && !known.contains(path)) {
        return Err("it has an unexpected element");
    }
    let value = |path: &str| {
        let mut found = leaves.iter().filter(|(known, _)| known == path).map(|(_, text)| text.as_str());
        found.next().filter(|_| found.next().is_none()).ok_or("an element is missing or there twice")
    };
    let [arn, user_id, account] = [value(&known[0])?, value(&known[1])?, value(&known[2])?];
    let principal = Principal::parse(arn).map_err(|_| "its Arn is not that of a caller")?;
    if principal.account() != account {
        return Err("its Account is not that of its Arn");
    }
    let named = user_id.split_once(':').map(|(_, name)| name);
    if user_id.is_empty() || user_id.len() > 256 || (principal.is_session() && named != Some(principal.name())) {
        return Err("its UserId is not that of its Arn");
    }
    Ok(Person { principal, user_id: user_id.to_owned() })
}

/// The error code in the body of a refusal.
pub(super) fn error_code(body: &[u8]) -> Option<String> {
    let leaves = leaves(body).ok()?;
    let (_, code) = leaves.into_iter().find(|(path, _)| path == "ErrorResponse/Error/Code")?;
    let is_code = code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.');
    is_code.then_some(code)
}

/// Path and text of every element that has no child. The only attribute is the namespace of the root; comments, CDATA,
/// entities, processing instructions and document types are in no answer of STS.
fn leaves(body: &[u8]) -> Result<Vec<(String, String)>, &'static str> {
    const BROKEN: &str = "it is not well-formed XML";
    let text = std::str::from_utf8(body).map_err(|_| "it is not UTF-8")?;
    let mut reader = Reader::from_str(text);
    reader.config_mut().check_end_names = true;
    let (mut path, mut found) = (Vec::new(), Vec::new());
    let (mut content, mut is_leaf, mut roots, mut first) = (String::new(), false, 0, true);
    loop {
        match reader.read_event().map_err(|_| BROKEN)? {
            Event::Decl(_) if first => {}
            Event::Start(element) => {
                let attributes: Vec<_> = element.attributes().collect::<Result<_, _>>().map_err(|_| BROKEN)?;
                let fine = match &attributes[..] {
                    [] => !path.is_empty(),
                    [one] => path.is_empty() && one.key.0 == "xmlns" && *one.value == *NAMESPACE,
                    _ => false,
                };
                if !fine {
                    return Err("an attribute or its namespace is not that of STS");
                }
                if path.is_empty() {
                    roots += 1;
                }
                if path.len() >= DEPTH_MAX || roots > 1 || !content.trim().is_empty() {
                    return Err("it is not shaped like an answer of STS");
                }
                content.clear();
                path.push(element.name().0.to_owned());
                is_leaf = true;
            }
            Event::Text(text) if !path.is_empty() || text.trim().is_empty() => content.push_str(&text),
            Event::End(_) => {
                if is_leaf {
                    found.push((path.join("/"), content.trim().to_owned()));
                } else if !content.trim().is_empty() {
                    return Err("it has text between its elements");
                }
                if found.len() > LEAVES_MAX {
                    return Err("it has too many elements");
                }
                content.clear();
                is_leaf = false;
                path.pop();
            }
            Event::Eof if path.is_empty() && roots == 1 => return Ok(found),
            _ => return Err("it has something that no answer of STS has"),
        }
        first = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n  \
        <GetCallerIdentityResult>\n    <Arn>arn:aws:sts::123456789012:assumed-role/Developer/alice</Arn>\n    \
        <UserId>AROAEXAMPLE:alice</UserId>\n    <Account>123456789012</Account>\n  </GetCallerIdentityResult>\n  \
        <ResponseMetadata>\n    <RequestId>01234567-89ab-cdef-0123-456789abcdef</RequestId>\n  </ResponseMetadata>\n\
        </GetCallerIdentityResponse>\n";

    #[test]
    fn a_good_answer_names_the_caller() {
        let person = caller(GOOD.as_bytes()).unwrap();
        assert_eq!(person.principal.to_string(), "arn:aws:sts::123456789012:assumed-role/Developer/alice");
        assert_eq!(person.user_id, "AROAEXAMPLE:alice");
        assert_eq!(caller(format!("<?xml version=\"1.0\"?>{GOOD}").as_bytes()).unwrap(), person);
    }

    #[test]
    fn every_prefix_and_everything_around_it_is_refused() {
        let end = GOOD.trim_end().len();
        for cut in 0..end {
            assert!(caller(&GOOD.as_bytes()[..cut]).is_err(), "{cut}");
        }
        // What CVE-2020-16250 did: the answer inside of something else.
        for bad in [
            format!("{{\"SubjectFromWebIdentityToken\":\"{GOOD}\"}}"),
            format!("x{GOOD}"),
            format!("{GOOD}x"),
            format!("{GOOD}{GOOD}"),
            format!("<a xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">{GOOD}</a>"),
            format!("<!DOCTYPE x>{GOOD}"),
        ] {
            assert!(caller(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_change_of_its_shape_is_refused() {
        let other = "<Arn>arn:aws:sts::123456789012:assumed-role/Developer/bob</Arn>";
        for (from, to) in [
            ("https://sts.amazonaws.com/doc/2011-06-15/", "https://evil.example.com/"),
            ("xmlns=", "x="),
            ("<Arn>", "<Arn a=\"b\">"),
            ("<UserId>", &format!("{other}<UserId>")),
            ("<Account>123456789012</Account>", ""),
            ("<Account>123456789012</Account>", "<Account>123456789013</Account>"),
            ("<Account>123456789012</Account>", "<Account/>"),
            ("AROAEXAMPLE:alice", "AROAEXAMPLE:bob"),
            ("AROAEXAMPLE:alice", "AROAEXAMPLE"),
            ("alice</Arn>", "<!-- -->alice</Arn>"),
            ("alice</Arn>", "ali&#99;e</Arn>"),
            ("alice</Arn>", "<![CDATA[alice]]></Arn>"),
            ("<ResponseMetadata>", "<Extra>1</Extra><ResponseMetadata>"),
            ("<ResponseMetadata>", "text<ResponseMetadata>"),
            ("assumed-role/Developer/alice", "assumed-role/Developer"),
            ("GetCallerIdentityResult", "AssumeRoleWithWebIdentityResult"),
        ] {
            let bad = GOOD.replace(from, to);
            assert_ne!(bad, GOOD);
            assert!(caller(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_code_of_a_refusal_is_read_and_nothing_else() {
        let body = "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
            <Code>ExpiredToken</Code><Message>S3CRET</Message></Error><RequestId>1</RequestId></ErrorResponse>";
        assert_eq!(error_code(body.as_bytes()).as_deref(), Some("ExpiredToken"));
        assert_eq!(error_code(body.replace("ExpiredToken", "a b").as_bytes()), None);
        assert_eq!(error_code(b"<html>"), None);
    }
}
