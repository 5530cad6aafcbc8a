//! Which opening gets which answer, and which gets none: the table of `ProcessStartupPacket`.

use super::*;

/// What a client sends before its startup packet.
#[derive(Debug, Clone, Copy)]
enum Sent {
    Ssl,
    Gss,
    /// A ClientHello.
    Hello,
    /// The TLS handshake is done, with or without ALPN.
    Tls(bool),
}
use Sent::*;

/// What it gets.
#[derive(Debug, PartialEq, Eq)]
enum Got {
    Byte(u8),
    Tls,
    Silence,
    Error,
    Nothing,
}

fn play(offer_tls: bool, sent: &[Sent]) -> Vec<Got> {
    let mut negotiation = Negotiation::new(offer_tls);
    let mut input = BytesMut::new();
    let mut got = Vec::new();
    for sent in sent {
        match sent {
            Ssl => input.extend_from_slice(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]),
            Gss => input.extend_from_slice(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30]),
            Hello => input.extend_from_slice(&[0x16, 3, 1]),
            Tls(alpn) => negotiation.handle_tls(*alpn),
        }
        got.extend(answers(&mut negotiation, &mut input));
    }
    got
}

fn answers(negotiation: &mut Negotiation, input: &mut BytesMut) -> Vec<Got> {
    let mut got = Vec::new();
    loop {
        got.push(match negotiation.poll(input) {
            Step::Do(Action::Send(Peer::Client, bytes)) => Got::Byte(bytes[0]),
            Step::Do(Action::Read(Peer::Client)) => return got,
            Step::Do(Action::StartTls { .. }) => {
                got.push(Got::Tls);
                return got;
            }
            Step::Refuse(Refusal::NoStartup(_)) => {
                got.push(Got::Silence);
                return got;
            }
            Step::Refuse(Refusal::ClientMalformed(_) | Refusal::ProtocolVersion(_)) => {
                got.push(Got::Error);
                return got;
            }
            other => panic!("{other:?}"),
        });
    }
}

#[test]
fn each_request_is_good_once_in_either_order() {
    for (offer_tls, sent, wanted) in [
        (false, &[Ssl][..], vec![Got::Byte(b'N')]),
        (false, &[Ssl, Gss], vec![Got::Byte(b'N'), Got::Byte(b'N')]),
        (false, &[Gss, Ssl], vec![Got::Byte(b'N'), Got::Byte(b'N')]),
        (false, &[Ssl, Ssl], vec![Got::Byte(b'N'), Got::Error]),
        (false, &[Gss, Gss], vec![Got::Byte(b'N'), Got::Error]),
        (false, &[Ssl, Gss, Ssl], vec![Got::Byte(b'N'), Got::Byte(b'N'), Got::Error]),
        (false, &[Hello], vec![Got::Silence]),
        (false, &[Ssl, Hello], vec![Got::Byte(b'N'), Got::Silence]),
        (true, &[Ssl], vec![Got::Byte(b'S'), Got::Tls]),
        (true, &[Gss, Ssl], vec![Got::Byte(b'N'), Got::Byte(b'S'), Got::Tls]),
        (true, &[Ssl, Tls(false)], vec![Got::Byte(b'S'), Got::Tls]),
        (true, &[Ssl, Tls(true), Ssl], vec![Got::Byte(b'S'), Got::Tls, Got::Error]),
        (true, &[Ssl, Tls(true), Gss], vec![Got::Byte(b'S'), Got::Tls, Got::Error]),
        (true, &[Ssl, Tls(true), Hello], vec![Got::Byte(b'S'), Got::Tls, Got::Silence]),
        // Without asking: only as the very first bytes, and only with the name of the protocol.
        (true, &[Hello], vec![Got::Tls]),
        (true, &[Hello, Tls(true)], vec![Got::Tls]),
        (true, &[Hello, Tls(false)], vec![Got::Tls, Got::Silence]),
        (true, &[Gss, Hello], vec![Got::Byte(b'N'), Got::Silence]),
        (true, &[Hello, Tls(true), Hello], vec![Got::Tls, Got::Silence]),
        (true, &[Hello, Tls(true), Ssl], vec![Got::Tls, Got::Byte(b'N')]),
        (true, &[Hello, Tls(true), Ssl, Ssl], vec![Got::Tls, Got::Byte(b'N'), Got::Error]),
        (true, &[Hello, Tls(true), Gss], vec![Got::Tls, Got::Byte(b'N')]),
    ] {
        assert_eq!(play(offer_tls, sent), wanted, "{offer_tls} {sent:?}");
    }
}

#[test]
fn what_is_no_opening_gets_no_answer_and_what_is_a_bad_one_gets_an_error() {
    let packet = |rest: &[u8]| [&u32::try_from(rest.len() + 4).unwrap().to_be_bytes()[..], rest].concat();
    let cancel = |key: usize| packet(&[&((1234_u32 << 16) | 5678).to_be_bytes()[..], &[0; 4], &vec![7; key]].concat());
    for (bytes, wanted) in [
        // A Terminate without anything before it, other protocols, lengths that the server does not take.
        (b"X\0\0\0\x04".to_vec(), Got::Silence),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), Got::Silence),
        (b"SSH-2.0-x\r\n".to_vec(), Got::Silence),
        (vec![0xff; 64], Got::Silence),
        (vec![0; 8], Got::Silence),
        (vec![0, 0, 0, 7, 0, 3, 0], Got::Silence),
        (10_005_u32.to_be_bytes().to_vec(), Got::Silence),
        (cancel(0), Got::Silence),
        (cancel(257), Got::Silence),
        // Not whole: more may come.
        (b"X".to_vec(), Got::Nothing),
        (10_004_u32.to_be_bytes().to_vec(), Got::Nothing),
        // Startup packets of other versions, or that do not end where they end.
        (packet(&[0, 2, 0, 0]), Got::Error),
        (packet(&[0, 4, 0, 0]), Got::Error),
        (packet(&[0x04, 0xd2, 0x16, 0x31]), Got::Error),
        (packet(&[0, 3, 0, 0]), Got::Error),
        (packet(b"\0\x03\0\0user\0x"), Got::Error),
        (packet(b"\0\x03\0\0user\0x\0"), Got::Error),
        (packet(b"\0\x03\0\0user\0x\0\0\0"), Got::Error),
        // A request, and more before its answer.
        (b"\0\0\0\x08\x04\xd2\x16\x2fx".to_vec(), Got::Error),
        (b"\0\0\0\x08\x04\xd2\x16\x30x".to_vec(), Got::Error),
    ] {
        let mut negotiation = Negotiation::new(true);
        let got = answers(&mut negotiation, &mut BytesMut::from(&bytes[..]));
        assert_eq!(got.into_iter().next().unwrap_or(Got::Nothing), wanted, "{bytes:?}");
    }
}

#[test]
fn startup_packets_of_every_minor_version_and_cancel_requests_come_through() {
    for minor in [0, 2, 9_999_u16] {
        let packet = [b"\0\0\0\x0d\0\x03", &minor.to_be_bytes()[..], b"a\0b\0\0x"].concat();
        let mut input = BytesMut::from(&packet[..]);
        let Step::Startup(startup) = Negotiation::new(false).poll(&mut input) else { panic!("{minor}") };
        assert_eq!(startup.version, 3 << 16 | u32::from(minor));
        // Behind it the login goes on.
        assert_eq!(&input[..], b"x");
    }
    let cancel = [&16_u32.to_be_bytes()[..], &((1234_u32 << 16) | 5678).to_be_bytes(), &[0; 8]].concat();
    let step = Negotiation::new(false).poll(&mut BytesMut::from(&cancel[..]));
    assert!(matches!(step, Step::Do(Action::Cancel(packet)) if packet == cancel));
}
