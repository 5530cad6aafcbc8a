//! Packing and unpacking, whatever the cuts.

use proptest::prelude::*;

use super::*;
use crate::memory::Memory;

#[expect(clippy::disallowed_methods, reason = "where a test's own clock starts")]
fn start() -> Instant {
    Instant::now()
}

fn packed(parts: &[Vec<u8>], now: Instant) -> Vec<u8> {
    let mut encoder = Encoder::new(Memory::laptop().packing);
    let mut out = Vec::new();
    for part in parts {
        let mut rest = part.as_slice();
        while !rest.is_empty() {
            let taken = encoder.push(rest);
            rest = &rest[taken..];
            encoder.flush(now, true, &mut out);
        }
    }
    out
}

fn unpacked(bytes: &[u8], input: usize, output: usize) -> Result<Vec<u8>, CodecError> {
    let mut decoder = Decoder::new(Memory::laptop().unpacking);
    let mut all = Vec::new();
    let mut buffer = vec![0; output];
    for mut part in bytes.chunks(input) {
        loop {
            let filled = decoder.decode(&mut part, &mut buffer, 0)?;
            all.extend_from_slice(&buffer[..filled]);
            if filled < output {
                assert!(part.is_empty());
                break;
            }
        }
    }
    assert!(decoder.is_between_chunks());
    Ok(all)
}

/// Rows as a database writes them.
fn rows(length: usize) -> Vec<u8> {
    let mut text = Vec::new();
    for n in 0_u64.. {
        let id = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        text.extend_from_slice(format!("{n}\torder {}\t2026-11-{:02}\t{id:016x}\n", n % 97, n % 28 + 1).as_bytes());
        if text.len() >= length {
            break;
        }
    }
    text.truncate(length);
    text
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(step).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn bytes_come_back_whatever_the_cuts(
        lengths in proptest::collection::vec((0_usize..60_000, any::<bool>()), 0..6),
        input in 1_usize..5000,
        output in 1_usize..5000,
    ) {
        let parts: Vec<_> = lengths.iter().map(|(n, text)| if *text { rows(*n) } else { noise(*n) }).collect();
        let bytes = packed(&parts, start());
        prop_assert!(unpacked(&bytes, input, output).unwrap() == parts.concat());
    }

    #[test]
    fn any_bytes_are_data_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut decoder = Decoder::new(Memory::laptop().unpacking);
        let mut rest = bytes.as_slice();
        let mut buffer = [0; 50];
        for _ in 0..1000 {
            match decoder.decode(&mut rest, &mut buffer, 0) {
                Ok(50) => {}
                _ => break,
            }
        }
    }
}

#[test]
fn text_shrinks_and_noise_costs_nothing() {
    let text = rows(400_000);
    let bytes = packed(std::slice::from_ref(&text), start());
    assert!(bytes.len() * 5 < text.len() * 2, "{} of {}", bytes.len(), text.len());
    let noise = noise(4_000_000);
    let bytes = packed(std::slice::from_ref(&noise), start());
    assert!(bytes.len() < noise.len() + noise.len() / 1000, "{}", bytes.len());
}

#[test]
fn after_noise_compression_is_tried_again() {
    let parts = [noise(CHUNK_MAX), rows(SKIP.0), rows(400_000)];
    let bytes = packed(&parts, start());
    assert!(bytes.len() < CHUNK_MAX + SKIP.0 + 200_000, "{}", bytes.len());
    assert!(unpacked(&bytes, 1000, 1000).unwrap() == parts.concat());
}

#[test]
fn a_small_message_needs_no_context_and_one_that_is_idle_is_ended() {
    let now = start();
    let mut encoder = Encoder::new(Memory::laptop().packing);
    let mut out = Vec::new();
    encoder.push(&rows(WORTH_IT));
    encoder.flush(now, true, &mut out);
    assert!(!encoder.has_context() && encoder.idle_at().is_none());
    assert_eq!(out.len(), WORTH_IT + HEADER);
    encoder.push(&rows(5000));
    encoder.flush(now, false, &mut out);
    assert!(!encoder.has_context());
    encoder.push(&rows(5000));
    encoder.flush(now, true, &mut out);
    assert_eq!(encoder.idle_at(), Some(now + CONTEXT_IDLE));
    encoder.end(&mut out);
    assert_eq!((encoder.idle_at(), out.last_chunk()), (None, Some(&[END, 0, 0])));
    assert!(unpacked(&out, 7, 7).unwrap() == [rows(WORTH_IT), rows(5000), rows(5000)].concat());
}

#[test]
fn a_window_that_is_too_large_is_refused() {
    let mut context = CCtx::create();
    context.set_parameter(CParameter::WindowLog(WINDOW_LOG + 1)).unwrap();
    let mut bytes = Vec::with_capacity(60_000);
    flush(&mut context, &noise(40_000), &mut bytes).unwrap();
    let mut out = Vec::new();
    chunk(COMPRESSED, &bytes, &mut out);
    assert!(matches!(unpacked(&out, 1000, 1000), Err(CodecError::Zstd(_))));
    assert_eq!(unpacked(&[7, 0, 1], 3, 3), Err(CodecError::UnknownKind(7)));
    assert_eq!(unpacked(&[END, 0, 1], 3, 3), Err(CodecError::TooLong(1)));
}

/// What the budgets count for a context is what it takes, and no context is there without its share.
#[test]
fn contexts_are_counted_as_what_they_take_and_end_with_their_budget() {
    let memory = Memory::laptop();
    let packing = Budget::new("tests", PACKING_CONTEXT);
    let mut encoders = [Encoder::new(packing.clone()), Encoder::new(packing.clone())];
    let mut outs = [Vec::new(), Vec::new()];
    for (encoder, out) in encoders.iter_mut().zip(&mut outs) {
        for part in rows(400_000).chunks(CHUNK_MAX) {
            encoder.push(part);
            encoder.flush(start(), true, out);
        }
    }
    // The second one goes as it is.
    assert_eq!((outs[0][0], outs[1][0], packing.left()), (COMPRESSED, RAW, 0));
    let taken = encoders[0].context.as_ref().unwrap().zstd.sizeof();
    assert!(taken <= PACKING_CONTEXT && taken > PACKING_CONTEXT / 2, "{taken}");
    let unpacking = Budget::new("tests", UNPACKING_CONTEXT);
    let mut decoders = [Decoder::new(unpacking.clone()), Decoder::new(unpacking.clone())];
    let mut buffer = vec![0; 300_000];
    assert_eq!(decoders[0].decode(&mut &outs[0][..], &mut buffer, 0), Ok(300_000));
    let taken = decoders[0].context.as_ref().unwrap().zstd.sizeof();
    assert!(taken <= UNPACKING_CONTEXT && taken > UNPACKING_CONTEXT / 4, "{taken}");
    assert!(matches!(decoders[1].decode(&mut &outs[0][..], &mut buffer, 0), Err(CodecError::Full(_))));
    decoders[0].clear();
    encoders[0].clear();
    assert_eq!((packing.left(), unpacking.left()), (PACKING_CONTEXT, UNPACKING_CONTEXT));
    assert!(memory.packing.left() / PACKING_CONTEXT >= 16, "one link has all of its contexts");
}
