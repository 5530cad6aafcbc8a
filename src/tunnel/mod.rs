//! The laptop's path into the task: one Session Manager port session, many client connections in it.
