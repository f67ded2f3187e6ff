//! Names that leave this crate: principals and the format of snapshots.

/// Principal of what falls due.
pub(crate) const DEADLINE: &str = "deadline";
/// Principal of refusal sums.
pub(crate) const REFUSALS: &str = "refusals";
/// First bytes of a snapshot.
pub(crate) const SNAPSHOT_MAGIC: [u8; 4] = *b"FHSN";
/// Version of the snapshot's header and of the states in it.
pub(crate) const SNAPSHOT_FORMAT: u32 = 3;
