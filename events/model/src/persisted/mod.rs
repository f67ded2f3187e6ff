//! Stored forms of commands and events. A version is frozen once a log may hold it: `persisted/v1` never changes
//! its meaning; golden bytes in `tests/golden.rs` hold it to that. Upcasting happens in `Stored::from_payload`.

pub mod v1;
