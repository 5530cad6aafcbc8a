//! The AWS calls of the launcher in our own types; nothing above this module sees an SDK type.
