//! The commands of a session, by their numbers (MySQL `my_command.h`; MariaDB `mysql_com.h`, which has more of them from the
//! end downwards).

/// What a server takes an empty command for (`dispatch_command`), and answers.
pub const SLEEP: u8 = 0x00;
pub const QUIT: u8 = 0x01;
pub const INIT_DB: u8 = 0x02;
pub const QUERY: u8 = 0x03;
pub const FIELD_LIST: u8 = 0x04;
pub const STATISTICS: u8 = 0x09;
pub const PROCESS_INFO: u8 = 0x0a;
pub const PROCESS_KILL: u8 = 0x0c;
/// With which connection pools start a session anew.
pub const CHANGE_USER: u8 = 0x11;
pub const BINLOG_DUMP: u8 = 0x12;
pub const TABLE_DUMP: u8 = 0x13;
pub const STMT_PREPARE: u8 = 0x16;
pub const STMT_EXECUTE: u8 = 0x17;
pub const STMT_SEND_LONG_DATA: u8 = 0x18;
pub const STMT_CLOSE: u8 = 0x19;
pub const STMT_FETCH: u8 = 0x1c;
pub const BINLOG_DUMP_GTID: u8 = 0x1e;
pub const RESET_CONNECTION: u8 = 0x1f;
/// MariaDB.
pub const STMT_BULK_EXECUTE: u8 = 0xfa;
/// Several commands at once, in MariaDB before 10.4 if both sides agree.
pub const MULTI: u8 = 0xfe;

/// Whether a command only looks, or only prepares for others: sleep, field list, statistics, connect, ping, time, delayed insert,
/// data for a statement, its end and its reset, fetch, daemon, quit.
pub fn only_looks(command: u8) -> bool {
    matches!(command, 0x00 | 0x01 | 0x04 | 0x09 | 0x0b | 0x0e | 0x0f | 0x10 | 0x18 | 0x19 | 0x1a | 0x1c | 0x1d)
}

/// What a command is called.
pub fn word(command: u8) -> String {
    let known = match command {
        INIT_DB => "init_db",
        0x05 => "create_db",
        0x06 => "drop_db",
        0x07 => "refresh",
        0x08 => "shutdown",
        PROCESS_INFO => "process_info",
        PROCESS_KILL => "process_kill",
        0x0d => "debug",
        CHANGE_USER => "change_user",
        BINLOG_DUMP => "binlog_dump",
        TABLE_DUMP => "table_dump",
        0x14 => "connect_out",
        0x15 => "register_slave",
        0x1b => "set_option",
        BINLOG_DUMP_GTID => "binlog_dump_gtid",
        RESET_CONNECTION => "reset_connection",
        other => return format!("0x{other:02x}"),
    };
    known.to_owned()
}
