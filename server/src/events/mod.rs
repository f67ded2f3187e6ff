//! Applications' events on any log: append, read, subscribe, persistent consumer groups.
//!
//! Invariants: nothing here knows which engine the log is; a page, a subscription and a group hold a bounded number of
//! bytes whatever the log holds; a reader is as fast as its client and no faster. Who may see what is decided by the
//! gRPC surface, which hands over a selection. Deliberately absent: rules of a group (`actors_core::group` has them).

pub(crate) mod append;
pub(crate) mod convert;
pub(crate) mod group;
pub(crate) mod read;
pub(crate) mod remote;
pub(crate) mod select;
pub(crate) mod share;
pub(crate) mod tail;
