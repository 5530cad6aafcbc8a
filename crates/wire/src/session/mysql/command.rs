//! A command on its way.

/// A command of the client that is not whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Command {
    pub(super) code: u8,
    /// Of a statement or a connection, where the command has one.
    pub(super) id: Option<u32>,
    /// Its text cannot be told from what stands before it.
    pub(super) is_hidden: bool,
}
