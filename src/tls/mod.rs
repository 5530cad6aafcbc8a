//! rustls configurations: one provider (aws-lc-rs), verification always on.
