#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bastion_wire::fuzzing::run("pg_handshake", data));
