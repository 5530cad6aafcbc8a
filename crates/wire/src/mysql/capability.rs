//! Capability flags, which decide how packets look after the login too (MySQL `include/mysql_com.h`,
//! "Capabilities Flags"; MariaDB "Connecting").

/// MySQL calls it CLIENT_LONG_PASSWORD, MariaDB CLIENT_MYSQL: a MariaDB server leaves it out, and then has flags of its
/// own in the last four reserved bytes.
pub const LONG_PASSWORD: u32 = 1;
pub const CONNECT_WITH_DB: u32 = 1 << 3;
pub const COMPRESS: u32 = 1 << 5;
pub const LOCAL_FILES: u32 = 1 << 7;
pub const PROTOCOL_41: u32 = 1 << 9;
pub const SSL: u32 = 1 << 11;
pub const SECURE_CONNECTION: u32 = 1 << 15;
pub const PLUGIN_AUTH: u32 = 1 << 19;
pub const CONNECT_ATTRS: u32 = 1 << 20;
pub const PLUGIN_AUTH_LENENC: u32 = 1 << 21;
pub const DEPRECATE_EOF: u32 = 1 << 24;
pub const OPTIONAL_METADATA: u32 = 1 << 25;
pub const ZSTD_COMPRESSION: u32 = 1 << 26;
pub const QUERY_ATTRIBUTES: u32 = 1 << 27;
pub const MULTI_FACTOR: u32 = 1 << 28;
pub const CAPABILITY_EXTENSION: u32 = 1 << 29;
pub const SSL_VERIFY_SERVER_CERT: u32 = 1 << 30;

/// MariaDB's further ones: reports of progress, several commands in one (before 10.4), definitions that are left out.
pub const PROGRESS: u32 = 1;
pub const MULTI_COMMANDS: u32 = 1 << 1;
pub const CACHE_METADATA: u32 = 1 << 4;

/// What any login of the last fifteen years has.
pub const NEEDED: u32 = PROTOCOL_41 | SECURE_CONNECTION | PLUGIN_AUTH;

/// What does not hold on either side: bytes are copied after the login, so both must agree on everything else. TLS is each
/// side's own. LOCAL INFILE lets a database read files of the laptop, so it holds only where a target allows it.
pub const MASKED: u32 =
    COMPRESS | LOCAL_FILES | SSL | ZSTD_COMPRESSION | MULTI_FACTOR | CAPABILITY_EXTENSION | SSL_VERIFY_SERVER_CERT;

/// Whether a client's first packet, of which this is the start, announces TLS or compression: what follows it is not to be
/// read as packets. False while its capabilities have not come.
pub fn hides_the_rest(first_packet: &[u8]) -> bool {
    let Some(&[a, b, c, _number, d, e, f, g]) = first_packet.first_chunk() else { return false };
    // A payload of fewer than four bytes has none.
    let has_some = u32::from_le_bytes([a, b, c, 0]) >= 4;
    has_some && u32::from_le_bytes([d, e, f, g]) & (SSL | COMPRESS | ZSTD_COMPRESSION) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_packet_says_whether_the_rest_can_be_read() {
        for (capabilities, hides) in
            [(NEEDED, false), (NEEDED | SSL, true), (NEEDED | COMPRESS, true), (NEEDED | ZSTD_COMPRESSION, true)]
        {
            let packet = [&[32, 0, 0, 1][..], &capabilities.to_le_bytes(), b"\0\0\0\x01"].concat();
            for end in 0..=packet.len() {
                assert_eq!(hides_the_rest(&packet[..end]), hides && end >= 8, "{capabilities:#x} {end}");
            }
        }
        assert!(!hides_the_rest(b"\x03\0\0\x01\xff\xff\xff\xff"));
    }
}
