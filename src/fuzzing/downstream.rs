//! What the upstream says after the login, and what the relay says in between.

use bytes::BytesMut;

use super::Input;
use crate::wire::downstream::Downstream;
use crate::wire::error_text::ErrorText;
use crate::wire::mysql::packet;
use crate::wire::pg::message;

/// The ends of messages are the same however the stream is cut, and what is said at one of them is one message.
pub(super) fn downstream(data: &[u8]) {
    let mut input = Input(data);
    let flags = input.byte();
    // In the middle of a session, with and without EOF packets behind definitions, and from the first byte of a login.
    let begins: &[fn() -> Downstream] = match flags & 1 {
        0 => &[Downstream::postgres, Downstream::postgres_login],
        _ => &[|| Downstream::mysql(true), || Downstream::mysql(false), Downstream::mysql_login],
    };
    begins.iter().for_each(|begin| stream(flags, input.0, *begin));
}

fn stream(flags: u8, data: &[u8], begin: fn() -> Downstream) {
    let cut = usize::from(flags >> 1).max(1);
    let text = ErrorText { number: 1053, sqlstate: "57P01".to_owned(), ..ErrorText::default() };
    let (mut whole, mut pieces, mut messages) = (begin(), begin(), begin());
    whole.pass(data);
    data.chunks(cut).for_each(|piece| pieces.pass(piece));
    assert_eq!(whole, pieces, "in pieces of {cut}");
    let mut rest = data;
    while !rest.is_empty() {
        let end = messages.pass_message(rest);
        assert!((1..=rest.len()).contains(&end), "it does not go on");
        rest = rest.get(end..).unwrap_or_default();
        let said = messages.last_words(&text);
        assert_eq!(said.is_some(), messages.is_between_messages());
        assert!(rest.is_empty() || flags & 1 != 0 || said.is_some(), "it stops where no message ends");
        for said in said.into_iter().chain(messages.notice(&text)) {
            let mut said = BytesMut::from(&said[..]);
            let one = match flags & 1 {
                0 => message::decode(&mut said).is_ok_and(|message| message.is_some()),
                _ => packet::decode(&mut said).is_ok_and(|packet| packet.is_some()),
            };
            assert!(one && said.is_empty(), "it is not one message");
        }
    }
    assert_eq!(whole, messages, "from message to message");
    file_request(cut, data, begin);
}

/// A request for a file is held at the same byte however the stream is cut, and the client can be told then.
fn file_request(cut: usize, data: &[u8], begin: fn() -> Downstream) {
    let (mut whole, mut pieces) = (begin().holding_file_requests(), begin().holding_file_requests());
    let at = whole.pass_up_to_file_request(data);
    let mut found = None;
    for (number, piece) in data.chunks(cut).enumerate() {
        let pending = pieces.pending_head();
        found = pieces.pass_up_to_file_request(piece).map(|at| {
            // Of a head that was cut, the first part has come before.
            let start = number * cut + at;
            if at == 0 { start - pending } else { start }
        });
        if found.is_some() {
            break;
        }
    }
    assert_eq!(found, at, "in pieces of {cut}");
    assert!(at.is_none() || whole.is_between_messages() && whole == pieces, "in pieces of {cut}");
}
